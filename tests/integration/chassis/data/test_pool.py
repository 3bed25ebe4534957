"""A full pool of connections: calls are refused soon, background work and readiness go on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest
from grpc_health.v1 import health
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from services.chassis import process, request_context
from services.chassis.data import db as databases
from services.chassis.data.db import Database
from services.chassis.errors import RateLimited, Unavailable
from services.chassis.process import Process
from services.chassis.request_context import Call, Caller
from services.chassis.settings import ServiceSettings
from tests.support.infra import Infra
from tests.support.ports import free_port
from tests.support.waiting import until

_SELECT = text("SELECT 1")


@pytest.fixture(autouse=True)
def _no_call() -> None:
    request_context.enter(None)  # type: ignore[arg-type]


@pytest.fixture
async def small(infra: Infra) -> AsyncIterator[Database]:
    """A pool of five connections, of which calls get four."""
    engine, sessions = databases.connect(infra.database_url("postgres"), pool_size=5)
    yield sessions
    await engine.dispose()


async def in_call(work: Callable[[], Awaitable[object]], *, service: str = "") -> object:
    """Does `work` as the handler of a client's call, or of a call of another service."""

    async def answer() -> object:
        call = Call(method="/some.Service/Method", request_id="one", caller=Caller(service=service))
        request_context.enter(call)
        return await work()

    return await asyncio.create_task(answer())


class Holding:
    """Calls that each keep a connection until they are released."""

    def __init__(self, db: Database, calls: int) -> None:
        self._db, self._calls = db, calls
        self._holding, self._end = asyncio.Semaphore(0), asyncio.Event()

    async def __aenter__(self) -> "Holding":
        self._tasks = [asyncio.create_task(in_call(self._hold)) for _ in range(self._calls)]
        for _ in self._tasks:
            await self._holding.acquire()
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._end.set()
        await asyncio.gather(*self._tasks)

    async def _hold(self) -> None:
        async with self._db.begin() as tx:
            await tx.execute(_SELECT)
            self._holding.release()
            await self._end.wait()


async def select(db: Database) -> None:
    await databases.run_autocommit(db, _SELECT, {})


async def test_calls_leave_a_connection_to_background_work(small: Database) -> None:
    async with asyncio.timeout(60), Holding(small, 4):
        await select(small)


async def test_full_pool_is_no_unavailable_database(infra: Infra, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls come and go, so the database works; there are only too many."""
    # A call waits for so long that a pause of a busy machine is no standstill.
    monkeypatch.setattr(databases, "_PATIENCE_SECONDS", 20.0)
    engine, full = databases.connect(infra.database_url("postgres"), pool_size=5)

    async def sleep() -> None:
        await in_call(lambda: databases.run_autocommit(full, text("SELECT pg_sleep(0.5)"), {}))

    await asyncio.gather(*(sleep() for _ in range(4)))
    calls = [asyncio.create_task(sleep()) for _ in range(200)]
    done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
    for call in waiting:
        call.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await engine.dispose()

    assert {type(call.exception()) for call in done if call.exception()} == {RateLimited}
    assert len(waiting) > 20, "some calls are not refused"


async def test_connections_that_never_come_back_are_an_unavailable_database(small: Database) -> None:
    async with asyncio.timeout(60), Holding(small, 4):
        with pytest.raises(Unavailable):
            await in_call(lambda: select(small))


async def test_calls_of_services_pass_calls_of_clients(small: Database) -> None:
    order: list[str] = []
    limiter = small.kw["bind"].sync_engine.pool._limiter

    async def note(name: str, service: str = "") -> None:
        await in_call(lambda: select(small), service=service)
        order.append(name)

    waiting = []
    async with asyncio.timeout(60), Holding(small, 3):
        async with Holding(small, 1):  # the only connection that comes back
            for number, caller in enumerate((("client", ""), ("service", "orders")), start=1):
                waiting.append(asyncio.create_task(note(*caller)))
                await until(lambda number=number: asyncio.sleep(0, limiter.waiting == number))
        await asyncio.gather(*waiting)
    assert order == ["service", "client"]


async def test_cancelled_calls_return_their_slots(small: Database) -> None:
    for _ in range(3):
        calls = [
            asyncio.create_task(in_call(lambda: databases.run_autocommit(small, text("SELECT pg_sleep(5)"), {})))
            for _ in range(8)
        ]
        await select(small)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    async with asyncio.timeout(60), Holding(small, 4):
        pass


class CancelledAt:
    """Awaits `work`, and cancels its own task when `work` waits for the n-th time. `waits` counts how often it did."""

    def __init__(self, work: Coroutine[Any, Any, object], n: int) -> None:
        self._work, self._n = work, n
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, None]:
        task, steps, error = asyncio.current_task(), self._work.__await__(), None
        while True:
            try:
                awaited = steps.throw(error) if error else steps.send(None)
            except StopIteration:
                return
            self.waits += 1
            if self.waits == self._n:
                asyncio.get_running_loop().call_soon(task.cancel)
            error = None
            try:
                yield awaited
            except BaseException as thrown:
                error = thrown


async def transaction(db: Database) -> None:
    async with db.begin() as tx:
        await tx.execute(_SELECT)


@pytest.mark.parametrize("work", [select, transaction])
async def test_call_cancelled_at_any_wait_returns_its_connection(
    small: Database, monkeypatch: pytest.MonkeyPatch, work: Callable[[Database], Coroutine[Any, Any, None]]
) -> None:
    # As on a busy machine, where psycopg yields to the loop also when it need not wait.
    monkeypatch.setattr("psycopg.waiting.MAX_BUSY_TIME", 0)
    pool = small.kw["bind"].sync_engine.pool
    await work(small)

    async def cancelled_at(n: int) -> bool:
        cancelled = CancelledAt(work(small), n)
        try:
            await cancelled
        except asyncio.CancelledError:
            # The connection returns in a task that SQLAlchemy shields.
            await until(lambda: asyncio.sleep(0, pool.checkedout() == 0), seconds=30)
        return cancelled.waits >= n

    n = 1
    while await asyncio.create_task(cancelled_at(n)):
        n += 1
    assert n > 3, "it has waited at BEGIN or the option, the statement and the end"


async def test_calls_that_cannot_connect_return_their_slots() -> None:
    """Otherwise a database that was away for a moment would be full for ever."""
    engine, sessions = databases.connect(f"postgresql+psycopg://postgres@127.0.0.1:{free_port()}/postgres", pool_size=5)
    for _ in range(10):
        with pytest.raises(OperationalError):
            await in_call(lambda: select(sessions))
    await engine.dispose()


async def test_process_with_a_full_pool_is_ready(infra: Infra) -> None:
    config = ServiceSettings(
        environment="local", database_url=infra.database_url("postgres"), nats_url=infra.nats_url, database_pool_size=2,
        mesh_secret="m" * 32, page_secret="p" * 32,
    )  # fmt: skip
    checks = health.aio.HealthServicer()
    async with Process("catalog", config) as busy, asyncio.timeout(process._CHECK_SECONDS + 60), Holding(busy.db, 2):
        watching = asyncio.create_task(busy._watch_readiness(checks, None))
        await until(lambda: asyncio.sleep(0, busy._http.ready))
        watching.cancel()
