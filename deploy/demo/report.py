"""The report of a demo: units sold, refusals by reason, speed, and whether all adds up."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from deploy.audit import Report as Audit
from deploy.audit.show import count
from deploy.demo.options import PER_CUSTOMER, Options
from deploy.demo.stage import CURRENCY, SALE_PRICE_MINOR
from deploy.demo.tally import Tally, percentile

FINE, WRONG = "✓", "✗"
_FINDINGS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Check:
    """One condition that must hold."""

    name: str
    holds: bool
    numbers: str
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All results of a demo."""

    options: Options
    tally: Tally
    sale: dict[str, Any]
    stock: dict[str, Any]
    own: Audit
    """The audit of the demo's product."""
    all: Audit
    """The audit of all data."""
    retries: Counter[str] = field(default_factory=Counter)

    @property
    def checks(self) -> list[Check]:
        return [self._units(), self._money(), self._orders(), self._answers(), self._limit(), self._everything()]

    @property
    def broken(self) -> list[Check]:
        return [check for check in self.checks if not check.holds]

    def _units(self) -> Check:
        on_hand, sale = self.stock["onHand"], self.sale
        found = on_hand + sale["remaining"] + sale["held"] + sale["sold"]
        numbers = (
            f"{on_hand:,} on hand + {sale['remaining']:,} on sale + {sale['held']:,} held + {sale['sold']:,} sold"
            f" = {found:,} of {self.options.units:,}"
        )
        return Check("units", found == self.options.units == self.own.units.put_in, numbers)

    def _money(self) -> Check:
        books = self.own.books
        has = books.captured[CURRENCY] - books.provider_refunds[CURRENCY]
        due = self.sale["sold"] * SALE_PRICE_MINOR
        paid = books.ordered[CURRENCY] - books.refunded[CURRENCY]
        numbers = (
            f"{_money(has)} captured = {books.paid} paid orders = {self.sale['sold']} x {_money(SALE_PRICE_MINOR)}"
        )
        return Check("money", has == due == paid, numbers)

    def _orders(self) -> Check:
        books = self.own.books
        holds = books.paid == books.confirmed == self.sale["sold"] and self.own.adds_up
        numbers = f"{books.paid} paid orders have {books.confirmed} confirmed reservations"
        if books.in_flight_count:
            numbers += f"; {books.in_flight_count} still in progress"
        return Check("orders", holds, numbers, tuple(finding.text for finding in self.own.wrong))

    def _answers(self) -> Check:
        paid, sold = self.tally.paid.total(), self.sale["sold"]
        # An attempt without an answer may have bought a unit: customers then see fewer orders, never more.
        unknown = self.tally.unanswered + self.tally.pending
        numbers = f"customers saw {paid} paid orders"
        if unknown:
            numbers += f"; {unknown} attempts have no known end"
        return Check("answers", paid <= sold <= paid + unknown, numbers)

    def _limit(self) -> Check:
        most = max(self.tally.paid.values(), default=0)
        return Check("limit", most <= PER_CUSTOMER, f"no customer bought more than {most}; the limit is {PER_CUSTOMER}")

    def _everything(self) -> Check:
        books = self.all.books
        numbers = (
            f"{count(sum(books.states.values()), 'order')}, {count(len(self.all.sales), 'sale')},"
            f" {count(len(self.all.stocks), 'product')} in 5 databases and the ledger"
        )
        return Check("all data", self.all.adds_up, numbers, tuple(finding.text for finding in self.all.wrong))


def verdict(outcome: Outcome) -> str:
    """The last line of the report."""
    if not outcome.broken:
        return "IT ADDS UP"
    return f"IT DOES NOT ADD UP: {', '.join(check.name for check in outcome.broken)}"


def lines(outcome: Outcome) -> list[str]:
    """The report for people."""
    return [
        *_sold(outcome),
        *_refused(outcome),
        *_declined(outcome),
        *_speed(outcome),
        "",
        "Does it add up?",
        *_checks(outcome),
        "",
        verdict(outcome),
    ]


def _sold(outcome: Outcome) -> list[str]:
    options, tally, sold = outcome.options, outcome.tally, outcome.sale["sold"]
    found = [
        "",
        "Sold",
        f"  {sold:,} of {options.units:,} units for {_money(sold * SALE_PRICE_MINOR)} to {len(tally.paid):,} of"
        f" {options.buyers:,} buyers, from {options.attempts:,} attempts",
    ]
    if tally.second_chances:
        found.append(
            f"  {count(tally.second_chances, 'more attempt')} for units of declined cards, in"
            f" {count(tally.second_waves, 'wave')}"
        )
    if left := options.units - sold:
        found.append(f"  {left:,} not sold: {outcome.sale['remaining']:,} on sale, {outcome.sale['held']:,} held")
    return found


_MEANING = {
    "SOLD_OUT": "no unit was left",
    "CUSTOMER_LIMIT": f"had {PER_CUSTOMER} units already",
    "NO_ANSWER": "no answer for a minute",
}


def _refused(outcome: Outcome) -> list[str]:
    refused = outcome.tally.refused
    found = ["", "Refused"]
    found += [
        f"  {count:>7,}  {reason:<16} {_MEANING.get(reason, '')}".rstrip() for reason, count in refused.most_common()
    ]
    if not refused:
        found.append("  none")
    if outcome.retries:
        causes = ", ".join(f"{count:,} after {cause}" for cause, count in outcome.retries.most_common())
        found.append(f"  retried under the same request id: {causes}")
    return found


def _declined(outcome: Outcome) -> list[str]:
    tally = outcome.tally
    found = ["", "Declined"]
    found.append(f"  {tally.declined:>7,}  declined cards; each unit went back on sale")
    found += [
        f"  {count:>7,}  orders ended as {reason}"
        for reason, count in tally.ended.most_common()
        if reason != "CARD_DECLINED"
    ]
    if tally.pending:
        found.append(f"  {tally.pending:>7,}  orders have not ended yet")
    return found


def _speed(outcome: Outcome) -> list[str]:
    tally = outcome.tally
    every, placed = sorted(tally.latencies), sorted(tally.order_latencies)
    rate = outcome.options.attempts / tally.rush_seconds if tally.rush_seconds else 0.0
    found = [
        "",
        "Speed",
        f"  {rate:,.0f} attempts a second: {outcome.options.attempts:,} in {tally.rush_seconds:.1f} s"
        f" over {outcome.options.connections} connections",
    ]
    if tally.sold_out_seconds:
        per_second = outcome.options.units / tally.sold_out_seconds
        found.append(
            f"  {per_second:,.0f} orders a second, {outcome.options.units:,} in {tally.sold_out_seconds:.2f} s"
        )
    found.append(f"  all answers    p50 {_ms(every, 50)}  p99 {_ms(every, 99)}")
    found.append(f"  orders placed  p50 {_ms(placed, 50)}  p99 {_ms(placed, 99)}")
    return found


def _checks(outcome: Outcome) -> list[str]:
    found = []
    for check in outcome.checks:
        found.append(f"  {FINE if check.holds else WRONG} {check.name:<9}{check.numbers}")
        if not check.holds:
            found += [f"      {text}" for text in check.findings[:_FINDINGS_SHOWN]]
    return found


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The report for programs, with amounts in minor units and times in seconds."""
    tally, every, placed = outcome.tally, sorted(outcome.tally.latencies), sorted(outcome.tally.order_latencies)
    return {
        "options": {name: str(value) if name == "json" else value for name, value in vars(outcome.options).items()},
        "sold": outcome.sale["sold"],
        "currencyCode": CURRENCY,
        "soldMinorUnits": outcome.sale["sold"] * SALE_PRICE_MINOR,
        "placed": tally.placed,
        "paid": tally.paid.total(),
        "refused": dict(tally.refused),
        "declined": tally.declined,
        "ended": dict(tally.ended),
        "pending": tally.pending,
        "secondChances": tally.second_chances,
        "retries": dict(outcome.retries),
        "rushSeconds": tally.rush_seconds,
        "attemptsPerSecond": outcome.options.attempts / tally.rush_seconds if tally.rush_seconds else None,
        "ordersPerSecond": outcome.options.units / tally.sold_out_seconds if tally.sold_out_seconds else None,
        "latencySeconds": {"p50": percentile(every, 50), "p99": percentile(every, 99)},
        "orderLatencySeconds": {"p50": percentile(placed, 50), "p99": percentile(placed, 99)},
        "checks": [
            {"name": check.name, "holds": check.holds, "numbers": check.numbers, "findings": list(check.findings)}
            for check in outcome.checks
        ],
        "addsUp": not outcome.broken,
    }


def _money(minor: int) -> str:
    return f"{CURRENCY} {minor // 100:,}.{minor % 100:02}"


def _ms(ordered: list[float], percent: float) -> str:
    return f"{percentile(ordered, percent) * 1000:,.0f} ms"
