"""Runs an order's three steps on DBOS workflows and on Celery chains, in the same run as Stampede's orders.

They do less than a paid order. Reserve, charge and confirm are one small INSERT each into the bench's PostgreSQL;
there is no HTTP, no token, no provider, no second service and no event. They give the same guarantee about a step that
began: it is repeated when its process dies. Each is set up for speed on two cores by its documentation and by trials;
the programs list what was tried. Each keeps a constant number of orders in progress, against a database of its own on
the same server with the same settings, fsync among them. Its CPU time is that of all its processes, PostgreSQL and
Valkey. It is measured while Stampede's services are idle, as E is.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from deploy.local import Site
from deploy.local.ports import HOST
from tests.bench.load.generator import Result
from tests.bench.measure.jobs import Measured, Pids, cpu_seconds, cpu_us_since, print_line

_ROOT = Path(__file__).parents[3]
PYTHON = _ROOT / ".venv-bench/bin/python"
_START_SECONDS, _WORK_SECONDS, _STOP_SECONDS = 60, 120, 20
_VALKEY_DATABASE = 7  # Stampede uses 0


@dataclass(frozen=True)
class RivalSpec:
    """One rival's program, its bar and its load."""

    name: str
    module: str
    """The program that `PYTHON` runs; it reads numbers and completes that many orders for each."""
    bar: float
    """The least factor between our rate and the rival's."""
    concurrency: int
    """Orders in progress at any time."""
    orders: int
    """Per measurement: about two seconds of work."""


DBOS = RivalSpec("DBOS workflow", "tests.bench.rivals.dbos_workflow", bar=5, concurrency=16, orders=240)
CELERY = RivalSpec("Celery chain", "tests.bench.rivals.celery_chain", bar=3, concurrency=64, orders=480)


class Rival:
    """A running rival."""

    def __init__(self, spec: RivalSpec, program: asyncio.subprocess.Process, url: str, pids: Pids) -> None:
        self.spec, self._program, self._url = spec, program, url
        servers = {part: pids[part] for part in ("postgres", "valkey")}
        self._pids = servers | {"its processes": program.pid}

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, spec: RivalSpec, site: Site, pids: Pids, *, python: Path = PYTHON) -> AsyncIterator["Rival"]:
        """Start it on `site`'s servers, in a database that is dropped afterwards. Raises `TimeoutError`."""
        async with _database(site, spec.module.rpartition(".")[2]) as url:
            environment = {
                **os.environ,
                "DATABASE_URL": url,
                "VALKEY_URL": f"{site.valkey_url.rpartition('/')[0]}/{_VALKEY_DATABASE}",
            }
            program = await asyncio.create_subprocess_exec(
                str(python), "-m", spec.module,
                cwd=_ROOT, env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            try:
                rival = cls(spec, program, url, pids)
                await rival._expect("ready", _START_SECONDS)
                yield rival
            finally:
                await _stop(program)

    async def measure(self) -> Measured:
        """Complete the spec's orders, print the cost of one, and return it."""
        orders = self.spec.orders
        before, started = cpu_seconds(self._pids), time.perf_counter()
        await self._complete(orders)
        result = Result(time.perf_counter() - started, answers={"done": orders})
        cpu = cpu_us_since(before, self._pids, result, "done")
        row = Measured(self.spec.name, self.spec.concurrency, result, "done", cpu)
        print_line(str(row))
        return row

    async def effects(self) -> dict[str, int]:
        """Return how often each step was done so far."""
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as database:
            steps = await database.execute("SELECT step, count(*) FROM effects GROUP BY step")
            return dict(await steps.fetchall())

    async def warm_up(self) -> None:
        await self._complete(self.spec.concurrency * 2)

    async def _complete(self, orders: int) -> None:
        assert self._program.stdin
        self._program.stdin.write(f"{orders}\n".encode())
        await self._expect(str(orders), _WORK_SECONDS)

    async def _expect(self, wanted: str, seconds: float) -> None:
        assert self._program.stdout
        async with asyncio.timeout(seconds):
            line = (await self._program.stdout.readline()).decode().strip()
        if line != wanted:
            raise RuntimeError(f"{self.spec.module} printed {line!r} instead of {wanted!r}")


async def _stop(program: asyncio.subprocess.Process) -> None:
    """Close its input, which ends the program and its children."""
    assert program.stdin
    program.stdin.close()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await program.wait()
    except TimeoutError:
        program.kill()
        await program.wait()


@contextlib.asynccontextmanager
async def _database(site: Site, name: str) -> AsyncIterator[str]:
    """Create a database with a table for the steps' writes; yield its address."""
    server = f"postgresql://postgres:{site.password('postgres')}@{HOST}:{site.ports.postgres}"
    async with await psycopg.AsyncConnection.connect(f"{server}/postgres", autocommit=True) as admin:
        await admin.execute(f"CREATE DATABASE {name}")
        try:
            async with await psycopg.AsyncConnection.connect(f"{server}/{name}", autocommit=True) as rival:
                await rival.execute("CREATE TABLE effects (order_id text, step text, PRIMARY KEY (order_id, step))")
            yield f"{server}/{name}"
        finally:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
