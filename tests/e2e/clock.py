"""Time that passes for one order only, as if the clocks of the databases had made a step."""

from datetime import timedelta

from tests.e2e.shop import Shop

STEP = timedelta(minutes=11)
"""More than a hold of ten minutes lasts, and less than the same hold once it is extended."""
_STEP = f"interval '{STEP.total_seconds():.0f} seconds'"


async def time_passes(shop: Shop, order_id: str) -> None:
    """Move the end of the order's hold, and its saga's next look, into the past by `STEP`."""
    await shop.rows(
        "inventory",
        f"UPDATE reservations SET expire_time = expire_time - {_STEP} WHERE id = '{order_id}' AND state = 'HELD'"
        " RETURNING id",
    )
    await shop.rows(
        "orders",
        f"WITH o AS (UPDATE orders SET hold_expire_time = hold_expire_time - {_STEP} WHERE id = '{order_id}'"
        " AND state = 'PENDING' RETURNING id)"
        f" UPDATE sagas SET next_time = next_time - {_STEP}, hold_check_time = hold_check_time - {_STEP}"
        " FROM o WHERE order_id = o.id RETURNING order_id",
    )


async def hold_ends(shop: Shop, order_id: str) -> None:
    """End the order's hold now: the order's own timer is due, and inventory's grace begins."""
    await shop.rows(
        "inventory",
        "UPDATE reservations SET create_time = create_time - (expire_time - clock_timestamp()),"
        f" expire_time = clock_timestamp() WHERE id = '{order_id}' RETURNING id",
    )
    await shop.rows(
        "orders",
        f"WITH o AS (UPDATE orders SET hold_expire_time = clock_timestamp() WHERE id = '{order_id}' RETURNING id)"
        " UPDATE sagas SET next_time = clock_timestamp() FROM o WHERE order_id = o.id RETURNING order_id",
    )


async def hold_is_checked(shop: Shop, order_id: str) -> None:
    """Let the saga check now whether the order's hold must be extended."""
    await shop.rows(
        "orders",
        "UPDATE sagas SET hold_check_time = clock_timestamp(), next_time = clock_timestamp()"
        f" WHERE order_id = '{order_id}' RETURNING order_id",
    )


async def unlocked(shop: Shop) -> list[str]:
    """Returns the orders whose sagas some process carries, without those that a stopped process has locked."""
    rows = await shop.rows("orders", "SELECT order_id::text FROM sagas WHERE NOT paused FOR UPDATE SKIP LOCKED")
    return [row[0] for row in rows]


async def leases_are_over(shop: Shop) -> dict[str, int]:
    """End the leases of all sagas, as if the process that holds them had been gone for long.

    Returns their fencing tokens by order. A saga that a stopped process has locked keeps its lease.
    """
    ended = await shop.rows(
        "orders",
        "UPDATE sagas SET next_time = clock_timestamp() WHERE order_id IN (SELECT order_id FROM sagas"
        " WHERE NOT paused AND next_time > clock_timestamp() FOR UPDATE SKIP LOCKED)"
        " RETURNING order_id::text, fencing_token",
    )
    return {row[0]: row[1] for row in ended}
