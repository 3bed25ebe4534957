"""Runs an audit: reads and checks, and reads again as long as something is wrong or in progress."""

import itertools
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from deploy.audit.books import Books
from deploy.audit.checks import events
from deploy.audit.checks.all_checks import run_statements
from deploy.audit.checks.references import check_references
from deploy.audit.checks.units import (
    Account,
    check_limits,
    check_outboxes,
    check_sales,
    check_stock,
    check_units,
)
from deploy.audit.findings import Finding, Findings, Invariant
from deploy.audit.reading import fetch
from deploy.audit.reading.merge import cases
from deploy.audit.reading.rows import Case, Outbox, Pools, Sale, Stock
from deploy.audit.reading.sources import Inputs, Sources

_PAUSE_SECONDS = 1.0
_PROGRESS_ORDERS = 10_000

Progress = Callable[[str], None]
"""Receives a line for people about what is being read."""


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
    progress: Progress = lambda _: None,
) -> Report:
    """Checks everything, or only what concerns `products`. Raises `Unreachable`.

    Five databases and a provider cannot be read at the same instant. So while something is wrong or in progress, all is
    read again for up to `patience_seconds`, and once at least, unless that is 0. Only what is wrong in two consecutive
    readings is a finding.
    """
    began = time.monotonic()
    report = _read(sources, products, progress)
    suspects = {finding.key for finding in report.wrong}
    passes = 1
    while (suspects or report.books.ending_soon) and (
        time.monotonic() - began < patience_seconds or (suspects and patience_seconds and passes == 1)
    ):
        sleep(_PAUSE_SECONDS)
        report = _read(sources, products, progress)
        passes += 1
        seen = {finding.key for finding in report.wrong}
        report.findings.kept = [f for f in report.findings.kept if f.warning or f.key in suspects]
        suspects = seen
    report.passes, report.seconds = passes, time.monotonic() - began
    return report


def _read(sources: Sources, products: Collection[str], progress: Progress) -> Report:
    # Events are read as a whole, so for some products that would take longer than all else.
    with sources.opened(with_events=not products) as inputs:
        return examine(inputs, products=products, progress=progress)


def examine(inputs: Inputs, *, products: Collection[str] = (), progress: Progress = lambda _: None) -> Report:
    """Checks one reading."""
    report = Report(books=Books(with_ledger=inputs.intents is not None))
    concerned = _check_units(report, inputs, products)
    connections = inputs.connections
    together = cases(
        fetch.orders(connections["orders"]),
        fetch.reservations(connections["inventory"]),
        fetch.payments(connections["payments"]),
        iter(inputs.intents or ()),
    )
    for number, case in enumerate(together):
        if number and number % _PROGRESS_ORDERS == 0:
            progress(f"{number:,} orders")
        if products:
            if not concerns(case, products):
                continue
            concerned.add(case.id)
        report.findings.add(report.books.enter(case))
    report.findings.add(report.books.check_totals())
    progress("statements")
    findings = itertools.chain(run_statements(connections), check_references(connections), _gate(inputs))
    report.findings.add(finding for finding in findings if not products or finding.ids[0] in concerned)
    report.outboxes = fetch.outboxes(connections)
    report.findings.add(check_outboxes(report.outboxes))
    if inputs.broker:
        progress("events")
        report.findings.add(events.check_broker(inputs.broker, connections))
    return report


def _gate(inputs: Inputs) -> Iterator[Finding]:
    if inputs.counters is not None:
        yield from events.check_gate(inputs.counters, events.quiet_sales(inputs.connections["inventory"]))


def _check_units(report: Report, inputs: Inputs, products: Collection[str]) -> set[str]:
    """Checks counters; returns the products and sales that the audit is about."""
    inventory = inputs.connections["inventory"]
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
    return {*products, *(sale.id for sale in sales)}


def concerns(case: Case, products: Collection[str]) -> bool:
    """Whether the order or its reservation has a line with one of these products."""
    lines = (*(case.order.lines if case.order else ()), *(case.reservation.lines if case.reservation else ()))
    return any(product in products for product, _, _ in lines)
