"""Leases: one process leads at a time; another takes over within seconds, whatever happens to the leader."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from sqlalchemy import text

from services.chassis.data import db as databases
from services.chassis.data import lease as leases
from services.chassis.data.db import Database
from services.chassis.data.lease import LASTS_SECONDS, Lease
from tests.support.infra import Infra
from tests.support.waiting import until

# A takeover takes as long as the lease lasts, and one look more.
SOON = LASTS_SECONDS + 10.0


class Recorder:
    """The work of leaders in these tests: they note when they begin and end, and work until they are cancelled."""

    def __init__(self) -> None:
        self.records: list[tuple[str, str]] = []
        self._changed = asyncio.Condition()

    def of(self, who: str) -> Callable[[], Any]:
        async def work() -> None:
            await self._note(who, "begins")
            try:
                await asyncio.Event().wait()
            finally:
                await self._note(who, "ends")

        return work

    async def _note(self, *record: Any) -> None:
        async with self._changed:
            self.records.append(record)
            self._changed.notify_all()

    async def until(self, *record: Any) -> None:
        async with asyncio.timeout(SOON), self._changed:
            await self._changed.wait_for(lambda: record in self.records)


@contextlib.asynccontextmanager
async def leading(lease: Lease, db: Database, work: Callable[[], Any]) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(lease.lead(db, work))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def rows(db: Database) -> list[Any]:
    async with db() as tx:
        query = text("SELECT holder, expire_time > clock_timestamp() AS lasts FROM leases")
        return list((await tx.execute(query)).all())


async def answered(value: Any) -> Any:
    return value


class Wire:
    """A proxy before PostgreSQL. After `cut` it forwards nothing, and both connections stay open."""

    def __init__(self, port: int) -> None:
        self._to, self._whole = port, asyncio.Event()
        self._carrying: list[asyncio.Task[None]] = []
        self._whole.set()

    async def __aenter__(self) -> "Wire":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.close_connections()
        await asyncio.gather(*self._carrying, return_exceptions=True)
        self._server.close()

    def cut(self) -> None:
        self._whole.clear()

    def close_connections(self) -> None:
        for task in self._carrying:
            task.cancel()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._carrying.append(asyncio.create_task(self._connect(reader, writer)))

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        on, back = await asyncio.open_connection("127.0.0.1", self._to)
        try:
            await asyncio.gather(self._carry(reader, back), self._carry(on, writer))
        finally:
            writer.close()
            back.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            await self._whole.wait()
            writer.write(chunk)
            await writer.drain()
        writer.close()  # the other side closed


async def test_one_of_many_concurrent_processes_leads(db: Database) -> None:
    recorder = Recorder()
    # Connected before: a connection whose making is cancelled would be left to the garbage collector.
    await asyncio.gather(*(rows(db) for _ in range(8)))
    async with contextlib.AsyncExitStack() as stack:
        for number in range(8):
            await stack.enter_async_context(leading(Lease("w"), db, recorder.of(str(number))))
        await until(lambda: answered(recorder.records))
        [(leader, _)] = recorder.records
    assert recorder.records[1] == (leader, "ends")


async def test_leader_that_stops_releases_its_lease(db: Database) -> None:
    recorder, first, second = Recorder(), Lease("w"), Lease("w")
    async with leading(second, db, recorder.of("second")) as waiting:
        await recorder.until("second", "begins")
        waiting.cancel()
        await recorder.until("second", "ends")
        await asyncio.gather(waiting, return_exceptions=True)
        assert [row.lasts for row in await rows(db)] == [False]
        async with leading(first, db, recorder.of("first")):
            await recorder.until("first", "begins")


async def test_expired_lease_is_taken_over(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after kill -9 or SIGSTOP: the row names the leader, which does not renew."""
    recorder, dead, successor = Recorder(), Lease("w"), Lease("w")
    with monkeypatch.context() as patch:
        patch.setattr(leases, "LASTS_SECONDS", 0.3)
        assert await dead._acquire(db)
    async with leading(successor, db, recorder.of("successor")):
        await recorder.until("successor", "begins")
        assert await dead._acquire(db) is None
        assert [row.holder for row in await rows(db)] == [successor.holder]


async def test_work_ends_when_the_database_is_unreachable(db: Database, infra: Infra) -> None:
    recorder, name = Recorder(), db.kw["bind"].url.database
    async with Wire(infra.postgres_port) as wire:
        url = infra.database_url(name).replace(str(infra.postgres_port), str(wire.port))
        engine, through_wire = databases.connect(url, pool_size=2)
        disconnected, successor = Lease("w"), Lease("w")
        async with leading(disconnected, through_wire, recorder.of("disconnected")):
            await recorder.until("disconnected", "begins")
            async with leading(successor, db, recorder.of("successor")):
                wire.cut()
                await recorder.until("disconnected", "ends")
                await recorder.until("successor", "begins")
            wire.close_connections()
        await engine.dispose()
    assert recorder.records.index(("disconnected", "ends")) < recorder.records.index(("successor", "begins"))


async def test_work_continues_while_the_lease_is_renewed(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LASTS_SECONDS", 1.0)
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.1)
    recorder, lease, renewals = Recorder(), Lease("w"), 0
    async with leading(lease, db, recorder.of("it")):
        await recorder.until("it", "begins")
        before = (await expires(db)).timestamp()
        async with asyncio.timeout(SOON):
            while (await expires(db)).timestamp() < before + 1.2:
                renewals += 1
        assert recorder.records == [("it", "begins")]


async def expires(db: Database) -> Any:
    async with db() as tx:
        return (await tx.execute(text("SELECT expire_time FROM leases"))).scalar_one()


async def test_lost_lease_ends_the_work(db: Database) -> None:
    recorder = Recorder()
    async with leading(Lease("w"), db, recorder.of("it")):
        await recorder.until("it", "begins")
        async with db.begin() as tx:
            await tx.execute(text("UPDATE leases SET holder = 'another'"))
        await recorder.until("it", "ends")


async def test_failed_work_releases_the_lease(db: Database) -> None:
    async def fails() -> None:
        raise ValueError(1)

    with pytest.raises(ValueError, match="1"):
        async with asyncio.timeout(SOON):
            await Lease("w").lead(db, fails)
    assert [row.lasts for row in await rows(db)] == [False]
