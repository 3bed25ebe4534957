"""Rows about paid orders: the rate, the cost of one, the cost of watchers, and the rivals.

They are measured in rounds: E, orders, orders while a thousand clients watch, and each rival. Every ratio is taken
within a round, and the median round counts, because the machine's other load varies.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.client import Json
from tests.bench.load.watchers import Job as WatchJob
from tests.bench.load.watchers import watching
from tests.bench.measure import order_costs
from tests.bench.measure.jobs import Measured, Pids, cpu_seconds, cpu_us_since, load, print_line, wait_until_idle
from tests.bench.mesh import Baseline
from tests.bench.report import Verdict, against_e, against_rival, against_unwatched, columns, median_pair
from tests.bench.rivals.rival import Rival
from tests.bench.shop import PRICE, Shop

PAID, WATCHED = "order paid", "order paid, watched"
OF_E = 0.12
WATCHED_SHARE = 0.9
TRANSACTIONS_MAX = 3
_CUSTOMERS = 64


@dataclass(frozen=True)
class PayingPlan:
    """How much is measured."""

    orders: int = 3_000
    """Per measurement: several seconds of work, so that the wait for the last order weighs little."""
    rounds: int = 5
    connections: int = 256
    watchers: int = 1_000


@dataclass(frozen=True)
class Unwatched:
    """Measurements of one round without watchers, right after each other."""

    e: Measured
    paid: Measured
    rivals: Sequence[Measured]


@dataclass(frozen=True)
class Round:
    """One round: the measurements without watchers, and the one with them right before or after."""

    unwatched: Unwatched
    watched: Measured


class PayingRows:
    """Measures paid orders in rounds."""

    def __init__(self, e: Baseline, shop: Shop, pids: Pids, plan: PayingPlan) -> None:
        self._e, self._shop, self.pids, self._plan = e, shop, pids, plan
        self.watched_orders = list[str]()
        """Orders that wait for their payment while clients watch them; they are never paid."""

    async def measure(self, rivals: Sequence[Rival]) -> list[Verdict]:
        """Measure all rounds."""
        plan, shop = self._plan, self._shop
        for rival in rivals:
            await rival.warm_up()
        await self.pay(PAID)
        transactions = await self._count()
        print_line(f"placing {plan.watchers:,} orders that wait for their payment")
        tokens = await shop.tokens(plan.watchers)
        self.watched_orders = await shop.pending(tokens)
        watchers = WatchJob(shop.site.ports.gateway, [f"/v1/orders/{id_}:watch" for id_ in self.watched_orders], tokens)
        return [*self._verdicts(await self._rounds(watchers, rivals), rivals), transactions]

    async def _rounds(self, watchers: WatchJob, rivals: Sequence[Rival]) -> list[Round]:
        """Measure all rounds; every other one begins with the watched part, so that streams open half as often."""
        rounds = list[Round]()
        while len(rounds) < self._plan.rounds:
            unwatched = await self._unwatched(rivals)
            async with watching(watchers):
                rounds.append(Round(unwatched, await self.pay(WATCHED)))
                if len(rounds) == self._plan.rounds:
                    break
                watched = await self.pay(WATCHED)
            rounds.append(Round(await self._unwatched(rivals), watched))
        return rounds

    async def _unwatched(self, rivals: Sequence[Rival]) -> Unwatched:
        await wait_until_idle(self.pids)
        e = await self._e.measure(connections=self._plan.connections, requests=self._plan.orders)
        paid = await self.pay(PAID)
        if rivals:
            await wait_until_idle(self.pids)
        return Unwatched(e, paid, [await rival.measure() for rival in rivals])

    def _verdicts(self, rounds: Sequence[Round], rivals: Sequence[Rival]) -> list[Verdict]:
        others = Counter[str]()
        for each in rounds:
            others.update(each.unwatched.paid.others)
            others.update(each.watched.others)
        row, e = median_pair([(each.unwatched.paid, each.unwatched.e) for each in rounds])
        compared, median_rivals = [], []
        for number, rival in enumerate(rivals):
            ours, theirs = median_pair([(each.unwatched.paid, each.unwatched.rivals[number]) for each in rounds])
            compared.append(against_rival(ours, theirs, rival.spec.bar))
            median_rivals.append(theirs)
        for line in columns("CPU µs per order", {each.name: each for each in (row, *median_rivals)}):
            print_line(line)
        watched, alone = median_pair([(each.watched, each.unwatched.paid) for each in rounds])
        return [
            against_e(row, e, OF_E, others),
            *compared,
            against_unwatched(watched, alone, WATCHED_SHARE, f"{self._plan.watchers:,} streams"),
        ]

    async def _count(self) -> Verdict:
        """Count the inner costs of an order, and bound the transactions in orders' database."""
        before = await order_costs.read(self._shop.site)
        row = await self.pay("order paid, counted")
        costs, orders = await order_costs.read(self._shop.site) - before, row.result.answers["200"]
        for line in order_costs.per_order(costs, orders):
            print_line(line)
        each = costs.transactions["orders"] / orders
        statements, calls = costs.statements["orders"] / orders, costs.calls.total() / orders
        more = f"{statements:.2f} statements; {calls:.2f} calls, to all services together"
        bar = f"at most {TRANSACTIONS_MAX}"
        return Verdict(
            "transactions in orders' database, a paid order", f"{each:.2f}", bar, each <= TRANSACTIONS_MAX, more
        )

    async def pay(self, name: str, price: Json = PRICE) -> Measured:
        """Measure orders from the first request until the last one is paid."""
        shop, plan = self._shop, self._plan
        sale = await shop.sale(price=price)
        job = shop.job(sale, tokens=await shop.tokens(_CUSTOMERS), connections=plan.connections, requests=plan.orders)
        earlier, before = await shop.unsettled(), cpu_seconds(self.pids)
        result = await load(job)
        result.seconds += await shop.settled(but=earlier)
        sold = (await shop.look(sale))["sold"]
        if sold != result.answers.get("200"):
            result.answers["placed, but not paid"] = result.answers.get("200", 0) - sold
        row = Measured(name, plan.connections, result, "200", cpu_us_since(before, self.pids, result, "200"))
        print_line(str(row))
        return row
