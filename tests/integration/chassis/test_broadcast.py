"""Live views over several replicas: told by events, and without them by looks."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import text

from services.chassis.data.db import Database
from services.chassis.events import broadcast, outbox, subscriber
from services.chassis.events.outbox import Event, Relay
from services.chassis.server.watch import Watch
from stampede.orders.v1.events_pb2 import OrderChanged
from tests.support.broker import Broker, a_broker
from tests.support.waiting import until

SUBJECT = "stampede.orders.order.*"
# Looks so rare that no test lives to see one, unless it wants to.
NEVER = 3600.0


@pytest.fixture
def nats_of_its_own() -> Iterator[Broker]:
    with a_broker() as broker:
        yield broker


@pytest.fixture
async def orders(db: Database) -> Database:
    async with db.begin() as tx:
        await tx.execute(text("CREATE TABLE orders (id uuid PRIMARY KEY, version int NOT NULL)"))
    return db


class Replica:
    """What a process of orders has of all this."""

    def __init__(self, db: Database, connection: Any, *, seconds: float) -> None:
        self.db, self.connection = db, connection
        self.looks, self.heard = 0, 0
        self.watch: Watch[uuid.UUID, int] = Watch(
            self._fetch, interval_seconds=seconds, safety_seconds=NEVER, watchers_max=10
        )

    async def _fetch(self, keys: Sequence[uuid.UUID]) -> dict[uuid.UUID, int]:
        self.looks += 1
        async with self.db.begin() as tx:
            rows = await tx.execute(text("SELECT id, version FROM orders WHERE id = ANY(:ids)"), {"ids": list(keys)})
            return {row.id: row.version for row in rows}

    def hear(self, payload: bytes) -> None:
        self.heard += 1
        changed = OrderChanged.FromString(payload)
        self.watch.nudge(uuid.UUID(changed.order_id), unless=lambda version: version >= changed.version)

    async def change(self, order_id: uuid.UUID, version: int) -> None:
        change = "INSERT INTO orders VALUES (:id, :version) ON CONFLICT (id) DO UPDATE SET version = :version"
        told = OrderChanged(order_id=str(order_id), version=version)
        async with self.db.begin() as tx:
            await tx.execute(text(change), {"id": order_id, "version": version})
            await outbox.publish(tx, [Event("stampede.orders.order.changed", told.order_id, told)])

    async def is_live(self) -> bool:
        return self.watch.live

    async def is_not_live(self) -> bool:
        return not self.watch.live


@contextlib.asynccontextmanager
async def replica(db: Database, broker: Broker, *, seconds: float = NEVER) -> AsyncIterator[Replica]:
    connection = await subscriber.connect(broker.url, "orders")
    jetstream = connection.jetstream()
    await subscriber.declare_streams(jetstream, "orders")
    replica = Replica(db, connection, seconds=seconds)
    works = (
        replica.watch.run(),
        broadcast.listen(connection, SUBJECT, replica.hear, replica.watch),
        Relay(db).run(connection),
    )
    tasks = [asyncio.create_task(work) for work in works]
    try:
        async with asyncio.timeout(20):
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


async def test_what_one_replica_changes_the_others_tell_their_watchers(
    orders: Database, nats_of_its_own: Broker
) -> None:
    order, another = uuid.uuid4(), uuid.uuid4()
    async with replica(orders, nats_of_its_own) as one, replica(orders, nats_of_its_own) as other:
        await one.change(order, 1)
        with other.watch.subscribe(order, at_once=True) as changes:
            assert await anext(changes) == 1
            await until(other.is_live)
            looks = other.looks
            await one.change(another, 1)
            await one.change(order, 2)
            assert await anext(changes) == 2
            assert other.looks == looks + 1, "for what is watched, and once"


async def test_nothing_is_asked_of_the_database_while_nothing_changes(
    orders: Database, nats_of_its_own: Broker
) -> None:
    order = uuid.uuid4()
    async with replica(orders, nats_of_its_own, seconds=0.005) as idle, replica(orders, nats_of_its_own) as busy:
        await busy.change(order, 1)
        with idle.watch.subscribe(order, at_once=True) as changes:
            assert await anext(changes) == 1
            await until(idle.is_live)
            await busy.change(order, 2)
            assert await anext(changes) == 2
            looks = idle.looks
            for _ in range(20):  # each as long as some of its rounds
                await busy.change(uuid.uuid4(), 1)
            assert idle.looks == looks


async def test_who_is_watched_by_nobody_hears_nothing(orders: Database, nats_of_its_own: Broker) -> None:
    order = uuid.uuid4()
    async with replica(orders, nats_of_its_own) as one, replica(orders, nats_of_its_own) as other:
        with one.watch.subscribe(order):
            await until(one.is_live)
        await until(one.is_not_live)
        heard = one.heard
        with other.watch.subscribe(order) as changes:
            await until(other.is_live)
            await one.change(order, 1)
            assert await anext(changes) == 1
        assert one.heard == heard


@pytest.mark.parametrize("paused", [False, True], ids=["gone", "silent"])
async def test_while_nats_is_away_watchers_are_told_by_looks_and_then_by_events_again(
    orders: Database, nats_of_its_own: Broker, monkeypatch: pytest.MonkeyPatch, paused: bool
) -> None:
    """A server that is silent still looks connected."""
    monkeypatch.setattr(broadcast, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(subscriber, "_PING_SECONDS", NEVER)  # which would find out too, later
    order = uuid.uuid4()
    async with replica(orders, nats_of_its_own, seconds=0.05) as one, replica(orders, nats_of_its_own) as other:
        await other.change(order, 1)
        with one.watch.subscribe(order, at_once=True) as changes:
            assert await anext(changes) == 1
            await until(one.is_live)
            _ = nats_of_its_own.pause() if paused else nats_of_its_own.kill()
            await until(one.is_not_live)
            await other.change(order, 2)
            assert await anext(changes) == 2
            _ = nats_of_its_own.go_on() if paused else nats_of_its_own.start()
            await until(one.is_live)
            await other.change(order, 3)
            assert await anext(changes) == 3


async def test_what_was_missed_while_the_connection_was_away_is_caught_up_with(
    orders: Database, nats_of_its_own: Broker
) -> None:
    order = uuid.uuid4()
    async with replica(orders, nats_of_its_own) as one:
        await one.change(order, 1)
        with one.watch.subscribe(order, at_once=True) as changes:
            assert await anext(changes) == 1
            await until(one.is_live)
            nats_of_its_own.kill()
            await until(one.is_not_live)
            async with one.db.begin() as tx:  # a change whose event nobody will hear
                await tx.execute(text("UPDATE orders SET version = 2"))
            nats_of_its_own.start()
            assert await anext(changes) == 2
