"""Time that passes for one order only, as if the clocks of the databases had made a step."""

from tests.e2e.shop import Shop

_STEP = "interval '11 minutes'"


async def time_is_up(shop: Shop, order_id: str) -> None:
    """The order's hold has ended, whatever its length; whoever waits for that wakes up."""
    await shop.rows(
        "inventory",
        f"UPDATE reservations SET expire_time = expire_time - {_STEP} WHERE id = '{order_id}' AND state = 'HELD'"
        " RETURNING id",
    )
    await shop.rows(
        "orders",
        f"WITH o AS (UPDATE orders SET hold_expire_time = hold_expire_time - {_STEP} WHERE id = '{order_id}'"
        " AND state = 'PENDING' RETURNING id)"
        f" UPDATE sagas SET next_time = next_time - {_STEP}, look_time = look_time - {_STEP}"
        " FROM o WHERE order_id = o.id RETURNING order_id",
    )


async def leases_are_over(shop: Shop) -> None:
    """What a process has that died, others may take up."""
    await shop.rows(
        "orders",
        "UPDATE sagas SET next_time = clock_timestamp() WHERE NOT waiting AND next_time > clock_timestamp()"
        " RETURNING order_id",
    )
