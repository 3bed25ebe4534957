"""The sold-out cache with real NATS: events open and close it in every process, and without them it asks often."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from services.chassis import ids
from services.chassis.data.db import Database
from services.chassis.events import broadcast, outbox, streams, subscriber
from services.chassis.events.outbox import Event, Relay
from services.orders.placing.sold_out_cache import SoldOutCache
from stampede.inventory.v1.events_pb2 import SaleAvailabilityChanged
from tests.support.broker import Broker, a_broker
from tests.support.waiting import until

SUBJECT = "stampede.inventory.sale.*"


@pytest.fixture
def nats_of_its_own() -> Iterator[Broker]:
    with a_broker() as broker:
        yield broker


@contextlib.asynccontextmanager
async def listening(broker: Broker) -> AsyncIterator[SoldOutCache]:
    """The cache of one process of orders."""
    connection, cache = await subscriber.connect(broker.url, "orders"), SoldOutCache()
    task = asyncio.create_task(broadcast.listen(connection, SUBJECT, cache.receive, cache))

    async def is_live() -> bool:
        return cache.live

    try:
        await until(is_live)
        yield cache
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await connection.close()


class Inventory:
    """Publishes as inventory does: from an outbox, through JetStream."""

    def __init__(self, db: Database) -> None:
        self._db, self.relay = db, Relay(db)

    async def publish(self, sale_id: uuid.UUID, *, sold_out: bool) -> None:
        event = SaleAvailabilityChanged(sale_id=str(sale_id), sold_out=sold_out)
        subject = f"stampede.inventory.sale.{'sold_out' if sold_out else 'available'}"
        async with self._db.begin() as tx:
            await outbox.publish(tx, [Event(subject, str(sale_id), event)])
        self.relay.nudge()


@contextlib.asynccontextmanager
async def publishing(db: Database, broker: Broker) -> AsyncIterator[Inventory]:
    connection, inventory = await subscriber.connect(broker.url, "inventory"), Inventory(db)
    await streams.declare_streams(connection.jetstream(), "inventory")
    task = asyncio.create_task(inventory.relay.run(connection))
    try:
        yield inventory
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await connection.close()


async def is_closed(sale_id: uuid.UUID, *caches: SoldOutCache, closed: bool = True) -> None:
    async def agree() -> bool:
        return all((cache.refusal([sale_id]) is not None) is closed for cache in caches)

    await until(agree)


async def test_events_close_and_open_a_sale_in_every_process(db: Database, nats_of_its_own: Broker) -> None:
    """Time stands still, so that no entry ends by itself."""
    async with (
        publishing(db, nats_of_its_own) as inventory,
        listening(nats_of_its_own) as one,
        listening(nats_of_its_own) as other,
    ):
        now = time.monotonic()
        one._clock = other._clock = lambda: now
        sale_id = ids.new()
        await inventory.publish(sale_id, sold_out=True)

        async def both_received() -> bool:
            return all(sale_id in cache._closed for cache in (one, other))

        await until(both_received)
        now += 0.5
        await is_closed(sale_id, one, other)
        await inventory.publish(sale_id, sold_out=False)
        await is_closed(sale_id, one, other, closed=False)


async def test_without_nats_a_sold_out_sale_is_asked_for_again_in_time(
    db: Database, nats_of_its_own: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcast, "_CHECK_SECONDS", 0.02)
    async with publishing(db, nats_of_its_own) as inventory, listening(nats_of_its_own) as cache:
        sale_id = ids.new()
        await inventory.publish(sale_id, sold_out=True)
        await is_closed(sale_id, cache)
        nats_of_its_own.kill()

        async def is_not_live() -> bool:
            return not cache.live

        await until(is_not_live)
        assert cache._closed[sale_id].until <= time.monotonic() + 0.05
        await is_closed(sale_id, cache, closed=False)
        nats_of_its_own.start()

        async def is_live() -> bool:
            return cache.live

        await until(is_live)
        await inventory.publish(sale_id, sold_out=True)
        await is_closed(sale_id, cache)
