"""Formats the report of an audit as lines for people."""

from collections.abc import Iterator

from deploy.audit.audit import Report
from deploy.audit.checks.all_checks import CHECKS
from deploy.audit.findings import MEANING, Invariant

FINE, WRONG, WARNING = "✓", "✗", "!"
_SHOWN_MOST = 10


def mark(report: Report, invariant: Invariant) -> str:
    """The sign of an invariant: holds, broken, or only warnings."""
    found = report.of(invariant)
    if any(not finding.warning for finding in found):
        return WRONG
    return WARNING if found else FINE


def lines(report: Report) -> Iterator[str]:
    """The report: a line for each invariant, with its findings, and the verdict as the last line."""
    for invariant in Invariant:
        yield f"{mark(report, invariant)} {invariant:<10} {numbers(report, invariant)}"
        found = report.of(invariant)
        if found:
            yield f"    must hold: {MEANING[invariant]}"
        for finding in found[:_SHOWN_MOST]:
            yield f"    [{finding.check.name}] {finding.text}"
        for repair in dict.fromkeys(finding.repair for finding in found[:_SHOWN_MOST]):
            yield f"    repair: {repair}"
        if len(found) > _SHOWN_MOST:
            yield f"    … and {len(found) - _SHOWN_MOST:,} more"
    if report.books.in_flight_count:
        some = ", ".join(report.books.in_flight[:3]) + (", …" if report.books.in_flight_count > 3 else "")
        yield f"  in progress, not checked: {count(report.books.in_flight_count, 'order')} or hold ({some})"
    yield f"  read in {report.seconds:.1f} s, {count(report.passes, 'time')}"
    yield verdict(report)


def list_checks() -> Iterator[str]:
    """Every check: its name, the condition, and what repairs a finding."""
    for invariant in Invariant:
        yield f"{invariant}: {MEANING[invariant]}"
        for check in CHECKS:
            if check.invariant == invariant:
                yield f"  {check.name:<24} {check.means}"
                yield f"  {'':<24} repair: {check.repair.format(id='ID', check=check.name)}"


def verdict(report: Report) -> str:
    """One line: does it add up?"""
    if report.adds_up:
        return "IT ADDS UP"
    broken = sorted({str(finding.invariant) for finding in report.wrong})
    return f"IT DOES NOT ADD UP: {', '.join(broken)} ({count(len(report.wrong), 'finding')})"


def numbers(report: Report, invariant: Invariant) -> str:
    """The numbers that were compared."""
    books = report.books
    if invariant is Invariant.SALES:
        held, sold = sum(sale.held for sale in report.sales), sum(sale.sold for sale in report.sales)
        return f"{count(len(report.sales), 'sale')}: {held:,} held, {sold:,} sold, as in their reservations"
    if invariant is Invariant.STOCK:
        return f"{count(len(report.stocks), 'product')}: on hand is the sum of the movements"
    if invariant is Invariant.UNITS:
        return str(report.units)
    if invariant is Invariant.ORDERS:
        return f"{count(books.paid, 'paid order')}, {count(books.confirmed, 'confirmed reservation')}"
    if invariant is Invariant.MONEY:
        return money(report)
    if invariant is Invariant.LIMITS:
        return "customer limits" if report.of(invariant) else "no customer is above a sale's limit"
    if invariant is Invariant.SAGAS:
        return f"{count(books.in_flight_count, 'order')} in progress, {len(report.of(invariant)):,} stuck"
    if invariant is Invariant.EVENTS:
        return f"{count(sum(outbox.waiting for outbox in report.outboxes), 'event')} not published yet"
    return MEANING[invariant]


def money(report: Report) -> str:
    """The totals, per currency."""
    books = report.books
    whose = "captured" if books.with_ledger else "captured, as in payments (the provider has no ledger to read),"
    sums = [
        f"{currency} {amount(books.captured[currency])} {whose} - {amount(books.provider_refunds[currency])} refunded,"
        f" paid orders {amount(books.ordered[currency])} - {amount(books.refunded[currency])}"
        for currency in sorted(books.captured.keys() | books.ordered.keys())
    ]
    return "; ".join(sums) or "no money has moved"


def amount(minor: int) -> str:
    """An amount in minor units, as the provider counts them."""
    return f"{minor:,} minor units"


def count(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is 1."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
