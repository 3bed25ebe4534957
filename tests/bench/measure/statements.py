"""SQL statements of inventory: counted by the service itself, and transactions counted by PostgreSQL."""

import asyncio
import re
from dataclasses import dataclass

import aiohttp
import psycopg

from deploy.local import Site
from deploy.local.ports import HOST

# A PostgreSQL session reports its counters at most once a second, and only between two transactions.
SERVER_COUNTS_SECONDS = 2.0


@dataclass(frozen=True)
class Reading:
    """The counters at one moment; or, as a difference, between two."""

    seconds: float
    for_calls: float
    """Statements sent to answer calls, with BEGIN, COMMIT and ROLLBACK."""
    in_background: float
    """Statements of background jobs, which run without calls too."""
    transactions: int
    """Committed transactions, as the server counts them; a lone statement counts as one."""

    def __sub__(self, earlier: "Reading") -> "Reading":
        return Reading(
            self.seconds - earlier.seconds,
            self.for_calls - earlier.for_calls,
            self.in_background - earlier.in_background,
            self.transactions - earlier.transactions,
        )

    @property
    def background_rate(self) -> float:
        """Statements of background jobs a second."""
        return self.in_background / self.seconds


async def read(site: Site) -> Reading:
    """Read the counters of inventory and its database."""
    await wait_for_server_counts()
    text = await metrics(site, "inventory")
    sent = dict(re.findall(r'^stampede_sql_statements_total{cause="(\w+)"} (\S+)$', text, re.MULTILINE))
    transactions, now = (await committed(site))["inventory"], asyncio.get_running_loop().time()
    return Reading(now, float(sent["call"]), float(sent["background"]), transactions)


async def wait_for_server_counts() -> None:
    """Return when PostgreSQL's sessions have reported the counters of their earlier transactions."""
    await asyncio.sleep(SERVER_COUNTS_SECONDS)


async def metrics(site: Site, service: str) -> str:
    """Return a service's metrics in Prometheus' text format."""
    url = f"http://{HOST}:{site.ports.metrics(service)}/metrics"
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        return await response.text()


async def committed(site: Site) -> dict[str, int]:
    """Return the number of committed transactions by database."""
    # The connection is to another database, so that this query is not counted.
    server = f"postgresql://postgres:{site.password('postgres')}@{HOST}:{site.ports.postgres}/postgres"
    async with await psycopg.AsyncConnection.connect(server, autocommit=True) as db:
        query = "SELECT datname, xact_commit FROM pg_stat_database WHERE datname <> ''"
        return dict(await (await db.execute(query)).fetchall())


async def idle(site: Site, seconds: float) -> Reading:
    """Return the counts of `seconds` seconds without calls."""
    before = await read(site)
    await asyncio.sleep(seconds)
    return await read(site) - before
