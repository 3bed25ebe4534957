"""What other teams would run an order's three steps on, measured in the same run: DBOS workflows, and Celery chains.

They do less than a paid order: reserve, charge and confirm are one tiny INSERT each into the bench's PostgreSQL, there
is no HTTP, no token, no provider, no second service and no event. They promise the same about a step that was begun: it
is repeated when its process dies. Each runs as fast as its documentation and a few trials could make it on two cores
(the programs say what was tried), at a steady number of orders under way, against a database of its own on the same
server with the same settings, fsync among them. Their CPU time is that of all their processes, PostgreSQL and Valkey.
They are measured once our services have nothing left to do and only stand by, as they do while E is measured.
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
from tests.bench.load import Result
from tests.bench.measure import Measured, Pids, cpu_seconds, say, spent

_ROOT = Path(__file__).parents[2]
PYTHON = _ROOT / ".venv-bench/bin/python"
_START_SECONDS, _WORK_SECONDS, _STOP_SECONDS = 60, 120, 20
_VALKEY_DATABASE = 7  # ours is 0


@dataclass(frozen=True)
class Kind:
    """One of them."""

    name: str
    module: str
    """Run by `PYTHON`; reads numbers and does as many orders, see there."""
    bar: float
    """How many times its rate ours must be."""
    at_once: int
    """Orders under way at any time."""
    orders: int
    """Per measurement: some two seconds' worth."""


DBOS = Kind("DBOS workflow", "tests.bench.rival_dbos", bar=5, at_once=16, orders=240)
CELERY = Kind("Celery chain", "tests.bench.rival_celery", bar=3, at_once=64, orders=480)


class Rival:
    """One that runs, and does what it is told."""

    def __init__(self, kind: Kind, program: asyncio.subprocess.Process, url: str, pids: Pids) -> None:
        self.kind, self._program, self._url = kind, program, url
        servers = {part: pids[part] for part in ("postgres", "valkey")}
        self._pids = servers | {"its processes": program.pid}

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, kind: Kind, site: Site, pids: Pids, *, python: Path = PYTHON) -> AsyncIterator["Rival"]:
        """Starts it on `site`'s servers, in a database that is dropped afterwards. Raises `TimeoutError`."""
        async with _database(site, kind.module.rpartition(".")[2]) as url:
            environment = {
                **os.environ,
                "DATABASE_URL": url,
                "VALKEY_URL": f"{site.valkey_url.rpartition('/')[0]}/{_VALKEY_DATABASE}",
            }
            program = await asyncio.create_subprocess_exec(
                str(python), "-m", kind.module,
                cwd=_ROOT, env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            try:
                rival = cls(kind, program, url, pids)
                await rival._hear("ready", _START_SECONDS)
                yield rival
            finally:
                await _stop(program)

    async def measure(self) -> Measured:
        """Has its orders done, and says what one cost."""
        orders = self.kind.orders
        before, started = cpu_seconds(self._pids), time.perf_counter()
        await self._do(orders)
        result = Result(time.perf_counter() - started, answers={"done": orders})
        cpu = spent(before, self._pids, result, "done")
        row = Measured(self.kind.name, self.kind.at_once, result, "done", cpu)
        say(str(row))
        return row

    async def effects(self) -> dict[str, int]:
        """How often each step has been done so far."""
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as database:
            steps = await database.execute("SELECT step, count(*) FROM effects GROUP BY step")
            return dict(await steps.fetchall())

    async def warm_up(self) -> None:
        await self._do(self.kind.at_once * 2)

    async def _do(self, orders: int) -> None:
        assert self._program.stdin
        self._program.stdin.write(f"{orders}\n".encode())
        await self._hear(str(orders), _WORK_SECONDS)

    async def _hear(self, expected: str, seconds: float) -> None:
        assert self._program.stdout
        async with asyncio.timeout(seconds):
            line = (await self._program.stdout.readline()).decode().strip()
        if line != expected:
            raise RuntimeError(f"{self.kind.module} says {line!r} instead of {expected!r}")


async def _stop(program: asyncio.subprocess.Process) -> None:
    """Ends its input, and with that the program and its children."""
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
    """The address of a new database with a table for what the steps write."""
    server = f"postgresql://postgres:{site.password('postgres')}@{HOST}:{site.ports.postgres}"
    async with await psycopg.AsyncConnection.connect(f"{server}/postgres", autocommit=True) as admin:
        await admin.execute(f"CREATE DATABASE {name}")
        try:
            async with await psycopg.AsyncConnection.connect(f"{server}/{name}", autocommit=True) as rival:
                await rival.execute("CREATE TABLE effects (order_id text, step text, PRIMARY KEY (order_id, step))")
            yield f"{server}/{name}"
        finally:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
