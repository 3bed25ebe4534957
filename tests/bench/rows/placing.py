"""Rows about placing orders, as ratios to E. Each row is measured right after its own E, because load varies."""

from collections import Counter
from dataclasses import dataclass, field

from deploy.client import Json
from tests.bench.load.generator import Job
from tests.bench.measure.jobs import Measured, Pids, load, measure, print_line
from tests.bench.mesh import Baseline
from tests.bench.report import Verdict, against_e, bounded, cheaper, median_pair, side_by_side, without_gate
from tests.bench.shop import Shop

FEW, SOME, MANY = CONNECTIONS = (16, 64, 256)
CUSTOMERS = 64
PRODUCTS = 100
BACKLOG_MAX = 32
"""The bound of the row with a full backlog: an eighth of the connections."""
_PAIRS = 3
PLACED, SPREAD, SOLD_OUT = "order placed", "order placed, spread", "sold out"
BACKLOG_FULL = "backlog full"
BARS = {(PLACED, MANY): 0.5, (SPREAD, MANY): 0.45, (SOLD_OUT, SOME): 0.9, (SOLD_OUT, MANY): 0.9}


@dataclass
class PlacingRows:
    """The rows of one run, in the order in which they are measured."""

    e: Baseline
    requests: int
    """Per row."""
    pairs: int = _PAIRS
    verdicts: list[Verdict] = field(default_factory=list)

    async def warm_up(self) -> None:
        await load(self.e.job(connections=SOME, requests=self.requests // 2))

    async def one_sale(self, shop: Shop, pids: Pids) -> tuple[Measured, Measured]:
        """Orders held and durable, all of one sale; return the row with the most connections, and its E."""
        pairs = []
        for connections in CONNECTIONS:
            pairs.append(await self._add(PLACED, shop, pids, connections, await shop.sale()))
        few, many = pairs[0][0], pairs[-1][0]
        for line in side_by_side(few, many):
            print_line(line)
        self.verdicts.append(cheaper(few, many))
        return pairs[-1]

    async def spread(self, shop: Shop, pids: Pids, products: int = PRODUCTS) -> None:
        """Orders held and durable, spread evenly over `products` sales of as many products."""
        await self._add(SPREAD, shop, pids, MANY, *await shop.sales(products))

    async def sold_out(self, shop: Shop, pids: Pids) -> tuple[Measured, Measured]:
        """The sold-out answer; return the row with the most connections, and its E."""
        pairs = [
            await self._add(SOLD_OUT, shop, pids, connections, await shop.sale(units=1), expects="400 SOLD_OUT")
            for connections in CONNECTIONS[1:]
        ]
        return pairs[-1]

    async def gate_off(
        self,
        shop: Shop,
        pids: Pids,
        *,
        placed: tuple[Measured, Measured],
        sold_out: tuple[Measured, Measured],
    ) -> None:
        """Both rows once more, on a mesh whose inventory runs without its gate, beside the rows with it."""
        for name, units, expects, with_gate in (
            (PLACED, None, "200", placed),
            (SOLD_OUT, 1, "400 SOLD_OUT", sold_out),
        ):
            sale = await (shop.sale() if units is None else shop.sale(units=units))
            row, e, others = await self._measure(f"{name}, gate off", shop, pids, MANY, sale, expects=expects)
            self.verdicts.append(without_gate(row, e, with_gate, others))

    async def backlog_full(self, shop: Shop, pids: Pids) -> None:
        """Orders on a mesh whose orders service has the bound `BACKLOG_MAX`: placed, or refused with 429."""
        job = shop.job(await shop.sale(), tokens=await shop.tokens(CUSTOMERS), connections=MANY, requests=self.requests)
        self.verdicts.append(bounded(await measure(BACKLOG_FULL, job, pids, expects="")))

    async def _add(
        self, name: str, shop: Shop, pids: Pids, connections: int, *sales: Json, expects: str = "200"
    ) -> tuple[Measured, Measured]:
        row, e, others = await self._measure(name, shop, pids, connections, *sales, expects=expects)
        self.verdicts.append(against_e(row, e, BARS.get((name, connections)), others))
        return row, e

    async def _measure(
        self, name: str, shop: Shop, pids: Pids, connections: int, *sales: Json, expects: str
    ) -> tuple[Measured, Measured, Counter[str]]:
        """Measure E, then the job, `pairs` times; return the median pair and all unexpected answers."""
        tokens = await shop.tokens(CUSTOMERS)

        def job(requests: int) -> Job:
            return shop.job(*sales, tokens=tokens, connections=connections, requests=requests)

        await load(job(max(self.requests // 5, 1)))
        pairs = []
        for _ in range(self.pairs):
            e = await self.e.measure(connections=connections, requests=self.requests)
            pairs.append((await measure(name, job(self.requests), pids, expects=expects), e))
        others = Counter[str]()
        for row, _ in pairs:
            others.update(row.others)
        return *median_pair(pairs), others
