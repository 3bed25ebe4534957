"""Checks over rows of inventory and outboxes: units are conserved, limits are kept, events leave. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from deploy.audit import repairs
from deploy.audit.findings import Check, Finding, Invariant
from deploy.audit.reading.rows import CustomerUnits, Outbox, Pools, Sale, Stock, Units

LATE_SECONDS = 10
"""Events leave within seconds. Late ones lose nothing, so this is a warning."""
STUCK_SECONDS = 600
_SOLD, _RESTOCKED, _ALLOCATED, _RETURNED = "SOLD", "RESTOCKED", "ALLOCATED", "RETURNED"
_NONE = Units()
_TAKEN = """
    SELECT coalesce(sum((l.value->>'quantity')::integer), 0) FROM (
        SELECT lines FROM reservations WHERE state = '{state}'
    ) r CROSS JOIN LATERAL jsonb_array_elements(r.lines) l WHERE {pool}
"""
_OF_SALE, _OF_STOCK = "l.value->>'sale_id' = :id", "l.value->>'product_id' = :id AND l.value->>'sale_id' IS NULL"
_BACK = """
    SELECT coalesce(sum((l.value->>'quantity')::integer), 0)
    FROM returns r CROSS JOIN LATERAL jsonb_array_elements(r.lines) l WHERE l.value->>'sale_id' = :id
"""
SALE_COUNTERS = Check(
    "sale-counters", Invariant.SALES, "held and sold of a sale are the units of its reservations", repairs.MEND,
    mend=f"""
        UPDATE flash_sales SET held = ({_TAKEN.format(state="HELD", pool=_OF_SALE)}),
            sold = ({_TAKEN.format(state="CONFIRMED", pool=_OF_SALE)}) - ({_BACK})
        WHERE id = CAST(:id AS uuid)
    """, service="inventory",
)  # fmt: skip
STOCK_COUNTERS = Check(
    "stock-counters", Invariant.STOCK, "on hand is the sum of movements, and held the units of reservations",
    repairs.MEND,
    mend=f"""
        UPDATE stock SET held = ({_TAKEN.format(state="HELD", pool=_OF_STOCK)}),
            on_hand = (SELECT coalesce(sum(delta), 0) FROM stock_movements WHERE product_id = CAST(:id AS uuid))
        WHERE product_id = CAST(:id AS uuid)
    """, service="inventory",
)  # fmt: skip
UNITS = Check("units", Invariant.UNITS, "on hand + remaining + held + sold = all units ever put in", repairs.LOOK)
CUSTOMER_UNITS = Check(
    "customer-units", Invariant.LIMITS, "a sale counts the units of each customer as its reservations do",
    repairs.MEND,
    mend="""
        DELETE FROM sale_customers c USING flash_sales s
        WHERE c.sale_id = CAST(:id AS uuid) AND s.id = c.sale_id AND s.per_customer_limit > 0;
        INSERT INTO sale_customers (sale_id, customer_id, units)
        SELECT s.id, t.customer_id, sum(t.sign * (l.value->>'quantity')::integer)
        FROM flash_sales s, (
            SELECT customer_id, lines, 1 AS sign FROM reservations WHERE state IN ('HELD', 'CONFIRMED')
            UNION ALL
            SELECT r.customer_id, b.lines, -1 FROM returns b JOIN reservations r ON r.id = b.reservation_id
        ) t CROSS JOIN LATERAL jsonb_array_elements(t.lines) l
        WHERE s.id = CAST(:id AS uuid) AND s.per_customer_limit > 0 AND l.value->>'sale_id' = :id GROUP BY 1, 2
    """, service="inventory",
)  # fmt: skip
CUSTOMER_LIMIT = Check(
    "customer-limit", Invariant.LIMITS, "no customer has more units of a sale than its limit", repairs.LOOK
)
OUTBOX = Check(
    "outbox", Invariant.EVENTS, "events leave their outbox within seconds",
    "the service {id} publishes them once it reaches NATS: see its log for 'events are not published'",
)  # fmt: skip
CHECKS = (SALE_COUNTERS, STOCK_COUNTERS, UNITS, CUSTOMER_UNITS, CUSTOMER_LIMIT, OUTBOX)


def check_sales(sales: Iterable[Sale], pools: Pools) -> Iterator[Finding]:
    """Compares the counters of sales with the reservations that take from them."""
    seen = set()
    for sale in sales:
        seen.add(sale.id)
        wrong = []
        units = pools.sales.get(sale.id, _NONE)
        if sale.held != units.held:
            wrong.append(f"held is {sale.held}, but its reservations hold {units.held}")
        if sale.sold != units.confirmed - units.returned:
            wrong.append(f"sold is {sale.sold}, but its reservations confirm {_confirmed(units)}")
        if min(sale.held, sale.sold, sale.returned) < 0 or sale.held + sale.sold + sale.returned > sale.allocation:
            wrong.append(f"{sale.held} held + {sale.sold} sold + {sale.returned} returned of {sale.allocation}")
        if wrong:
            yield Finding(SALE_COUNTERS, (sale.id,), f"sale {sale.id}: {'; '.join(wrong)}")
    for sale_id in pools.sales.keys() - seen:
        yield Finding(SALE_COUNTERS, (sale_id,), f"reservations take from sale {sale_id}, which does not exist")


def _confirmed(units: Units) -> str:
    return f"{units.confirmed}, of which {units.returned} were returned" if units.returned else str(units.confirmed)


def check_stock(stocks: Iterable[Stock], pools: Pools) -> Iterator[Finding]:
    """Compares ordinary stock with its movements and with the reservations that take from it."""
    seen = set()
    for stock in stocks:
        seen.add(stock.product_id)
        wrong = []
        units = pools.stock.get(stock.product_id, _NONE)
        ledger, sold, restocked = sum(stock.moved.values()), -stock.moved.get(_SOLD, 0), stock.moved.get(_RESTOCKED, 0)
        if stock.on_hand != ledger:
            wrong.append(f"on hand is {stock.on_hand}, but the sum of its movements {ledger}")
        if stock.held != units.held:
            wrong.append(f"held is {stock.held}, but its reservations hold {units.held}")
        if sold != units.confirmed:
            wrong.append(f"movements sold {sold}, but its reservations confirm {units.confirmed}")
        if restocked != units.returned:
            wrong.append(f"movements restocked {restocked}, but {units.returned} were returned")
        if not 0 <= stock.held <= stock.on_hand:
            wrong.append(f"{stock.held} held of {stock.on_hand} on hand")
        if wrong:
            yield Finding(STOCK_COUNTERS, (stock.product_id,), f"product {stock.product_id}: {'; '.join(wrong)}")
    for product_id in pools.stock.keys() - seen:
        text = f"reservations take from the stock of product {product_id}, which has no stock"
        yield Finding(STOCK_COUNTERS, (product_id,), text)


def check_units(stocks: Iterable[Stock], sales: Iterable[Sale]) -> Iterator[Finding]:
    """Checks that every unit ever put in is on hand, in a sale, held or sold."""
    sales_of: dict[str, list[Sale]] = defaultdict(list)
    for sale in sales:
        sales_of[sale.product_id].append(sale)
    for stock in stocks:
        account = Account.of(stock, sales_of[stock.product_id])
        if account.found != account.put_in:
            yield Finding(UNITS, (stock.product_id,), f"product {stock.product_id}: {account}")


class Account:
    """The units of one or several products: on hand, held, in sales, sold."""

    def __init__(self) -> None:
        self.put_in = self.on_hand = self.remaining = self.held = self.sold = 0

    @classmethod
    def of(cls, stock: Stock, sales: Sequence[Sale]) -> "Account":
        account = cls()
        account.add(stock, sales)
        return account

    def add(self, stock: Stock, sales: Sequence[Sale]) -> None:
        """Adds one product. `held` counts only units of sales: held units of ordinary stock are still on hand."""
        moved = stock.moved
        sold = -moved.get(_SOLD, 0) - moved.get(_RESTOCKED, 0)
        inner = (_SOLD, _RESTOCKED, _ALLOCATED, _RETURNED)
        self.put_in += sum(units for kind, units in moved.items() if kind not in inner)
        self.on_hand += stock.on_hand
        self.remaining += sum(sale.allocation - sale.held - sale.sold - sale.returned for sale in sales)
        self.held += sum(sale.held for sale in sales)
        self.sold += sum(sale.sold for sale in sales) + sold

    @property
    def found(self) -> int:
        return self.on_hand + self.remaining + self.held + self.sold

    def __str__(self) -> str:
        sign = "=" if self.found == self.put_in else "is not"
        return (
            f"{self.on_hand:,} on hand + {self.remaining:,} in sales + {self.held:,} held + {self.sold:,} sold"
            f" {sign} {self.put_in:,} put in"
        )


def check_limits(customer_units: Iterable[CustomerUnits]) -> Iterator[Finding]:
    """Checks that no customer is above the limit of a sale, and that the sale counts their units right."""
    for row in customer_units:
        whose = f"customer {row.customer_id} in sale {row.sale_id}"
        if row.counted != row.reserved:
            text = f"{whose}: the sale counts {row.counted} units, reservations have {row.reserved}"
            yield Finding(CUSTOMER_UNITS, (row.sale_id, row.customer_id), text)
        if (units := max(row.counted, row.reserved)) > row.limit > 0:
            text = f"{whose}: has {units} units, the limit is {row.limit}"
            yield Finding(CUSTOMER_LIMIT, (row.sale_id, row.customer_id), text)


def check_outboxes(outboxes: Iterable[Outbox]) -> Iterator[Finding]:
    """Checks that events are published: late ones are a warning, stuck ones an error."""
    for outbox in outboxes:
        if outbox.oldest_seconds > LATE_SECONDS:
            text = (
                f"{outbox.service}: {outbox.waiting} events unpublished, the oldest for {outbox.oldest_seconds:.0f} s"
            )
            yield Finding(OUTBOX, (outbox.service,), text, warning=outbox.oldest_seconds < STUCK_SECONDS)
