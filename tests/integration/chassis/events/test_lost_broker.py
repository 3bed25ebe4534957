"""A broker that loses its streams, all or the end of them: every event is delivered, and none is acted on twice."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.events import outbox, streams, subscriber
from services.chassis.events.outbox import Relay
from services.chassis.events.subscriber import Consumer
from tests.integration.chassis.events.sample_events import number_of, store, waiting
from tests.support.broker import Broker, a_broker
from tests.support.waiting import eventually, until


class Shop:
    """A service that publishes, and one that consumes; both stay connected whatever the broker does."""

    def __init__(self, db: Database, broker: Broker, connection: Any) -> None:
        self.db, self.broker, self.jetstream = db, broker, connection.jetstream(timeout=1)
        self.done: list[int] = []
        self._consumer = Consumer("reader", stream="shop", subject="stampede.shop.>", db=db, act=self._act)

    async def _act(self, _tx: AsyncSession, payloads: Sequence[bytes]) -> None:
        self.done += [number_of(payload) for payload in payloads]

    async def publish(self, *numbers: int) -> None:
        """Returns once JetStream has acknowledged all of them."""
        await store(self.db, "shop", *numbers)
        await eventually(lambda: waiting(self.db), lambda left: left == 0)

    @contextlib.asynccontextmanager
    async def consuming(self) -> AsyncIterator[None]:
        running = asyncio.create_task(self._consumer.run(self.jetstream))
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def consumed(self, *numbers: int) -> None:
        async def has_done() -> bool:
            return set(numbers) <= set(self.done)

        await until(has_done)
        assert sorted(self.done) == sorted(numbers), "each once"

    @property
    def stored(self) -> Path:
        return self.broker.home / "store"


@pytest.fixture
async def shop(db: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shop]:
    monkeypatch.setattr(outbox, "_STREAM_CHECK_SECONDS", 0.1)
    monkeypatch.setattr(outbox, "_IDLE_SECONDS", 0.05)
    monkeypatch.setattr(outbox, "_PUBLISH_SECONDS", 1.0)
    monkeypatch.setattr(subscriber, "_FETCH_SECONDS", 0.5)
    monkeypatch.setattr(subscriber, "_RESUBSCRIBE_SECONDS", 0.1)
    with a_broker() as broker:
        connection = await subscriber.connect(broker.url, "shop")
        await streams.declare_streams(connection.jetstream(), "shop")
        relaying = asyncio.create_task(Relay(db, "shop").run(connection))
        try:
            yield Shop(db, broker, connection)
        finally:
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)
            await connection.close()


async def test_events_that_a_wiped_broker_had_acknowledged_are_delivered(shop: Shop) -> None:
    """Although no other event follows, and nothing restarts but the broker."""
    async with shop.consuming():
        await shop.publish(1, 2)
        await shop.consumed(1, 2)
    await shop.publish(3, 4)
    shop.broker.kill()
    shutil.rmtree(shop.stored)
    shop.broker.start()
    async with shop.consuming():
        await shop.consumed(1, 2, 3, 4)
        await shop.publish(5)
        await shop.consumed(1, 2, 3, 4, 5)


@pytest.mark.parametrize("gone", ["SHOP", streams.DEAD_LETTERS])
async def test_stream_deleted_under_way_is_declared_again(shop: Shop, gone: str) -> None:
    async with shop.consuming():
        await shop.publish(1)
        await shop.consumed(1)
        await shop.jetstream.delete_stream(gone)
        await shop.publish(2)
        await shop.consumed(1, 2)

        async def names() -> set[str]:
            return {info.config.name for info in await shop.jetstream.streams_info()}

        await eventually(names, lambda found: gone in found)


async def test_end_of_a_stream_that_was_lost_is_published_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a machine that failed before the broker's last writes reached its disk; a new event hides the gap."""
    await shop.publish(1, 2)
    shop.broker.kill()
    shutil.copytree(shop.stored, shop.broker.home / "old")
    shop.broker.start()
    await shop.publish(3, 4)
    shop.broker.kill()
    shutil.rmtree(shop.stored)
    (shop.broker.home / "old").rename(shop.stored)
    monkeypatch.setattr(streams, "last_sequence", _knows_nothing)
    await store(shop.db, "shop", 5, 6, 7)
    shop.broker.start()
    async with shop.consuming():
        await shop.consumed(1, 2, 3, 4, 5, 6, 7)


async def _knows_nothing(*_: object) -> int:
    return 1_000_000


async def test_complete_stream_has_nothing_published_again(shop: Shop, db: Database) -> None:
    await shop.publish(1, 2, 3)
    shop.broker.kill()
    shop.broker.start()
    await shop.publish(4)
    async with db() as tx:
        rows = (await tx.execute(text("SELECT seq FROM published_events ORDER BY id"))).all()
    assert [row.seq for row in rows] == [1, 2, 3, 4]
