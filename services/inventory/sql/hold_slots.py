"""The slots of holds: a customer's open holds are numbered from 1, each number is taken once at a time.

The unique index `reservations_slot` enforces the bound of open orders. A statement takes the lowest free numbers, so
two statements that do not see each other take the same ones, and the second one fails. It then starts again and sees
the first. A number is free again as soon as its hold has ended, without a statement.
"""

from services.inventory.domain import HoldBounds


def slots_from(source: str) -> str:
    """CTEs that find `slots (id, slot)` of those holds in `source (n, id, customer_id, units)` that the bounds allow.

    A hold of which another one of its customer is earlier in the batch counts the units of that one too.
    """
    return f"""
        open_holds AS MATERIALIZED (
            SELECT c.customer_id, h.orders, h.units FROM (SELECT DISTINCT customer_id FROM {source}) c
            CROSS JOIN LATERAL (
                SELECT count(*) AS orders, coalesce(sum(r.units), 0) AS units FROM reservations r
                WHERE r.customer_id = c.customer_id AND r.state = 'HELD'
            ) h
            WHERE :orders_most > 0 OR :units_most > 0
        ), slots AS MATERIALIZED (
            SELECT w.id, CASE WHEN :orders_most = 0 THEN NULL WHEN o.orders = 0 THEN w.nth ELSE (
                SELECT free FROM generate_series(1, :orders_most) AS free
                WHERE NOT EXISTS (SELECT FROM reservations r
                    WHERE r.customer_id = w.customer_id AND r.state = 'HELD' AND r.slot = free)
                ORDER BY free OFFSET w.nth - 1 LIMIT 1
            ) END AS slot
            FROM (
                SELECT id, customer_id, row_number() OVER by_customer AS nth, sum(units) OVER by_customer AS units
                FROM {source} WINDOW by_customer AS (PARTITION BY customer_id ORDER BY n)
            ) w LEFT JOIN open_holds o USING (customer_id)
            WHERE (:orders_most = 0 OR o.orders + w.nth <= :orders_most)
                AND (:units_most = 0 OR o.units + w.units <= :units_most)
        )
    """  # noqa: S608


def arguments(bounds: HoldBounds) -> dict[str, int]:
    """The arguments of `slots_from`."""
    return {"orders_most": bounds.orders, "units_most": bounds.units}
