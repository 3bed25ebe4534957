"""Pure checks over rows of inventory, sagas and outboxes: units are conserved, nothing is stuck."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from deploy.audit.findings import Finding, Invariant
from deploy.audit.rows import CustomerUnits, Outbox, Pools, Saga, Sale, Stock, Units

STUCK_SECONDS = 120
OUTBOX_SECONDS = 10
_SOLD, _RESTOCKED, _ALLOCATED, _RETURNED = "SOLD", "RESTOCKED", "ALLOCATED", "RETURNED"
_NONE = Units()


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
            yield Finding(Invariant.SALES, (sale.id,), f"sale {sale.id}: {'; '.join(wrong)}")
    for sale_id in pools.sales.keys() - seen:
        yield Finding(Invariant.SALES, (sale_id,), f"reservations take from sale {sale_id}, which does not exist")


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
            yield Finding(Invariant.STOCK, (stock.product_id,), f"product {stock.product_id}: {'; '.join(wrong)}")
    for product_id in pools.stock.keys() - seen:
        text = f"reservations take from the stock of product {product_id}, which has no stock"
        yield Finding(Invariant.STOCK, (product_id,), text)


def check_units(stocks: Iterable[Stock], sales: Iterable[Sale]) -> Iterator[Finding]:
    """Checks that every unit ever put in is on hand, in a sale, held or sold."""
    sales_of: dict[str, list[Sale]] = defaultdict(list)
    for sale in sales:
        sales_of[sale.product_id].append(sale)
    for stock in stocks:
        account = Account.of(stock, sales_of[stock.product_id])
        if account.found != account.put_in:
            yield Finding(Invariant.UNITS, (stock.product_id,), f"product {stock.product_id}: {account}")


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
        wrong = []
        if row.counted != row.reserved:
            wrong.append(f"the sale counts {row.counted} units, reservations have {row.reserved}")
        if max(row.counted, row.reserved) > row.limit and not row.paid_late:
            wrong.append(f"has {max(row.counted, row.reserved)} units, the limit is {row.limit}")
        if wrong:
            # A limit that was lowered during the sale leaves customers above it who were not above the old one.
            text = f"customer {row.customer_id} in sale {row.sale_id}: {'; '.join(wrong)}"
            yield Finding(Invariant.LIMITS, (row.sale_id, row.customer_id), text, warning=row.terms_changed)


def check_sagas(sagas: Iterable[Saga]) -> Iterator[Finding]:
    """Checks that no saga is stuck; time spent waiting for a customer does not count."""
    for saga in sagas:
        if saga.age_seconds > STUCK_SECONDS and not saga.waits_for_customer:
            text = f"order {saga.order_id}: {saga.phase} for {saga.age_seconds:.0f} s, {saga.attempts} attempts"
            yield Finding(Invariant.SAGAS, (saga.order_id,), text)


def check_outboxes(outboxes: Iterable[Outbox]) -> Iterator[Finding]:
    """Checks that events are published within seconds. Late events lose nothing, so this is a warning."""
    for outbox in outboxes:
        if outbox.oldest_seconds > OUTBOX_SECONDS:
            text = (
                f"{outbox.service}: {outbox.waiting} events unpublished, the oldest for {outbox.oldest_seconds:.0f} s"
            )
            yield Finding(Invariant.OUTBOX, (outbox.service,), text, warning=True)
