"""Checks of the database of orders: each is one statement."""

from deploy.audit import repairs
from deploy.audit.checks.excuses import OVER_SECONDS, SAGA_SECONDS
from deploy.audit.findings import Check, Invariant
from services.orders.domain import NEXT, State
from services.orders.saga.comparison import BACK
from services.orders.sql.sagas import WAITS_FOR_CUSTOMER, WAITS_FOR_PROVIDER

HOLD_SECONDS = 7_200
"""No hold is longer, extensions included: a sale's hold lasts an hour at most."""
LOST = "entry lost"
"""The cause of an entry that a repair has written instead of lost ones. Moves before it are not judged again."""
_MOVES = ", ".join(
    f"('{before}', '{after}')" for moves in (NEXT, BACK) for before, possible in moves.items() for after in possible
)
_STATES = ", ".join(f"'{state}'" for state in State)
# The months before this one have been dropped, so that older orders have no whole log.
_LOGGED = """
    logged AS (
        SELECT coalesce(min(to_timestamp(right(c.relname, 7), 'YYYY_MM')), '-infinity') AS since
        FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'order_log'::regclass
    )
"""

_ENTRY = "order_id, version, state, reason, refunded_minor, actor, cause, note, request_id"
_BEGIN_LOG = f"""
    INSERT INTO order_log (id, create_time, {_ENTRY})
    SELECT coalesce(f.id, nextval(pg_get_serial_sequence('order_log', 'id'))) - 1, o.create_time, o.id, 1, 'PENDING',
        '', 0, 'operator:audit', '{LOST}', '', ''
    FROM orders o LEFT JOIN LATERAL (
        SELECT id, state FROM order_log WHERE order_id = o.id ORDER BY id LIMIT 1
    ) f ON true
    WHERE o.id = CAST(:id AS uuid) AND f.state IS DISTINCT FROM 'PENDING'
"""
_END_LOG = f"""
    INSERT INTO order_log ({_ENTRY})
    SELECT id, version, state, state_reason, refunded_minor, 'operator:audit', '{LOST}', '', ''
    FROM orders WHERE id = CAST(:id AS uuid)
"""


def _check(
    invariant: Invariant, name: str, means: str, query: str, repair: str = repairs.LOOK, mend: str = ""
) -> Check:
    return Check(name, invariant, means, repair, "orders", query, mend)


CHECKS = (
    _check(
        Invariant.ORDERS, "order-total", "an order's total is the sum of its lines, in its currency",
        """
        SELECT o.id, format('total is %s %s, its lines come to %s', o.currency, o.total_minor, l.minor)
        FROM orders o CROSS JOIN LATERAL (
            SELECT coalesce(sum((l->'unit_price'->>'minor')::numeric * (l->>'quantity')::numeric), 0) AS minor,
                bool_and(l->'unit_price'->>'currency' = o.currency AND (l->>'quantity')::numeric > 0
                    AND (l->'unit_price'->>'minor')::numeric >= 0) AS possible
            FROM jsonb_array_elements(o.lines) l
        ) l WHERE o.total_minor <> l.minor OR NOT coalesce(l.possible, false)
        """,
    ),
    _check(
        Invariant.ORDERS, "order-state", "an order's state is known, and fits its refunds and its shipment",
        f"""
        SELECT id, format('it is %s with %s of %s refunded, shipment %s', state, refunded_minor, total_minor,
            coalesce(shipment::text, 'none'))
        FROM orders WHERE NOT coalesce(state IN ({_STATES}) AND refunded_minor BETWEEN 0 AND total_minor AND version > 0
            AND create_time <= update_time AND CASE state
                WHEN 'PENDING' THEN refunded_minor = 0 AND shipment IS NULL
                WHEN 'PAID' THEN refunded_minor = 0 AND shipment IS NULL
                WHEN 'SHIPPED' THEN shipment->>'ship_time' IS NOT NULL AND shipment->>'deliver_time' IS NULL
                WHEN 'DELIVERED' THEN shipment->>'ship_time' IS NOT NULL AND shipment->>'deliver_time' IS NOT NULL
                WHEN 'REFUNDED' THEN refunded_minor = total_minor
                WHEN 'PARTIALLY_REFUNDED' THEN refunded_minor > 0 AND refunded_minor < total_minor
                ELSE shipment IS NULL END, false)
        """,
    ),
    _check(
        Invariant.ORDERS, "order-once", "a customer's request makes one order",
        """
        SELECT min(id::text), format('request %s of customer %s made %s orders: %s', request_id, customer_id, count(*),
            string_agg(id::text, ', '))
        FROM orders GROUP BY customer_id, request_id HAVING count(*) > 1
        """,
    ),
    _check(
        Invariant.ORDERS, "order-products", "the list of orders by product has each product of each order",
        """
        WITH wanted AS (
            SELECT o.id, (l->>'product_id')::uuid AS product_id, o.create_time
            FROM orders o CROSS JOIN jsonb_array_elements(o.lines) l
        )
        SELECT coalesce(w.id, p.order_id), format('product %s is %s in order_products',
            coalesce(w.product_id, p.product_id), CASE WHEN w.id IS NULL THEN 'too much' ELSE 'missing' END)
        FROM wanted w FULL JOIN order_products p
            ON p.order_id = w.id AND p.product_id = w.product_id AND p.create_time = w.create_time
        WHERE w.id IS NULL OR p.order_id IS NULL
        """,
        repairs.MEND,
        """
        DELETE FROM order_products WHERE order_id = CAST(:id AS uuid);
        INSERT INTO order_products (product_id, create_time, order_id)
        SELECT (l->>'product_id')::uuid, o.create_time, o.id FROM orders o CROSS JOIN jsonb_array_elements(o.lines) l
        WHERE o.id = CAST(:id AS uuid)
        """,
    ),
    _check(
        Invariant.SAGAS, "saga-of-order", "a PENDING order has a purchase saga, a refunding one a refund saga",
        """
        SELECT coalesce(o.id, s.order_id), CASE WHEN o.id IS NULL THEN format('its %s saga has no order', s.kind)
            WHEN s.order_id IS NULL THEN format('it is %s%s, but has no saga', o.state,
                CASE WHEN o.refunding THEN ' and refunding' ELSE '' END)
            ELSE format('it is %s%s, but has a %s saga', o.state,
                CASE WHEN o.refunding THEN ' and refunding' ELSE '' END, s.kind) END
        FROM orders o FULL JOIN sagas s ON s.order_id = o.id
        WHERE (o.state = 'PENDING' OR o.refunding OR s.order_id IS NOT NULL OR o.id IS NULL)
            AND NOT coalesce(CASE s.kind WHEN 'PURCHASE' THEN o.state = 'PENDING' AND NOT o.refunding
                WHEN 'REFUND' THEN o.state <> 'PENDING' AND o.refunding END, false)
        """,
        repairs.MEND,
        """
        DELETE FROM sagas s WHERE order_id = CAST(:id AS uuid) AND NOT EXISTS (
            SELECT FROM orders o WHERE o.id = s.order_id);
        INSERT INTO sagas (order_id, phase, steps_done, payment_method, next_time)
        SELECT id, 'FORWARD', 1, '', now() FROM orders o WHERE id = CAST(:id AS uuid) AND state = 'PENDING'
            AND NOT EXISTS (SELECT FROM sagas s WHERE s.order_id = o.id);
        UPDATE orders o SET refunding = false WHERE id = CAST(:id AS uuid) AND refunding
            AND NOT EXISTS (SELECT FROM sagas s WHERE s.order_id = o.id)
        """,
    ),
    _check(
        Invariant.SAGAS, "cancel-of-order", "an accepted cancellation is being carried out",
        """
        SELECT o.id, format('it is %s, a cancellation was %s, its saga turns back because of %s', o.state,
            CASE WHEN o.cancel_requested THEN 'accepted' ELSE 'not accepted' END,
            coalesce(nullif(s.cancel_reason, ''), s.refund->>'wanted', 'nothing'))
        FROM orders o LEFT JOIN sagas s ON s.order_id = o.id
        WHERE (o.cancel_requested AND NOT coalesce(
                s.cancel_reason IN ('CANCELLED', 'COMPENSATED') OR s.refund->>'wanted' = 'CANCELLED', false))
            OR (NOT o.cancel_requested AND (s.cancel_reason = 'CANCELLED' OR s.refund->>'wanted' = 'CANCELLED'))
        """,
        repairs.COMPENSATE,
    ),
    _check(
        Invariant.SAGAS, "saga-shape", "a saga's step, refund and lease are possible",
        f"""
        SELECT s.order_id, format('%s %s, %s steps done, next at %s', s.kind, s.phase, s.steps_done, s.next_time)
        FROM sagas s JOIN orders o ON o.id = s.order_id
        WHERE NOT coalesce(s.phase IN ('FORWARD', 'BACKWARD') AND s.steps_done BETWEEN 0 AND 2 AND s.fencing_token > 0
            AND (s.kind = 'REFUND') = (s.refund IS NOT NULL) AND s.refunded_minor BETWEEN 0 AND o.total_minor
            -- It sleeps at most until its hold ends.
            AND s.next_time < greatest(o.hold_expire_time, clock_timestamp())
                + interval '{OVER_SECONDS} seconds', false)
        """,
        repairs.RESUME,
    ),
    _check(
        Invariant.SAGAS, "saga-stuck", "a saga that waits neither for its customer nor for the provider goes on",
        f"""
        SELECT s.order_id, format('%s %s without progress for %s s, %s attempts%s', s.kind, s.phase,
            extract(epoch FROM clock_timestamp() - s.progress_time)::integer, s.attempts,
            CASE WHEN s.cause = '' THEN '' ELSE ', ' || s.cause END)
        FROM sagas s JOIN orders o ON o.id = s.order_id
        WHERE NOT coalesce({WAITS_FOR_CUSTOMER}, false) AND NOT ({WAITS_FOR_PROVIDER})
            AND s.progress_time < clock_timestamp() - interval '{SAGA_SECONDS} seconds'
        """,
        repairs.RESUME,
    ),
    _check(
        Invariant.SAGAS, "saga-past-hold", "a saga does not wait for its customer after the hold has ended",
        f"""
        SELECT s.order_id, format('it waits for its customer, %s s after its hold',
            extract(epoch FROM clock_timestamp() - o.hold_expire_time)::integer)
        FROM sagas s JOIN orders o ON o.id = s.order_id
        WHERE coalesce({WAITS_FOR_CUSTOMER}, false)
            AND o.hold_expire_time < clock_timestamp() - interval '{OVER_SECONDS} seconds'
        """,
        repairs.RESUME,
    ),
    _check(
        Invariant.SAGAS, "hold-of-order", "the hold of an order ends",
        f"""
        SELECT id, format('its hold ends at %s, it was placed at %s', hold_expire_time, create_time)
        FROM orders WHERE NOT coalesce(
            hold_expire_time < create_time + interval '{HOLD_SECONDS} seconds', false)
        """,
        repairs.COMPENSATE,
    ),
    _check(
        Invariant.REFUNDS, "payment-check", "a requested comparison of an order with payments is made",
        f"""
        SELECT order_id, format('its comparison with payments is due since %s, %s attempts', due_time, attempts)
        FROM payment_checks WHERE due_time < clock_timestamp() - interval '{HOLD_SECONDS} seconds'
            OR NOT EXISTS (SELECT FROM orders o WHERE o.id = order_id)
        """,
        repairs.MEND,
        """
        DELETE FROM payment_checks WHERE order_id = CAST(:id AS uuid);
        INSERT INTO payment_checks (order_id) SELECT id FROM orders WHERE id = CAST(:id AS uuid)
        """,
    ),
    _check(
        Invariant.LOG, "log-complete", "the log of an order begins with PENDING and ends with its state",
        f"""
        WITH {_LOGGED}, last AS (
            SELECT DISTINCT ON (order_id) order_id, state, version, refunded_minor FROM order_log
            ORDER BY order_id, id DESC
        ), first AS (
            SELECT DISTINCT ON (order_id) order_id, state FROM order_log ORDER BY order_id, id
        )
        SELECT coalesce(o.id, l.order_id), CASE
            WHEN o.id IS NULL THEN 'its log is there, but the order is lost'
            WHEN l.order_id IS NULL THEN format('it is %s, but has no log', o.state)
            WHEN f.state <> 'PENDING' THEN format('its log begins with %s', f.state)
            ELSE format('it is %s with %s refunded in version %s, its log says %s, %s, %s', o.state, o.refunded_minor,
                o.version, l.state, l.refunded_minor, l.version) END
        FROM logged CROSS JOIN orders o FULL JOIN last l ON l.order_id = o.id
            LEFT JOIN first f ON f.order_id = l.order_id
        WHERE (o.id IS NULL AND l.order_id IS NOT NULL)
            OR (l.order_id IS NULL AND o.create_time >= since)
            OR o.state <> l.state OR o.refunded_minor <> l.refunded_minor OR o.version < l.version
            OR (f.state <> 'PENDING' AND o.create_time >= since)
        """,
        repairs.MEND,
        f"{_BEGIN_LOG}; {_END_LOG}",
    ),
    _check(
        Invariant.LOG, "log-moves", "each move in the log is one that exists, and a refund is begun before it ends",
        rf"""
        WITH entries AS (
            SELECT order_id, state, cause, version, lag(state) OVER w AS before, lag(version) OVER w AS version_before,
                count(*) FILTER (WHERE cause ~ '^(Refund|Cancel)Order begun') OVER w AS begun,
                count(*) FILTER (WHERE cause ~ '^(Refund|Cancel)Order($| refused|;)') OVER w AS ended,
                max(id) FILTER (WHERE cause = '{LOST}') OVER (PARTITION BY order_id) AS lost, id
            FROM order_log WINDOW w AS (PARTITION BY order_id ORDER BY id)
        )
        SELECT order_id, format('%s after %s, version %s after %s, because of "%s"', state, before, version,
            version_before, cause)
        FROM entries WHERE before IS NOT NULL AND id > coalesce(lost, 0) AND NOT coalesce(version >= version_before
            AND (state = before OR (before, state) IN ({_MOVES}))
            AND NOT (cause ~ ' begun$' AND state <> before)
            AND NOT (before <> 'PENDING' AND cause ~ '^(Refund|Cancel)Order($| refused|;)' AND begun < ended), false)
        """,
        repairs.MEND, _END_LOG,
    ),
)  # fmt: skip
