"""Checks of the database of inventory: each is one statement."""

from deploy.audit import repairs
from deploy.audit.checks.excuses import OVER_SECONDS
from deploy.audit.checks.orders import HOLD_SECONDS
from deploy.audit.findings import Check, Invariant

# The units of ordinary stock that left and came back for each reservation, by product and kind.
_EXPECTED = """
    SELECT r.id, (l->>'product_id')::uuid AS product_id, 'SOLD' AS kind, -(l->>'quantity')::bigint AS units
    FROM reservations r CROSS JOIN jsonb_array_elements(r.lines) l
    WHERE r.state = 'CONFIRMED' AND l->>'sale_id' IS NULL
    UNION ALL
    SELECT b.reservation_id, (l->>'product_id')::uuid, 'RESTOCKED', sum((l->>'quantity')::bigint)
    FROM returns b CROSS JOIN jsonb_array_elements(b.lines) l WHERE l->>'sale_id' IS NULL GROUP BY 1, 2
"""

_ENDED = """
    SELECT l->>'sale_id' AS sale_id, r.customer_id, count(DISTINCT r.id) AS holds
    FROM reservations r CROSS JOIN jsonb_array_elements(r.lines) l
    WHERE r.state IN ('EXPIRED', 'RELEASED') AND l->>'sale_id' IS NOT NULL GROUP BY 1, 2
"""


def _check(
    invariant: Invariant, name: str, means: str, query: str, repair: str = repairs.LOOK, mend: str = ""
) -> Check:
    return Check(name, invariant, means, repair, "inventory", query, mend)


CHECKS = (
    _check(
        Invariant.STOCK, "movement-kind", "each movement has a known kind, and names its sale if it is of one",
        """
        SELECT m.product_id, format('movement %s of %s units is %s for %s', m.id, m.delta, m.kind, m.reference_id)
        FROM stock_movements m LEFT JOIN stock p USING (product_id)
            LEFT JOIN flash_sales s ON s.id = m.reference_id AND s.product_id = m.product_id
        WHERE NOT coalesce(p.product_id IS NOT NULL AND CASE m.kind
            WHEN 'ADJUSTED' THEN true WHEN 'SOLD' THEN m.delta < 0 WHEN 'RESTOCKED' THEN m.delta > 0
            WHEN 'ALLOCATED' THEN m.delta < 0 AND s.id IS NOT NULL
            WHEN 'RETURNED' THEN m.delta > 0 AND s.id IS NOT NULL END, false)
        """,
    ),
    _check(
        Invariant.STOCK, "movement-of-order", "each ordinary line that was sold or came back has its movement",
        f"""
        WITH expected AS ({_EXPECTED}), moved AS (
            SELECT reference_id AS id, product_id, kind, sum(delta) AS units, count(*) AS number
            FROM stock_movements WHERE kind IN ('SOLD', 'RESTOCKED') GROUP BY 1, 2, 3
        )
        SELECT coalesce(e.id, m.id), format('its movements say %s %s units of product %s, its reservation %s',
            coalesce(m.kind, e.kind), coalesce(m.units, 0), coalesce(e.product_id, m.product_id), coalesce(e.units, 0))
        FROM expected e FULL JOIN moved m USING (id, product_id, kind)
        WHERE e.units IS DISTINCT FROM m.units OR (e.kind = 'SOLD' AND m.number > 1)
        """,
    ),
    _check(
        Invariant.SALES, "sale-ledger", "a sale's allocation less what it gave back is what the ledger gave it",
        """
        SELECT s.id, format('its allocation less returns is %s, the ledger gave it %s', s.allocation - s.returned,
            coalesce(m.units, 0))
        FROM flash_sales s LEFT JOIN (
            SELECT reference_id, product_id, -sum(delta) AS units FROM stock_movements
            WHERE kind IN ('ALLOCATED', 'RETURNED') GROUP BY 1, 2
        ) m ON m.reference_id = s.id AND m.product_id = s.product_id
        WHERE s.allocation - s.returned <> coalesce(m.units, 0)
        """,
    ),
    _check(
        Invariant.SALES, "sale-closed", "a sale that is over is closed, and a closed one has given all units back",
        f"""
        SELECT id, format('closed as %s, end at %s: %s held + %s sold + %s returned of %s',
            coalesce(closed_as, '(open)'), end_time, held, sold, returned, allocation)
        FROM flash_sales WHERE NOT coalesce(CASE
            WHEN closed_as IS NULL THEN
                returned = 0 AND end_time > clock_timestamp() - interval '{OVER_SECONDS} seconds'
            ELSE closed_as IN ('ENDED', 'CANCELLED') AND held + sold + returned = allocation END, false)
        """,
    ),
    _check(
        Invariant.SALES, "sale-overlap", "a product has one open sale at a time",
        """
        SELECT a.id, format('it overlaps sale %s of product %s', b.id, a.product_id)
        FROM flash_sales a JOIN flash_sales b ON a.product_id = b.product_id AND a.id < b.id
            AND a.start_time < b.end_time AND b.start_time < a.end_time
        WHERE a.closed_as IS NULL AND b.closed_as IS NULL
        """,
    ),
    _check(
        Invariant.PRODUCTS, "sale-terms", "the terms of a sale are possible",
        """
        SELECT id, format('price %s %s, limit %s, hold %s s, from %s to %s', currency, price_minor, per_customer_limit,
            hold_seconds, start_time, end_time)
        FROM flash_sales WHERE NOT coalesce(price_minor BETWEEN 0 AND 99999999 AND currency ~ '^[A-Z]{3}$'
            AND allocation > 0 AND per_customer_limit >= 0 AND hold_seconds > 0 AND end_time > start_time
            AND abandoned_hold_limit >= 0
            AND version > 0, false)
        """,
    ),
    _check(
        Invariant.RESERVATIONS, "reservation-lines", "a reservation's lines are of sales and products as they were",
        """
        SELECT r.id, format('line %s does not fit sale %s', l.value, coalesce(s.id::text, '(none)'))
        FROM reservations r CROSS JOIN jsonb_array_elements(r.lines) l
            LEFT JOIN flash_sales s ON s.id::text = l.value->>'sale_id'
        WHERE NOT coalesce((l.value->>'quantity')::numeric > 0 AND CASE WHEN l.value->>'sale_id' IS NULL
            THEN l.value->>'price_minor' IS NULL
                AND EXISTS (SELECT FROM stock p WHERE p.product_id::text = l.value->>'product_id')
            ELSE s.product_id::text = l.value->>'product_id' AND s.price_minor = (l.value->>'price_minor')::bigint
                AND s.currency = l.value->>'currency' END, false)
        UNION ALL
        SELECT r.id, format('it counts %s units, its lines come to %s', r.units, l.units)
        FROM reservations r CROSS JOIN LATERAL (
            SELECT sum((l->>'quantity')::numeric) AS units FROM jsonb_array_elements(r.lines) l
        ) l WHERE r.units <> l.units
        UNION ALL
        SELECT r.id, format('it is in the list of sale %s', coalesce(r.sale_id::text, '(none)')) FROM reservations r
        WHERE jsonb_array_length(r.lines) = 0 OR r.sale_id::text IS DISTINCT FROM (
            SELECT l.value->>'sale_id' FROM jsonb_array_elements(r.lines) WITH ORDINALITY l
            WHERE l.value->>'sale_id' IS NOT NULL ORDER BY l.ordinality LIMIT 1)
        """,
    ),
    _check(
        Invariant.RESERVATIONS, "hold-overdue", "a hold whose time is over expires",
        f"""
        SELECT id, format('it is HELD, %s s after its time',
            extract(epoch FROM clock_timestamp() - expire_time)::integer)
        FROM reservations
        WHERE state = 'HELD' AND expire_time < clock_timestamp() - interval '{OVER_SECONDS} seconds'
        """,
        repairs.LEADER,
    ),
    _check(
        Invariant.RESERVATIONS, "hold-length", "a reservation's state is known, and its hold ends",
        f"""
        SELECT r.id, format('it is %s until %s, held at %s', r.state, r.expire_time, r.create_time)
        FROM reservations r WHERE NOT coalesce(r.state IN ('HELD', 'CONFIRMED', 'RELEASED', 'EXPIRED')
            AND r.create_time <= r.update_time
            AND r.expire_time < r.create_time + interval '{HOLD_SECONDS} seconds', false)
        """,
        repairs.MEND,
        "UPDATE reservations SET expire_time = now(), create_time = least(create_time, now())"
        " WHERE id = CAST(:id AS uuid) AND state = 'HELD'",
    ),
    _check(
        Invariant.RESERVATIONS, "return-lines", "units come back to a confirmed reservation, as they were asked for",
        """
        SELECT b.reservation_id, format('return %s of %s, asked %s, while it is %s', b.id, b.lines, b.asked,
            coalesce(r.state, 'lost'))
        FROM returns b LEFT JOIN reservations r ON r.id = b.reservation_id
        WHERE NOT coalesce(r.state = 'CONFIRMED' AND (b.asked = '{}' OR (
            SELECT jsonb_object_agg(product_id, units) FROM (
                SELECT l->>'product_id' AS product_id, sum((l->>'quantity')::integer) AS units
                FROM jsonb_array_elements(b.lines) l GROUP BY 1
            ) t) = b.asked), false)
        """,
    ),
    _check(
        Invariant.RESERVATIONS, "hold-slot", "the open holds of a customer have different slots",
        """
        SELECT min(id::text), format('%s holds of customer %s have the slot %s', count(*), customer_id, slot)
        FROM reservations WHERE state = 'HELD' AND slot IS NOT NULL GROUP BY customer_id, slot HAVING count(*) > 1
        """,
    ),
    _check(
        Invariant.LIMITS, "abandoned-holds", "a sale counts no more abandoned holds of a customer than have ended",
        f"""
        SELECT a.sale_id, format('it counts %s abandoned holds of customer %s, of %s that ended', a.holds,
            a.customer_id, coalesce(e.holds, 0))
        FROM abandoned_holds a LEFT JOIN flash_sales s ON s.id = a.sale_id LEFT JOIN ({_ENDED}) e
            ON e.sale_id = a.sale_id::text AND e.customer_id = a.customer_id
        WHERE s.id IS NULL OR a.holds NOT BETWEEN 0 AND coalesce(e.holds, 0)
        """,
        repairs.MEND,
        f"""
        DELETE FROM abandoned_holds WHERE sale_id = CAST(:id AS uuid)
            AND NOT EXISTS (SELECT FROM flash_sales s WHERE s.id = sale_id);
        UPDATE abandoned_holds a SET holds = least(a.holds, coalesce((
            SELECT e.holds FROM ({_ENDED}) e WHERE e.sale_id = :id AND e.customer_id = a.customer_id), 0))
        WHERE a.sale_id = CAST(:id AS uuid)
        """,
    ),
    _check(
        Invariant.REFERENCES, "sale-customers", "only sales with a limit count customers",
        """
        SELECT c.sale_id, format('it counts %s units of customer %s, but %s', c.units, c.customer_id,
            CASE WHEN s.id IS NULL THEN 'does not exist' ELSE 'has no limit' END)
        FROM sale_customers c LEFT JOIN flash_sales s ON s.id = c.sale_id
        WHERE s.id IS NULL OR s.per_customer_limit = 0 OR c.units < 0
        """,
        repairs.MEND,
        """
        DELETE FROM sale_customers c WHERE c.sale_id = CAST(:id AS uuid)
            AND NOT EXISTS (SELECT FROM flash_sales s WHERE s.id = c.sale_id AND s.per_customer_limit > 0)
        """,
    ),
)  # fmt: skip
