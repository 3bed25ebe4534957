"""Reads rows for the checks. Databases compute the sums; other rows are streamed, sorted by order id."""

import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from deploy.audit.findings import KEPT_MOST
from deploy.audit.reading.rows import (
    CustomerUnits,
    Dispute,
    LineKey,
    Order,
    Outbox,
    Payment,
    PaymentCopy,
    Pools,
    Refund,
    Reservation,
    Saga,
    Sale,
    Stock,
    Units,
)
from deploy.audit.reading.sources import Connection
from services.orders.sql.sagas import WAITS_FOR_CUSTOMER, WAITS_FOR_PROVIDER

_AT_ONCE = 2_000

_TAKEN = """
    SELECT t.state, l.value->>'product_id' AS product_id, coalesce(l.value->>'sale_id', '') AS sale_id,
        sum((l.value->>'quantity')::bigint)::bigint AS units
    FROM (
        SELECT state, lines FROM reservations WHERE state IN ('HELD', 'CONFIRMED')
        UNION ALL SELECT 'RETURNED', lines FROM returns
    ) t CROSS JOIN LATERAL jsonb_array_elements(t.lines) l
    GROUP BY 1, 2, 3
"""
_STOCK = """
    SELECT s.product_id, s.on_hand, s.held, coalesce(m.kinds, '{}')
    FROM stock s LEFT JOIN (
        SELECT product_id, jsonb_object_agg(kind, units) AS kinds
        FROM (SELECT product_id, kind, sum(delta) AS units FROM stock_movements GROUP BY 1, 2) k GROUP BY 1
    ) m USING (product_id) ORDER BY s.product_id
"""
_CUSTOMER_UNITS = """
    WITH bought AS (
        SELECT (l.value->>'sale_id')::uuid AS sale_id, t.customer_id,
            sum(t.sign * (l.value->>'quantity')::bigint) AS units
        FROM (
            SELECT customer_id, lines, 1 AS sign FROM reservations WHERE state IN ('HELD', 'CONFIRMED')
            UNION ALL
            SELECT r.customer_id, b.lines, -1 FROM returns b JOIN reservations r ON r.id = b.reservation_id
        ) t CROSS JOIN LATERAL jsonb_array_elements(t.lines) l
        WHERE l.value->>'sale_id' IS NOT NULL GROUP BY 1, 2
    )
    SELECT sale_id, customer_id, coalesce(s.per_customer_limit, 0), coalesce(c.units, 0)::bigint,
        coalesce(b.units, 0)::bigint
    FROM sale_customers c FULL JOIN bought b USING (sale_id, customer_id) LEFT JOIN flash_sales s ON s.id = sale_id
    WHERE (c.units IS NOT NULL OR s.per_customer_limit > 0) AND (coalesce(c.units, 0) <> coalesce(b.units, 0)
        OR greatest(c.units, b.units) > s.per_customer_limit)
    ORDER BY 1, 2 LIMIT %s
"""
_ORDERS = f"""
    SELECT o.id, o.customer_id, o.state, o.lines, o.total_minor, o.currency, o.refunded_minor, o.returned, o.refunding,
        o.disputed, o.payment,
        extract(epoch FROM clock_timestamp() - o.hold_expire_time)::float, s.kind,
        coalesce({WAITS_FOR_CUSTOMER}, false), coalesce({WAITS_FOR_PROVIDER}, false),
        extract(epoch FROM clock_timestamp() - s.progress_time)::float, s.refund->>'id'
    FROM orders o LEFT JOIN sagas s ON s.order_id = o.id ORDER BY o.id
"""
_RESERVATIONS = """
    SELECT r.id, r.customer_id, r.state, r.lines, coalesce(b.lines, '[]'),
        extract(epoch FROM clock_timestamp() - r.expire_time)::float
    FROM reservations r LEFT JOIN (
        SELECT b.reservation_id, jsonb_agg(l.value) AS lines
        FROM returns b CROSS JOIN LATERAL jsonb_array_elements(b.lines) l GROUP BY 1
    ) b ON b.reservation_id = r.id ORDER BY r.id
"""
_PAYMENTS = """
    SELECT p.id, p.order_id, p.customer_id, p.state, p.provider, coalesce(p.provider_reference, ''), p.amount_minor,
        p.currency, p.refunded_minor, coalesce(r.refunds, '[]'), coalesce(d.disputes, '[]'),
        coalesce(j.booked, 0)
    FROM payments p LEFT JOIN (
        SELECT payment_id, jsonb_agg(jsonb_build_array(id, state, amount_minor, stray,
            coalesce(provider_reference, ''), extract(epoch FROM clock_timestamp() - create_time),
            state = 'SUCCEEDED' AND settlement <> 'PROVIDER', provider)) AS refunds
        FROM refunds GROUP BY 1
    ) r ON r.payment_id = p.id LEFT JOIN (
        SELECT payment_id, sum(CASE WHEN starts_with(debit, 'provider:') THEN amount_minor ELSE -amount_minor END)
            ::bigint AS booked
        FROM journal_entries WHERE debit <> 'fees' AND credit <> 'fees'
            AND (starts_with(debit, 'provider:') OR starts_with(credit, 'provider:')) GROUP BY 1
    ) j ON j.payment_id = p.id LEFT JOIN (
        SELECT payment_id, jsonb_agg(jsonb_build_array(reference, state, amount_minor, withdrawn_minor)) AS disputes
        FROM disputes GROUP BY 1
    ) d ON d.payment_id = p.id ORDER BY p.order_id, p.id
"""
_OUTBOX = """
    SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(create_time)), 0)::float FROM outbox
"""
_PRODUCTS_ORDERED = """
    SELECT DISTINCT l.value->>'product_id' FROM orders o CROSS JOIN LATERAL jsonb_array_elements(o.lines) l
"""


def sales(inventory: Connection) -> list[Sale]:
    query = "SELECT id, product_id, allocation, held, sold, returned FROM flash_sales ORDER BY id"
    return [
        Sale(id=str(a), product_id=str(b), allocation=c, held=d, sold=e, returned=f)
        for a, b, c, d, e, f in inventory.execute(query)
    ]


def stocks(inventory: Connection) -> list[Stock]:
    return [Stock(product_id=str(a), on_hand=b, held=c, moved=d) for a, b, c, d in inventory.execute(_STOCK)]


def pools(inventory: Connection) -> Pools:
    by_sale: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    by_product: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for state, product_id, sale_id, units in inventory.execute(_TAKEN):
        pool = by_sale[sale_id] if sale_id else by_product[product_id]
        pool[state] += units
    return Pools(_units(by_sale), _units(by_product))


def _units(pools: dict[str, dict[str, int]]) -> dict[str, Units]:
    return {
        key: Units(held=by["HELD"], confirmed=by["CONFIRMED"], returned=by["RETURNED"]) for key, by in pools.items()
    }


def customer_units(inventory: Connection) -> list[CustomerUnits]:
    """Only the rows that look wrong."""
    return [
        CustomerUnits(sale_id=str(a), customer_id=str(b), limit=c, counted=d, reserved=e)
        for a, b, c, d, e in inventory.execute(_CUSTOMER_UNITS, [KEPT_MOST])
    ]


def outboxes(connections: Mapping[str, Connection]) -> list[Outbox]:
    """The outboxes of the services that have one."""
    found = []
    for service, connection in connections.items():
        if _single(connection, "SELECT to_regclass('outbox') IS NOT NULL"):
            row = connection.execute(_OUTBOX).fetchone()
            assert row is not None
            found.append(Outbox(service=service, waiting=row[0], oldest_seconds=row[1]))
    return found


def orders(connection: Connection) -> Iterator[Order]:
    for row in _stream(connection, _ORDERS):
        id_, customer_id, state, lines, total, currency, refunded, returned, refunding, *more = row
        disputed, payment, over, *saga = more
        yield Order(
            id=str(id_), customer_id=str(customer_id), state=state, lines=_lines(lines),
            prices={
                line["product_id"]: (line["unit_price"]["minor"], line["unit_price"]["currency"]) for line in lines
            },
            total_minor=total, currency=currency, refunded_minor=refunded, returned=returned, refunding=refunding,
            disputed=disputed, payment=_copy(payment), hold_over_seconds=over, saga=_saga(*saga),
        )  # fmt: skip


def _copy(column: dict[str, Any] | None) -> PaymentCopy | None:
    return PaymentCopy(id=column["id"], provider=column["provider"], state=column["state"]) if column else None


def _saga(
    kind: str | None, for_customer: bool, for_provider: bool, still: float | None, refund_id: str | None
) -> Saga | None:
    if kind is None:
        return None
    return Saga(
        kind=kind, waits_for_customer=for_customer, waits_for_provider=for_provider, still_seconds=still or 0.0,
        refund_id=refund_id or "",
    )  # fmt: skip


def reservations(connection: Connection) -> Iterator[Reservation]:
    for id_, customer_id, state, lines, returned, over in _stream(connection, _RESERVATIONS):
        yield Reservation(
            id=str(id_), customer_id=str(customer_id), state=state, lines=_lines(lines), returned=_summed(returned),
            prices={
                line["product_id"]: (line["price_minor"], line["currency"]) for line in lines if line["sale_id"]
            },
            over_seconds=over,
        )  # fmt: skip


def payments(connection: Connection) -> Iterator[Payment]:
    for row in _stream(connection, _PAYMENTS):
        (
            id_,
            order_id,
            customer_id,
            state,
            provider,
            reference,
            amount,
            currency,
            refunded,
            refunds,
            disputes,
            booked,
        ) = row
        yield Payment(
            id=str(id_), order_id=str(order_id), customer_id=str(customer_id), state=state, provider=provider,
            reference=reference, amount_minor=amount, currency=currency, refunded_minor=refunded, booked_minor=booked,
            refunds=tuple(
                Refund(id=a, state=b, amount_minor=c, stray=d, reference=e, age_seconds=f, by_hand=g, provider=h)
                for a, b, c, d, e, f, g, h in refunds
            ),
            disputes=tuple(Dispute(reference=a, state=b, amount_minor=c, withdrawn_minor=d) for a, b, c, d in disputes),
        )  # fmt: skip


def customers_of_orders(connection: Connection) -> Iterator[str]:
    """The customers of all orders, sorted."""
    for (id_,) in _stream(connection, "SELECT DISTINCT customer_id FROM orders ORDER BY 1"):
        yield str(id_)


def users(identity: Connection) -> Iterator[str]:
    """All users, sorted."""
    for (id_,) in _stream(identity, "SELECT id FROM users ORDER BY id"):
        yield str(id_)


def products_of_orders(connection: Connection) -> list[str]:
    return [row[0] for row in connection.execute(_PRODUCTS_ORDERED)]


def known_products(catalog: Connection, ids: Iterable[str]) -> set[str]:
    """The products among `ids` that exist, also deleted ones."""
    return {str(row[0]) for row in catalog.execute("SELECT id FROM products WHERE id = ANY(%s::uuid[])", [list(ids)])}


def currencies(catalog: Connection, ids: Iterable[str]) -> dict[str, str]:
    """The currencies of products that exist."""
    query = "SELECT id::text, currency FROM products WHERE id = ANY(%s::uuid[])"
    return {row[0]: row[1] for row in catalog.execute(query, [list(ids)])}


def _stream(connection: Connection, query: str, *arguments: Any) -> Iterator[tuple[Any, ...]]:
    # A server-side cursor: rows arrive in batches, so that memory does not grow with the data.
    with connection.cursor(name=f"audit_{uuid.uuid4().hex}") as cursor:
        cursor.itersize = _AT_ONCE
        cursor.execute(query, arguments or None)
        yield from cursor


def _single(connection: Connection, query: str) -> Any:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def _lines(lines: list[dict[str, Any]]) -> tuple[LineKey, ...]:
    return tuple(sorted((line["product_id"], line["sale_id"] or "", line["quantity"]) for line in lines))


def _summed(lines: list[dict[str, Any]]) -> tuple[LineKey, ...]:
    """The lines summed up to one for each product and sale."""
    units: Counter[tuple[str, str]] = Counter()
    for product_id, sale_id, quantity in _lines(lines):
        units[product_id, sale_id] += quantity
    return tuple(sorted((product_id, sale_id, quantity) for (product_id, sale_id), quantity in units.items()))
