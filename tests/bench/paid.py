"""Whole paid orders: how many a second, what one costs, who watches, and what others would run its steps on.

They are measured in rounds: E, orders, orders while a thousand watch, and each rival. Every ratio is taken within a
round, and that of the middle round counts: this machine is never quiet.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench import costs
from tests.bench.measure import Measured, Pids, cpu_seconds, load, rested, say, spent
from tests.bench.mesh import Yardstick
from tests.bench.report import Verdict, against_e, beside, columns, middle, shared
from tests.bench.rivals import Rival
from tests.bench.shop import Shop
from tests.bench.watchers import Job as Watching
from tests.bench.watchers import watching

PAID, WATCHED = "order paid", "order paid, watched"
OF_E = 0.12
WATCHED_SHARE = 0.9
TRANSACTIONS_MOST = 3
_CUSTOMERS = 64


@dataclass(frozen=True)
class Plan:
    """How much is done."""

    orders: int = 3_000
    """Per measurement: some seconds' worth, so that the last one's way to its end weighs little."""
    rounds: int = 5
    connections: int = 256
    watchers: int = 1_000


@dataclass(frozen=True)
class Alone:
    """What was measured right after each other while nobody watched."""

    e: Measured
    paid: Measured
    rivals: Sequence[Measured]


@dataclass(frozen=True)
class Round:
    """The same, and what was measured right before or after it while many watched."""

    alone: Alone
    watched: Measured


class Till:
    """Where orders are paid."""

    def __init__(self, e: Yardstick, shop: Shop, pids: Pids, plan: Plan) -> None:
        self._e, self._shop, self._pids, self._plan = e, shop, pids, plan
        self.waiting = list[str]()
        """The orders that are watched, none of which is ever paid."""

    async def measure(self, rivals: Sequence[Rival]) -> list[Verdict]:
        """All rounds."""
        plan, shop = self._plan, self._shop
        for rival in rivals:
            await rival.warm_up()
        await self._pay(PAID)
        transactions = await self._count()
        say(f"placing {plan.watchers:,} orders that wait for their payment")
        tokens = await shop.tokens(plan.watchers)
        self.waiting = await shop.pending(tokens)
        audience = Watching(shop.site.ports.gateway, [f"/v1/orders/{id_}:watch" for id_ in self.waiting], tokens)
        return [*self._verdicts(await self._rounds(audience, rivals), rivals), transactions]

    async def _rounds(self, audience: Watching, rivals: Sequence[Rival]) -> list[Round]:
        """All rounds; every other one begins with those who watch, for whom it is half the opening of streams."""
        rounds = list[Round]()
        while len(rounds) < self._plan.rounds:
            alone = await self._alone(rivals)
            async with watching(audience):
                rounds.append(Round(alone, await self._pay(WATCHED)))
                if len(rounds) == self._plan.rounds:
                    break
                watched = await self._pay(WATCHED)
            rounds.append(Round(await self._alone(rivals), watched))
        return rounds

    async def _alone(self, rivals: Sequence[Rival]) -> Alone:
        await rested(self._pids)
        e = await self._e.measure(connections=self._plan.connections, requests=self._plan.orders)
        paid = await self._pay(PAID)
        if rivals:
            await rested(self._pids)
        return Alone(e, paid, [await rival.measure() for rival in rivals])

    def _verdicts(self, rounds: Sequence[Round], rivals: Sequence[Rival]) -> list[Verdict]:
        others = Counter[str]()
        for each in rounds:
            others.update(each.alone.paid.others)
            others.update(each.watched.others)
        row, e = middle([(each.alone.paid, each.alone.e) for each in rounds])
        beaten, best = [], []
        for number, rival in enumerate(rivals):
            ours, theirs = middle([(each.alone.paid, each.alone.rivals[number]) for each in rounds])
            beaten.append(beside(ours, theirs, rival.kind.bar))
            best.append(theirs)
        for line in columns("CPU µs per order", {each.name: each for each in (row, *best)}):
            say(line)
        watched, alone = middle([(each.watched, each.alone.paid) for each in rounds])
        return [
            against_e(row, e, OF_E, others),
            *beaten,
            shared(watched, alone, WATCHED_SHARE, f"{self._plan.watchers:,} streams"),
        ]

    async def _count(self) -> Verdict:
        """What orders cost inside, and whether orders' database has as few transactions as it should."""
        before = await costs.read(self._shop.site)
        row = await self._pay("order paid, counted")
        used, orders = await costs.read(self._shop.site) - before, row.result.answers["200"]
        for line in costs.per_order(used, orders):
            say(line)
        each = used.transactions["orders"] / orders
        statements, calls = used.statements["orders"] / orders, used.calls.total() / orders
        more = f"{statements:.2f} statements; {calls:.2f} calls, to all services together"
        bar = f"at most {TRANSACTIONS_MOST}"
        return Verdict(
            "transactions in orders' database, a paid order", f"{each:.2f}", bar, each <= TRANSACTIONS_MOST, more
        )

    async def _pay(self, name: str) -> Measured:
        """Orders, from the first request until the last is paid."""
        shop, plan = self._shop, self._plan
        sale = await shop.sale()
        job = shop.job(sale, tokens=await shop.tokens(_CUSTOMERS), connections=plan.connections, requests=plan.orders)
        earlier, before = await shop.unsettled(), cpu_seconds(self._pids)
        result = await load(job)
        result.seconds += await shop.settled(but=earlier)
        sold = (await shop.look(sale))["sold"]
        if sold != result.answers.get("200"):
            result.answers["placed, but not paid"] = result.answers.get("200", 0) - sold
        row = Measured(name, plan.connections, result, "200", spent(before, self._pids, result, "200"))
        say(str(row))
        return row
