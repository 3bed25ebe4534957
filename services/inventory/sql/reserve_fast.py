"""Reserve a batch in one statement: each hold is one line of a flash sale, and all of them fit.

In every other case (a hold is refused, is repeated, or has several lines) the statement changes nothing, and
`reservations.reserve` takes the slow path. A property test proves that both paths do the same.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from services.chassis.data import db
from services.chassis.data.db import Database
from services.chassis.money import Money
from services.inventory.domain import Hold, HoldBounds, Reservation, State
from services.inventory.events import SOLD_OUT, availability_event
from services.inventory.sql import abandoned_holds, hold_slots

# `open` locks the sales, in order, and reads them as they are then, not as they were when the statement began. Another
# batch can count the same customer in between. Then the id becomes NULL, the NOT NULL constraint fails, and the
# statement rolls back. `sold_out` stores the event of each sale whose last unit is taken.
_RESERVE = text(f"""
    WITH h AS MATERIALIZED (
        SELECT * FROM unnest(
            CAST(:ids AS uuid[]), CAST(:customers AS uuid[]), CAST(:sales AS uuid[]), CAST(:products AS uuid[]),
            CAST(:units AS integer[]), CAST(:seconds AS integer[])
        ) WITH ORDINALITY AS h (id, customer_id, sale_id, product_id, units, seconds, n)
    ), {hold_slots.slots_from("h")}, wanted AS MATERIALIZED (
        SELECT sale_id, product_id, sum(units)::integer AS units FROM h GROUP BY sale_id, product_id
    ), customers AS MATERIALIZED (
        SELECT sale_id, customer_id, sum(units)::integer AS units FROM h GROUP BY sale_id, customer_id
    ), open AS MATERIALIZED (
        SELECT s.id, s.price_minor, s.currency, s.hold_seconds, s.per_customer_limit AS most,
            s.allocation - s.held - s.sold - s.returned - w.units AS remaining
        FROM flash_sales s JOIN wanted w ON s.id = w.sale_id AND s.product_id = w.product_id
        WHERE s.closed_as IS NULL AND s.start_time <= clock_timestamp() AND s.end_time > clock_timestamp()
            AND s.allocation - s.held - s.sold - s.returned >= w.units
        ORDER BY s.product_id, s.id FOR UPDATE OF s
    ), fits AS MATERIALIZED (
        SELECT 1 WHERE (SELECT count(*) FROM open) = (SELECT count(*) FROM wanted)
            AND NOT EXISTS (SELECT FROM reservations r JOIN h USING (id))
            AND (SELECT count(*) FROM slots) = (SELECT count(*) FROM h)
            AND NOT EXISTS ({abandoned_holds.AT_LIMIT} JOIN customers w USING (sale_id, customer_id))
            AND NOT EXISTS (
                SELECT FROM customers w JOIN open o ON o.id = w.sale_id
                LEFT JOIN sale_customers c USING (sale_id, customer_id)
                WHERE o.most > 0 AND w.units + coalesce(c.units, 0) > o.most)
    ), taken AS (
        UPDATE flash_sales s SET held = s.held + w.units, update_time = clock_timestamp()
        FROM wanted w, fits WHERE s.id = w.sale_id
    ), counted AS (
        INSERT INTO sale_customers AS c (sale_id, customer_id, units)
        SELECT w.sale_id, w.customer_id, w.units FROM fits, customers w JOIN open o ON o.id = w.sale_id
        WHERE o.most > 0 ORDER BY w.sale_id, w.customer_id
        ON CONFLICT (sale_id, customer_id) DO UPDATE SET units = c.units + excluded.units
        WHERE c.units + excluded.units <= (SELECT per_customer_limit FROM flash_sales WHERE id = c.sale_id)
        RETURNING sale_id, customer_id
    ), held AS (
        INSERT INTO reservations (id, customer_id, state, lines, sale_id, expire_time, slot, units)
        SELECT CASE WHEN o.most = 0 OR c.customer_id IS NOT NULL THEN h.id END, h.customer_id, 'HELD',
            jsonb_build_array(jsonb_build_object(
                'product_id', h.product_id, 'sale_id', h.sale_id, 'quantity', h.units,
                'price_minor', o.price_minor, 'currency', o.currency)),
            h.sale_id, clock_timestamp() + make_interval(secs => least(h.seconds, o.hold_seconds)), slots.slot, h.units
        FROM fits, h JOIN slots USING (id) JOIN open o ON o.id = h.sale_id
            LEFT JOIN counted c USING (sale_id, customer_id)
        ORDER BY h.customer_id, h.id
        RETURNING id, expire_time
    ), sold_out AS (
        INSERT INTO outbox (event_id, subject, key, payload)
        SELECT gen_random_uuid(), :subject, o.id::text, e.payload
        FROM fits, open o JOIN unnest(CAST(:event_sales AS uuid[]), CAST(:payloads AS bytea[])) AS e (id, payload)
            USING (id)
        WHERE o.remaining = 0
    )
    SELECT held.id, held.expire_time, o.price_minor, o.currency, o.remaining
    FROM held JOIN h USING (id) JOIN open o ON o.id = h.sale_id
""")  # noqa: S608


async def reserve(
    database: Database, holds: Sequence[Hold], bounds: HoldBounds
) -> tuple[list[Reservation], bool] | None:
    """Hold units for all of `holds`, in one statement, or change nothing and return None.

    The flag says whether a sale sold out, so that there is an event to publish.
    """
    if any(len(hold.lines) > 1 or not hold.lines[0].sale_id for hold in holds):
        return None
    lines = [hold.lines[0] for hold in holds]
    sales = list({line.sale_id for line in lines if line.sale_id})
    arguments = {
        "ids": [hold.id for hold in holds],
        "customers": [hold.customer_id for hold in holds],
        "sales": [line.sale_id for line in lines],
        "products": [line.product_id for line in lines],
        "units": [line.quantity for line in lines],
        "seconds": [hold.seconds for hold in holds],
        "subject": SOLD_OUT,
        **hold_slots.arguments(bounds),
        "event_sales": sales,
        "payloads": [availability_event(sale_id, sold_out=True).message.SerializeToString() for sale_id in sales],
    }
    try:
        rows = {row.id: row for row in await db.run_autocommit(database, _RESERVE, arguments)}
    except IntegrityError:
        return None  # another batch was faster with the same customer, slot or reservation
    if not rows:
        return None
    return [_reservation(hold, rows[hold.id]) for hold in holds], any(row.remaining == 0 for row in rows.values())


def _reservation(hold: Hold, row: Any) -> Reservation:
    line = replace(hold.lines[0], sale_price=Money(row.currency, row.price_minor))
    return Reservation(hold.id, hold.customer_id, State.HELD, (line,), row.expire_time)
