"""Leadership: one at a time, taken over within seconds, whatever becomes of the leader."""

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

# A takeover takes as long as the lease lasts, and then one look.
SOON = LASTS_SECONDS + 10.0


class Deeds:
    """The work of leaders in these tests: they note when they begin and end, and work until they are cancelled."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self._news = asyncio.Condition()

    def of(self, who: str) -> Callable[[], Any]:
        async def work() -> None:
            await self._note(who, "begins")
            try:
                await asyncio.Event().wait()
            finally:
                await self._note(who, "ends")

        return work

    async def _note(self, *deed: Any) -> None:
        async with self._news:
            self.done.append(deed)
            self._news.notify_all()

    async def until(self, *deed: Any) -> None:
        async with asyncio.timeout(SOON), self._news:
            await self._news.wait_for(lambda: deed in self.done)


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
    """A proxy before PostgreSQL, that can be cut: then nothing comes through any more, and nobody is told."""

    def __init__(self, port: int) -> None:
        self._to, self._whole = port, asyncio.Event()
        self._carrying: list[asyncio.Task[None]] = []
        self._whole.set()

    async def __aenter__(self) -> "Wire":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.hang_up()
        await asyncio.gather(*self._carrying, return_exceptions=True)
        self._server.close()

    def cut(self) -> None:
        self._whole.clear()

    def hang_up(self) -> None:
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
        writer.close()  # the other side hung up


async def test_one_of_many_concurrent_processes_leads(db: Database) -> None:
    deeds = Deeds()
    # Connected before: a connection whose making is cancelled would be left to the garbage collector.
    await asyncio.gather(*(rows(db) for _ in range(8)))
    async with contextlib.AsyncExitStack() as stack:
        for number in range(8):
            await stack.enter_async_context(leading(Lease("w"), db, deeds.of(str(number))))
        await until(lambda: answered(deeds.done))
        [(leader, _)] = deeds.done
    assert deeds.done[1] == (leader, "ends")


async def test_leader_that_stops_releases_its_lease(db: Database) -> None:
    deeds, first, second = Deeds(), Lease("w"), Lease("w")
    async with leading(second, db, deeds.of("second")) as waiting:
        await deeds.until("second", "begins")
        waiting.cancel()
        await deeds.until("second", "ends")
        await asyncio.gather(waiting, return_exceptions=True)
        assert [row.lasts for row in await rows(db)] == [False]
        async with leading(first, db, deeds.of("first")):
            await deeds.until("first", "begins")


async def test_expired_lease_is_taken_over(db: Database) -> None:
    """As after kill -9 or SIGSTOP: it is still in the row, and nothing is heard of it."""
    deeds, dead, heir = Deeds(), Lease("w"), Lease("w")
    assert await dead._acquire(db)
    async with leading(heir, db, deeds.of("heir")):
        await deeds.until("heir", "begins")
        assert await dead._acquire(db) is None
        assert [row.holder for row in await rows(db)] == [heir.holder]


async def test_work_ends_when_the_database_is_unreachable(db: Database, infra: Infra) -> None:
    deeds, name = Deeds(), db.kw["bind"].url.database
    async with Wire(infra.postgres_port) as wire:
        url = infra.database_url(name).replace(str(infra.postgres_port), str(wire.port))
        engine, through_wire = databases.connect(url, pool_size=2)
        cut_off, heir = Lease("w"), Lease("w")
        async with leading(cut_off, through_wire, deeds.of("cut off")):
            await deeds.until("cut off", "begins")
            async with leading(heir, db, deeds.of("heir")):
                wire.cut()
                await deeds.until("cut off", "ends")
                await deeds.until("heir", "begins")
            wire.hang_up()
        await engine.dispose()
    assert deeds.done.index(("cut off", "ends")) < deeds.done.index(("heir", "begins"))


async def test_work_continues_while_the_lease_is_renewed(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LASTS_SECONDS", 0.5)
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.1)
    deeds, lease, renewals = Deeds(), Lease("w"), 0
    async with leading(lease, db, deeds.of("it")):
        await deeds.until("it", "begins")
        before = (await expires(db)).timestamp()
        async with asyncio.timeout(SOON):
            while (await expires(db)).timestamp() < before + 1.5:
                renewals += 1
        assert deeds.done == [("it", "begins")]


async def expires(db: Database) -> Any:
    async with db() as tx:
        return (await tx.execute(text("SELECT expire_time FROM leases"))).scalar_one()


async def test_lost_lease_ends_the_work(db: Database) -> None:
    deeds = Deeds()
    async with leading(Lease("w"), db, deeds.of("it")):
        await deeds.until("it", "begins")
        async with db.begin() as tx:
            await tx.execute(text("UPDATE leases SET holder = 'another'"))
        await deeds.until("it", "ends")


async def test_failed_work_releases_the_lease(db: Database) -> None:
    async def fails() -> None:
        raise ValueError(1)

    with pytest.raises(ValueError, match="1"):
        async with asyncio.timeout(SOON):
            await Lease("w").lead(db, fails)
    assert [row.lasts for row in await rows(db)] == [False]
