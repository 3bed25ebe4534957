"""Live views of several replicas: updated by events, and without NATS by their own rounds."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import text

from services.chassis.data.db import Database
from services.chassis.events import broadcast, outbox, streams, subscriber
from services.chassis.events.outbox import Event, Relay
from services.chassis.server.watch import Watch
from stampede.orders.v1.events_pb2 import OrderChanged
from tests.support.broker import Broker, a_broker
from tests.support.waiting import until

SUBJECT = "stampede.orders.order.*"
# Rounds so rare that none happens during a test.
NEVER = 3600.0


@pytest.fixture
def broker_of_its_own() -> Iterator[Broker]:
    with a_broker() as broker:
        yield broker


@pytest.fixture
async def orders(db: Database) -> Database:
    async with db.begin() as tx:
        await tx.execute(text("CREATE TABLE orders (id uuid PRIMARY KEY, version int NOT NULL)"))
    return db


class Replica:
    """A process of orders: its watch and its subscription."""

    def __init__(self, db: Database, connection: Any, *, seconds: float) -> None:
        self.db, self.connection = db, connection
        self.fetches, self.received = 0, 0
        self.watch: Watch[uuid.UUID, int] = Watch(
            self._fetch, interval_seconds=seconds, safety_seconds=NEVER, watchers_max=10
        )

    async def _fetch(self, keys: Sequence[uuid.UUID]) -> dict[uuid.UUID, int]:
        self.fetches += 1
        async with self.db.begin() as tx:
            rows = await tx.execute(text("SELECT id, version FROM orders WHERE id = ANY(:ids)"), {"ids": list(keys)})
            return {row.id: row.version for row in rows}

    def receive(self, payload: bytes) -> None:
        self.received += 1
        changed = OrderChanged.FromString(payload)
        self.watch.nudge(uuid.UUID(changed.order_id), unless=lambda version: version >= changed.version)

    async def change(self, order_id: uuid.UUID, version: int) -> None:
        change = "INSERT INTO orders VALUES (:id, :version) ON CONFLICT (id) DO UPDATE SET version = :version"
        changed = OrderChanged(order_id=str(order_id), version=version)
        async with self.db.begin() as tx:
            await tx.execute(text(change), {"id": order_id, "version": version})
            await outbox.publish(tx, [Event("stampede.orders.order.changed", changed.order_id, changed)])

    async def is_live(self) -> bool:
        return self.watch.live

    async def is_not_live(self) -> bool:
        return not self.watch.live


@contextlib.asynccontextmanager
async def replica(db: Database, broker: Broker, *, seconds: float = NEVER) -> AsyncIterator[Replica]:
    connection = await subscriber.connect(broker.url, "orders")
    jetstream = connection.jetstream()
    await streams.declare_streams(jetstream, "orders")
    replica = Replica(db, connection, seconds=seconds)
    works = (
        replica.watch.run(),
        broadcast.listen(connection, SUBJECT, replica.receive, replica.watch),
        Relay(db).run(connection),
    )
    tasks = [asyncio.create_task(work) for work in works]
    try:
        async with asyncio.timeout(60):
            yield replica
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await connection.close()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "_CHECK_SECONDS", 0.02)
    monkeypatch.setattr(broadcast, "_LINGER_SECONDS", 0.05)


async def test_change_of_one_replica_reaches_watchers_of_others(orders: Database, broker_of_its_own: Broker) -> None:
    order, another = uuid.uuid4(), uuid.uuid4()
    async with replica(orders, broker_of_its_own) as one, replica(orders, broker_of_its_own) as other:
        await one.change(order, 1)
        with other.watch.subscribe(order, at_once=True) as changes:
            assert await anext(changes) == 1
            await until(other.is_live)
            fetches = other.fetches
            await one.change(another, 1)
            await one.change(order, 2)
            assert await anext(changes) == 2
            assert other.fetches == fetches + 1, "once, and only for the watched order"


async def test_idle_watch_sends_no_queries(orders: Database, broker_of_its_own: Broker) -> None:
    order = uuid.uuid4()
    async with replica(orders, broker_of_its_own, seconds=0.005) as idle, replica(orders, broker_of_its_own) as busy:
        await busy.change(order, 1)
        with idle.watch.subscribe(order, at_once=True) as changes:
            assert await anext(changes) == 1
            await until(idle.is_live)
            await busy.change(order, 2)
            assert await anext(changes) == 2
            fetches = idle.fetches
            for _ in range(20):  # each takes as long as several of its rounds
                await busy.change(uuid.uuid4(), 1)
            assert idle.fetches == fetches


async def test_unwatched_replica_receives_no_events(orders: Database, broker_of_its_own: Broker) -> None:
    order = uuid.uuid4()
    async with replica(orders, broker_of_its_own) as one, replica(orders, broker_of_its_own) as other:
        with one.watch.subscribe(order):
            await until(one.is_live)
        await until(one.is_not_live)
        received = one.received
        with other.watch.subscribe(order) as changes:
            await until(other.is_live)
            await one.change(order, 1)
            assert await anext(changes) == 1
        assert one.received == received


@pytest.mark.parametrize("paused", [False, True], ids=["killed", "silent"])
async def test_watchers_are_updated_while_nats_is_unavailable(
    orders: Database, broker_of_its_own: Broker, monkeypatch: pytest.MonkeyPatch, paused: bool
) -> None:
    """Also by a silent server, whose connections stay open. After it is back, events update them again."""
    monkeypatch.setattr(broadcast, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(subscriber, "_PING_SECONDS", NEVER)  # pings would notice it too, later
    order = uuid.uuid4()
    async with replica(orders, broker_of_its_own, seconds=0.05) as one, replica(orders, broker_of_its_own) as other:
        await other.change(order, 1)
        with one.watch.subscribe(order, at_once=True) as changes:
            assert await anext(changes) == 1
            await until(one.is_live)
            _ = broker_of_its_own.pause() if paused else broker_of_its_own.kill()
            await until(one.is_not_live)
            await other.change(order, 2)
            assert await anext(changes) == 2
            _ = broker_of_its_own.go_on() if paused else broker_of_its_own.start()
            await until(one.is_live)
            await other.change(order, 3)
            assert await anext(changes) == 3


async def test_missed_events_are_made_up_for_after_a_reconnect(orders: Database, broker_of_its_own: Broker) -> None:
    order = uuid.uuid4()
    async with replica(orders, broker_of_its_own) as one:
        await one.change(order, 1)
        with one.watch.subscribe(order, at_once=True) as changes:
            assert await anext(changes) == 1
            await until(one.is_live)
            broker_of_its_own.kill()
            await until(one.is_not_live)
            async with one.db.begin() as tx:  # a change whose event is not published
                await tx.execute(text("UPDATE orders SET version = 2"))
            broker_of_its_own.start()
            assert await anext(changes) == 2
