"""Runs an audit: reads and checks, and reads again as long as something is wrong or in progress."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

from deploy.audit import fetch
from deploy.audit.findings import Finding, Findings, Invariant
from deploy.audit.merge import cases, missing
from deploy.audit.money import Books
from deploy.audit.rows import Case, Outbox, Pools, Sale, Stock
from deploy.audit.sources import Connection, Sources, captures
from deploy.audit.units import (
    Account,
    check_limits,
    check_outboxes,
    check_sagas,
    check_sales,
    check_stock,
    check_units,
)

_PAUSE_SECONDS = 1.0


@dataclass
class Report:
    """The findings of one audit, and the numbers behind them."""

    findings: Findings = field(default_factory=Findings)
    books: Books = field(default_factory=Books)
    units: Account = field(default_factory=Account)
    sales: list[Sale] = field(default_factory=list)
    stocks: list[Stock] = field(default_factory=list)
    outboxes: list[Outbox] = field(default_factory=list)
    passes: int = 1
    seconds: float = 0.0

    @property
    def wrong(self) -> list[Finding]:
        return [finding for finding in self.findings.kept if not finding.warning]

    @property
    def adds_up(self) -> bool:
        return not self.wrong

    def of(self, invariant: Invariant) -> list[Finding]:
        """The findings of one invariant, warnings included."""
        return [finding for finding in self.findings.kept if finding.invariant == invariant]


def audit(
    sources: Sources,
    *,
    products: Collection[str] = (),
    patience_seconds: float = 15.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Report:
    """Checks everything, or only what concerns `products`. Raises `Unreachable`.

    Five databases and a ledger cannot be read at the same instant. So while something is wrong or in progress, all is
    read again for up to `patience_seconds`. Only what is wrong in two consecutive readings is a finding.
    """
    began = time.monotonic()
    report = _read(sources, products)
    suspects = {finding.key for finding in report.wrong}
    passes = 1
    while (suspects or report.books.ending_soon) and time.monotonic() - began < patience_seconds:
        sleep(_PAUSE_SECONDS)
        report = _read(sources, products)
        passes += 1
        seen = {finding.key for finding in report.wrong}
        report.findings.kept = [f for f in report.findings.kept if f.warning or f.key in suspects]
        suspects = seen
    report.passes, report.seconds = passes, time.monotonic() - began
    return report


def _read(sources: Sources, products: Collection[str]) -> Report:
    report = Report(books=Books(with_ledger=sources.ledger_url is not None))
    with sources.connections() as connections, captures(sources.ledger_url) as ledger:
        _check_units(report, connections["inventory"], products)
        together = cases(
            fetch.orders(connections["orders"]),
            fetch.reservations(connections["inventory"]),
            fetch.payments(connections["payments"]),
            ledger,
        )
        for case in together if not products else (case for case in together if concerns(case, products)):
            report.findings.add(report.books.enter(case))
        report.findings.add(report.books.check_totals())
        report.findings.add(check_sagas(fetch.sagas(connections["orders"])))
        report.outboxes = fetch.outboxes(connections)
        report.findings.add(check_outboxes(report.outboxes))
        report.findings.add(_check_references(connections))
    return report


def _check_units(report: Report, inventory: Connection, products: Collection[str]) -> None:
    sales, stocks, pools = fetch.sales(inventory), fetch.stocks(inventory), fetch.pools(inventory)
    customer_units = fetch.customer_units(inventory)
    if products:
        sales = [sale for sale in sales if sale.product_id in products]
        stocks = [stock for stock in stocks if stock.product_id in products]
        mine = {sale.id for sale in sales}
        customer_units = [row for row in customer_units if row.sale_id in mine]
        pools = Pools(
            {id_: units for id_, units in pools.sales.items() if id_ in mine},
            {id_: units for id_, units in pools.stock.items() if id_ in products},
        )
    report.sales, report.stocks = sales, stocks
    report.findings.add(check_sales(sales, pools))
    report.findings.add(check_stock(stocks, pools))
    report.findings.add(check_units(stocks, sales))
    report.findings.add(check_limits(customer_units))
    sales_of: dict[str, list[Sale]] = {}
    for sale in sales:
        sales_of.setdefault(sale.product_id, []).append(sale)
    for stock in stocks:
        report.units.add(stock, sales_of.get(stock.product_id, []))


def concerns(case: Case, products: Collection[str]) -> bool:
    """Whether the order or its reservation has a line with one of these products."""
    lines = (*(case.order.lines if case.order else ()), *(case.reservation.lines if case.reservation else ()))
    return any(product in products for product, _, _ in lines)


def _check_references(connections: dict[str, Connection]) -> Iterator[Finding]:
    """Products and customers of orders exist in catalog and identity."""
    orders = connections["orders"]
    ids = fetch.products_of_orders(orders)
    unknown = sorted(set(ids) - fetch.known_products(connections["catalog"], ids))
    yield from _unknown("product", unknown)
    customers = missing(fetch.customers_of_orders(orders), fetch.users(connections["identity"]))
    yield from _unknown("customer", customers)


def _unknown(what: str, ids: Iterable[str]) -> Iterator[Finding]:
    for id_ in ids:
        text = f"orders refer to {what} {id_}, which does not exist"
        yield Finding(Invariant.REFERENCES, (id_,), text, warning=True)
