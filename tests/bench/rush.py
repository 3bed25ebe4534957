"""A rush: far more attempts than units. Afterwards every answer, every row and every statement is accounted for."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.bench import books, statements
from tests.bench.load import LOST, SILENT, UNSENT
from tests.bench.measure import Pids, measure, say
from tests.bench.report import Verdict, counted
from tests.bench.shop import Shop
from tests.bench.statements import Reading

STATEMENTS_PER_UNIT = 2
# For those who find out that nothing is left; a rush that is ten times as long has no more of them.
STATEMENTS_BESIDE = 100
BACKGROUND_MORE = 0.2
_PLACED, _REFUSED = "200", ("400 SOLD_OUT", "400 CUSTOMER_LIMIT")


@dataclass(frozen=True)
class Plan:
    """Who comes, and for what."""

    units: int = 1_000
    customers: int = 10_000
    attempts_each: int = 10
    limit: int = 1
    """Units a customer may have; 0 for any number."""
    connections: int = 256
    idle_seconds: float = 15.0
    """For how long to look what background work does, for comparison."""

    @property
    def attempts(self) -> int:
        return self.customers * self.attempts_each

    @property
    def wanted(self) -> int:
        """How many units must be held in the end, neither fewer nor more."""
        return min(self.units, self.customers * self.limit) if self.limit else self.units


def answer_problems(plan: Plan, answers: Mapping[str, int]) -> list[str]:
    """What is wrong with the answers."""
    wrong = []
    if sum(answers.values()) != plan.attempts:
        wrong.append(f"{sum(answers.values()):,} of {plan.attempts:,} attempts are accounted for")
    for kind, count in answers.items():
        if kind in (LOST, SILENT, UNSENT) or kind.startswith("5"):
            wrong.append(f"{count:,} × {kind}")
        elif kind not in (_PLACED, *_REFUSED):
            wrong.append(f"{count:,} × {kind}, which is no answer to give in a rush")
    if (placed := answers.get(_PLACED, 0)) != plan.wanted:
        wrong.append(f"{placed:,} were told that they have a unit, not {plan.wanted:,}")
    return wrong


def statement_verdicts(plan: Plan, spent: Reading, idle: Reading) -> list[Verdict]:
    """Holds inventory's statements to so many a unit, and those of its background work to what it does anyway."""
    most = STATEMENTS_PER_UNIT * plan.wanted + STATEMENTS_BESIDE
    rate, usual = spent.background_rate, idle.background_rate
    a_unit, server = spent.for_calls / plan.wanted, f"the server counts {spent.transactions:,} transactions in all"
    return [
        Verdict(
            "rush: inventory's statements for calls",
            f"{spent.for_calls:,.0f}",
            f"at most {STATEMENTS_PER_UNIT} a unit + {STATEMENTS_BESIDE}",
            spent.for_calls <= most,
            f"{a_unit:.2f} a unit; {server}",
        ),
        Verdict(
            "rush: those of its background work",
            f"{rate:.1f}/s",
            f"as when idle, {usual:.1f}/s",
            rate <= usual * (1 + BACKGROUND_MORE),
            f"{spent.in_background:,.0f} in {spent.seconds:.0f} s",
        ),
    ]


def _all_right(name: str, wrong: Sequence[str], more: str) -> Verdict:
    return Verdict(name, "WRONG" if wrong else "right", "all right", not wrong, "; ".join((*wrong, more)))


async def rush(shop: Shop, pids: Pids, plan: Plan) -> list[Verdict]:
    """Runs the rush; looks at everything afterwards."""
    say(f"signing in {plan.customers:,} customers")
    tokens, sale = await shop.tokens(plan.customers), await shop.sale(plan.units, limit=plan.limit)
    job = shop.job(
        sale, tokens=tokens, connections=plan.connections, requests=plan.attempts, shuffled=True, progress="attempts"
    )
    before = await statements.read(shop.site)
    row = await measure("rush", job, pids, expects="")
    spent = await statements.read(shop.site) - before
    idle = await statements.idle(shop.site, plan.idle_seconds)
    sold = await asyncio.to_thread(books.read, shop.site, sale["id"])

    answers, name = (
        row.result.answers,
        f"rush: {plan.attempts:,} attempts of {plan.customers:,} on {plan.units:,} units",
    )
    told = f"{sum(answers.values()) / row.result.seconds:,.0f}/s: {counted(answers)}"
    wrong = books.problems(sold, allocation=plan.units, wanted=plan.wanted, limit=plan.limit)
    return [
        _all_right(f"{name}, answers", answer_problems(plan, answers), told),
        _all_right(f"{name}, books", wrong, str(sold)),
        *statement_verdicts(plan, spent, idle),
    ]
