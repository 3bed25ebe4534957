"""How many SQL statements PostgreSQL saw: by a service's own count, and by the server's. A rush is inventory's."""

import asyncio
import re
from dataclasses import dataclass

import aiohttp
import psycopg

from deploy.local import Site
from deploy.local.ports import HOST

# A session of PostgreSQL's tells its numbers at most once a second, and only between two transactions.
TOLD_SECONDS = 2.0


@dataclass(frozen=True)
class Reading:
    """The counters at one moment; or, as a difference, between two."""

    seconds: float
    for_calls: float
    """Statements, BEGIN, COMMIT and ROLLBACK among them, that were sent to answer calls."""
    in_background: float
    """Those that timers send, whether anybody calls or not."""
    transactions: int
    """That were committed, as the server counts them; also those of a single statement."""

    def __sub__(self, earlier: "Reading") -> "Reading":
        return Reading(
            self.seconds - earlier.seconds,
            self.for_calls - earlier.for_calls,
            self.in_background - earlier.in_background,
            self.transactions - earlier.transactions,
        )

    @property
    def background_rate(self) -> float:
        """Statements of background work a second."""
        return self.in_background / self.seconds


async def read(site: Site) -> Reading:
    """The counters of inventory and its database."""
    await told()
    text = await metrics(site, "inventory")
    sent = dict(re.findall(r'^stampede_sql_statements_total{cause="(\w+)"} (\S+)$', text, re.MULTILINE))
    transactions, now = (await committed(site))["inventory"], asyncio.get_running_loop().time()
    return Reading(now, float(sent["call"]), float(sent["background"]), transactions)


async def told() -> None:
    """Returns when the server's sessions have told what they did before."""
    await asyncio.sleep(TOLD_SECONDS)


async def metrics(site: Site, service: str) -> str:
    """What a service tells of itself, as Prometheus reads it."""
    url = f"http://{HOST}:{site.ports.metrics(service)}/metrics"
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        return await response.text()


async def committed(site: Site) -> dict[str, int]:
    """Transactions committed so far, by database."""
    # From another database, so that looking is not counted.
    server = f"postgresql://postgres:{site.password('postgres')}@{HOST}:{site.ports.postgres}/postgres"
    async with await psycopg.AsyncConnection.connect(server, autocommit=True) as db:
        query = "SELECT datname, xact_commit FROM pg_stat_database WHERE datname <> ''"
        return dict(await (await db.execute(query)).fetchall())


async def idle(site: Site, seconds: float) -> Reading:
    """What is done in so many seconds when nobody calls."""
    before = await read(site)
    await asyncio.sleep(seconds)
    return await read(site) - before
