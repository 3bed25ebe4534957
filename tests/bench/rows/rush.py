"""A rush: far more attempts than units. Every answer, every record and every statement is checked afterwards."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.bench.load.generator import LOST, SILENT, UNSENT
from tests.bench.measure import sale_records, statements
from tests.bench.measure.jobs import Pids, measure, print_line
from tests.bench.measure.statements import Reading
from tests.bench.report import Verdict, count_list
from tests.bench.shop import Shop

STATEMENTS_PER_UNIT = 2
# An allowance for the refusals that reach PostgreSQL; a rush ten times as long needs no more of them.
STATEMENTS_EXTRA = 100
BACKGROUND_GROWTH_MAX = 0.2
GATE_OFF = "rush, gate off"
_PLACED, _REFUSED = "200", ("400 SOLD_OUT", "400 CUSTOMER_LIMIT")


@dataclass(frozen=True)
class RushPlan:
    """The size of a rush."""

    units: int = 1_000
    customers: int = 10_000
    attempts_each: int = 10
    limit: int = 1
    """Units that a customer may have; 0 for no limit."""
    connections: int = 256
    idle_seconds: float = 15.0
    """How long background work is counted without calls, for comparison."""

    @property
    def attempts(self) -> int:
        return self.customers * self.attempts_each

    @property
    def wanted(self) -> int:
        """The exact number of units that must be held at the end."""
        return min(self.units, self.customers * self.limit) if self.limit else self.units


async def rush(shop: Shop, pids: Pids, plan: RushPlan) -> list[Verdict]:
    """Run the rush and check its answers, its records and its statements."""
    spent, verdicts = await _run("rush", shop, pids, plan)
    idle = await statements.idle(shop.site, plan.idle_seconds)
    return [*verdicts, *statement_verdicts(plan, spent, idle)]


async def rush_gate_off(shop: Shop, pids: Pids, plan: RushPlan) -> list[Verdict]:
    """Run the same rush on a mesh whose inventory runs without its gate; its statements are only reported."""
    spent, verdicts = await _run(GATE_OFF, shop, pids, plan)
    each = f"{spent.for_calls / plan.wanted:.2f} a unit"
    return [*verdicts, Verdict(f"{GATE_OFF}: inventory's statements for calls", f"{spent.for_calls:,.0f}", more=each)]


def answer_problems(plan: RushPlan, answers: Mapping[str, int]) -> list[str]:
    """Return what is wrong with the answers."""
    wrong = []
    if sum(answers.values()) != plan.attempts:
        wrong.append(f"{sum(answers.values()):,} of {plan.attempts:,} attempts are accounted for")
    for kind, count in answers.items():
        if kind in (LOST, SILENT, UNSENT) or kind.startswith("5"):
            wrong.append(f"{count:,} × {kind}")
        elif kind not in (_PLACED, *_REFUSED):
            wrong.append(f"{count:,} × {kind}, which a rush must not answer")
    if (placed := answers.get(_PLACED, 0)) != plan.wanted:
        wrong.append(f"{placed:,} attempts were answered with an order, not {plan.wanted:,}")
    return wrong


def statement_verdicts(plan: RushPlan, spent: Reading, idle: Reading) -> list[Verdict]:
    """Bound inventory's statements by the units, and its background work by that of an idle mesh."""
    statements_max = STATEMENTS_PER_UNIT * plan.wanted + STATEMENTS_EXTRA
    rate, usual = spent.background_rate, idle.background_rate
    each, server = spent.for_calls / plan.wanted, f"the server counts {spent.transactions:,} transactions in all"
    return [
        Verdict(
            "rush: inventory's statements for calls",
            f"{spent.for_calls:,.0f}",
            f"at most {STATEMENTS_PER_UNIT} a unit + {STATEMENTS_EXTRA}",
            spent.for_calls <= statements_max,
            f"{each:.2f} a unit; {server}",
        ),
        Verdict(
            "rush: inventory's statements in the background",
            f"{rate:.1f}/s",
            f"as when idle, {usual:.1f}/s",
            rate <= usual * (1 + BACKGROUND_GROWTH_MAX),
            f"{spent.in_background:,.0f} in {spent.seconds:.0f} s",
        ),
    ]


async def _run(name: str, shop: Shop, pids: Pids, plan: RushPlan) -> tuple[Reading, list[Verdict]]:
    print_line(f"signing in {plan.customers:,} customers")
    tokens, sale = await shop.tokens(plan.customers), await shop.sale(plan.units, limit=plan.limit)
    job = shop.job(
        sale, tokens=tokens, connections=plan.connections, requests=plan.attempts, shuffled=True, progress="attempts"
    )
    before = await statements.read(shop.site)
    row = await measure(name, job, pids, expects="")
    spent = await statements.read(shop.site) - before
    records = await asyncio.to_thread(sale_records.read, shop.site, sale["id"])

    title = f"{name}: {plan.attempts:,} attempts of {plan.customers:,} on {plan.units:,} units"
    answers = row.result.answers
    rate, cpu = f"{sum(answers.values()) / row.result.seconds:,.0f}/s", f"{row.total_us:,.0f} µs of CPU an attempt"
    inconsistent = sale_records.problems(records, allocation=plan.units, wanted=plan.wanted, limit=plan.limit)
    return spent, [
        _correct(f"{title}, answers", answer_problems(plan, answers), f"{rate}, {cpu}: {count_list(answers)}"),
        _correct(f"{title}, records", inconsistent, str(records)),
    ]  # fmt: skip


def _correct(name: str, problems: Sequence[str], more: str) -> Verdict:
    return Verdict(name, "WRONG" if problems else "correct", "correct", not problems, "; ".join((*problems, more)))
