"""An audit's report as lines to read."""

from collections.abc import Iterator

from deploy.audit.audit import Report
from deploy.audit.findings import MEANING, Invariant

FINE, WRONG, ODD = "✓", "✗", "!"
_SHOWN_MOST = 10


def mark(report: Report, invariant: Invariant) -> str:
    """How the invariant fares, in one sign."""
    found = report.of(invariant)
    if any(not finding.warning for finding in found):
        return WRONG
    return ODD if found else FINE


def lines(report: Report) -> Iterator[str]:
    """The whole report: a line for each invariant, its findings under it, and the verdict last."""
    for invariant in Invariant:
        yield f"{mark(report, invariant)} {invariant:<7} {numbers(report, invariant)}"
        found = report.of(invariant)
        if found:
            yield f"    must hold: {MEANING[invariant]}"
        for finding in found[:_SHOWN_MOST]:
            yield f"    {finding.text}"
        if len(found) > _SHOWN_MOST:
            yield f"    … and {len(found) - _SHOWN_MOST:,} more"
    if report.books.in_flight_count:
        some = ", ".join(report.books.in_flight[:3])
        yield f"  in flight: {report.books.in_flight_count:,} orders are still under way, not judged ({some}, …)"
    yield f"  read in {report.seconds:.1f} s, {report.passes} time{'s' * (report.passes > 1)}"
    yield verdict(report)


def verdict(report: Report) -> str:
    """One line: does it add up?"""
    if report.adds_up:
        return "IT ADDS UP"
    broken = sorted({str(finding.invariant) for finding in report.wrong})
    return f"IT DOES NOT ADD UP: {', '.join(broken)} ({len(report.wrong):,} findings)"


def numbers(report: Report, invariant: Invariant) -> str:
    """What was compared."""
    books = report.books
    if invariant is Invariant.SALES:
        held, sold = sum(sale.held for sale in report.sales), sum(sale.sold for sale in report.sales)
        return f"{len(report.sales):,} sales: {held:,} held, {sold:,} sold, as reserved"
    if invariant is Invariant.STOCK:
        return f"{len(report.stocks):,} products: stock is the sum of its ledger"
    if invariant is Invariant.UNITS:
        return str(report.units)
    if invariant is Invariant.ORDERS:
        return f"{books.paid:,} paid orders, {books.confirmed:,} confirmed reservations"
    if invariant is Invariant.MONEY:
        return money(report)
    if invariant is Invariant.LIMITS:
        return "limits per customer" if report.of(invariant) else "no customer above a sale's limit"
    if invariant is Invariant.SAGAS:
        return f"{books.in_flight_count:,} orders under way, {len(report.of(invariant)):,} stuck"
    if invariant is Invariant.OUTBOX:
        return f"{sum(outbox.waiting for outbox in report.outboxes):,} events wait to be told"
    return "orders' products and customers exist"


def money(report: Report) -> str:
    """The totals, per currency."""
    books = report.books
    whose = "captured" if books.with_ledger else "captured, by our own word (this provider has no ledger to read),"
    sums = [
        f"{currency} {amount(books.captured[currency])} {whose} - {amount(books.given_back[currency])} refunded,"
        f" paid orders {amount(books.ordered[currency])} - {amount(books.refunded[currency])}"
        for currency in sorted(books.captured.keys() | books.ordered.keys())
    ]
    return "; ".join(sums) or "no money has moved"


def amount(minor: int) -> str:
    """Minor units, as the provider counts them."""
    return f"{minor:,}"
