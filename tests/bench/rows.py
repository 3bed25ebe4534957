"""The rows that are ratios to E. Each stands beside an E measured just before it: this machine is never quiet."""

from collections import Counter
from dataclasses import dataclass, field

from tests.bench.load import Job
from tests.bench.measure import Measured, Pids, load, measure, say
from tests.bench.mesh import Yardstick
from tests.bench.report import Verdict, against_e, cheaper, middle, side_by_side
from tests.bench.shop import Shop

FEW, SOME, MANY = CONNECTIONS = (16, 64, 256)
CUSTOMERS = 64
PRODUCTS = 100
_PAIRS = 3
HOT, SPREAD, SOLD_OUT = "order placed", "order placed, spread", "sold out"
BARS = {(HOT, MANY): 0.5, (SPREAD, MANY): 0.45, (SOLD_OUT, SOME): 0.9, (SOLD_OUT, MANY): 0.9}


@dataclass
class Rows:
    """The rows of one run, as they come."""

    e: Yardstick
    requests: int
    """Per row."""
    pairs: int = _PAIRS
    verdicts: list[Verdict] = field(default_factory=list)

    async def warm_up(self) -> None:
        await load(self.e.job(connections=SOME, requests=self.requests // 2))

    async def hot(self, shop: Shop, pids: Pids) -> None:
        """Orders held and durable, all of one sale."""
        rows = []
        for connections in CONNECTIONS:
            sale = await shop.sale()
            rows.append(await self._row(HOT, shop, pids, connections, sale))
        for line in side_by_side(rows[0], rows[-1]):
            say(line)
        self.verdicts.append(cheaper(rows[0], rows[-1]))

    async def spread(self, shop: Shop, pids: Pids, products: int = PRODUCTS) -> None:
        """Orders held and durable, spread evenly over as many sales of as many products."""
        await self._row(SPREAD, shop, pids, MANY, *await shop.sales(products))

    async def sold_out(self, shop: Shop, pids: Pids) -> None:
        """The answer to those who come too late."""
        for connections in CONNECTIONS[1:]:
            sale = await shop.sale(units=1)
            await self._row(SOLD_OUT, shop, pids, connections, sale, expects="400 SOLD_OUT")

    async def _row(
        self, name: str, shop: Shop, pids: Pids, connections: int, *sales: dict[str, object], expects: str = "200"
    ) -> Measured:
        """Measures E, then the job, several times in turn; the pair whose ratio lies in the middle counts."""
        tokens = await shop.tokens(CUSTOMERS)

        def job(requests: int) -> Job:
            return shop.job(*sales, tokens=tokens, connections=connections, requests=requests)

        await load(job(max(self.requests // 5, 1)))
        pairs = []
        for _ in range(self.pairs):
            e = await self.e.measure(connections=connections, requests=self.requests)
            pairs.append((await measure(name, job(self.requests), pids, expects=expects), e))
        row, e = middle(pairs)
        others = Counter[str]()
        for each, _ in pairs:
            others.update(each.others)
        self.verdicts.append(against_e(row, e, BARS.get((name, connections)), others))
        return row
