"""Committed events are published at least once, and in order for each key, whatever dies in between."""

import asyncio
import os
import random
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StreamConfig
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.events import outbox, streams, subscriber
from services.chassis.events.outbox import Event, Relay
from services.chassis.events.subscriber import Consumer
from stampede.orders.v1.events_pb2 import OrderChanged
from tests.integration.chassis.events.sample_events import (
    Change,
    change_of,
    message,
    number_of,
    published_changes,
    published_numbers,
    store,
    store_changes,
    waiting,
)
from tests.support.broker import Broker, a_broker
from tests.support.infra import Infra
from tests.support.waiting import eventually, until

ROOT = Path(__file__).parents[4]
RelayOnce = Callable[[], Awaitable[int]]


@pytest.fixture
async def relay_once(db: Database, broker: Client, jetstream: JetStreamContext, service: str) -> RelayOnce:
    """Relays one batch of the outbox into the stream of `service`, as another process would."""
    await streams.declare_streams(jetstream, service)
    return lambda: Relay(db).relay_once(broker, jetstream)


class Failing(JetStreamContext):
    """Loses the connection after the second message, and the acknowledgements of the first two."""

    sent = 0

    async def publish(self, *arguments: Any, **options: Any) -> Any:
        self.sent += 1
        if self.sent <= 2:
            await super().publish(*arguments, **options)
        raise ConnectionError("the connection broke")


class Pausing(JetStreamContext):
    """Publishes nothing before `resume` is set."""

    def __init__(self, connection: Client) -> None:
        super().__init__(connection)
        self.reached, self.resume = asyncio.Event(), asyncio.Event()

    async def publish(self, *arguments: Any, **options: Any) -> Any:
        self.reached.set()
        await self.resume.wait()
        return await super().publish(*arguments, **options)


async def test_events_are_published_in_commit_order(
    db: Database, relay_once: RelayOnce, jetstream: JetStreamContext, service: str
) -> None:
    await store(db, service, 1, 2)
    await store(db, service, 3)
    assert await relay_once() == 3
    assert await published_numbers(jetstream, service) == [1, 2, 3]
    assert await waiting(db) == 0


async def test_event_of_a_rolled_back_transaction_is_not_published(
    db: Database, relay_once: RelayOnce, service: str
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with db.begin() as tx:
            await outbox.publish(tx, [Event(f"stampede.{service}.thing.happened", "1", message(1))])
            raise ZeroDivisionError
    assert await relay_once() == 0


async def test_failed_batch_is_repeated_without_duplicates(
    db: Database, relay_once: RelayOnce, broker: Client, jetstream: JetStreamContext, service: str
) -> None:
    await store(db, service, 1, 2, 3, 4)
    assert await Relay(db).relay_once(broker, Failing(broker)) == 0
    assert await waiting(db) == 4
    assert await relay_once() == 4
    assert await published_numbers(jetstream, service) == [1, 2, 3, 4]


async def test_event_without_acknowledgement_stays_stored(
    db: Database, relay_once: RelayOnce, broker: Client, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No stream stores the event. A plain subscriber receives it and never acknowledges."""
    monkeypatch.setattr(outbox, "_PUBLISH_SECONDS", 0.2)
    silent = await broker.subscribe(f"unstored.{service}.>")
    async with db.begin() as tx:
        await outbox.publish(tx, [Event(f"unstored.{service}.a", "a", message(1))])
    await store_changes(db, service, ("a", 2), ("b", 3))
    assert await relay_once() == 1
    assert await waiting(db) == 2
    assert await silent.next_msg()


async def test_relays_of_several_processes_keep_the_order(
    db: Database, relay_once: RelayOnce, jetstream: JetStreamContext, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_BATCH_MAX", 3)
    await store(db, service, *range(60))

    async def relay() -> None:
        while await waiting(db):
            await relay_once()

    await asyncio.gather(*(relay() for _ in range(4)))
    assert await published_numbers(jetstream, service) == list(range(60))


async def test_second_relay_publishes_nothing_while_the_first_does(
    db: Database, relay_once: RelayOnce, broker: Client, jetstream: JetStreamContext, service: str
) -> None:
    """Otherwise it could publish what was committed since, before the first has published what was committed first."""
    await store(db, service, 1)
    slow = Pausing(broker)
    first = asyncio.create_task(Relay(db).relay_once(broker, slow))
    await slow.reached.wait()
    await store(db, service, 2)
    assert await relay_once() == 0
    slow.resume.set()
    assert await first == 1
    assert await relay_once() == 1
    assert await published_numbers(jetstream, service) == [1, 2]


async def test_relay_that_is_paused_for_long_loses_its_lock(
    db: Database, relay_once: RelayOnce, broker: Client, jetstream: JetStreamContext, service: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(outbox, "_LOCK", text(outbox._LOCK.text.replace("'20s'", "'200ms'")))
    await store_changes(db, service, ("a", 1), ("a", 2))
    slow = Pausing(broker)
    first = asyncio.create_task(Relay(db).relay_once(broker, slow))
    await slow.reached.wait()
    await until(relay_once)
    await store_changes(db, service, ("a", 3))
    await until(relay_once)
    slow.resume.set()  # JetStream drops what it publishes late
    with pytest.raises(Exception, match=r"idle-in-transaction|closed"):
        await first
    assert await published_changes(jetstream, service) == [("a", 1), ("a", 2), ("a", 3)]


async def test_nudged_relay_does_not_wait_for_its_pause(
    db: Database, broker: Client, jetstream: JetStreamContext, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_IDLE_SECONDS", 60)
    await streams.declare_streams(jetstream, service)
    inbox = await jetstream.subscribe(f"stampede.{service}.>")
    relay = Relay(db)
    running = asyncio.create_task(relay.run(broker))
    for number in (1, 2):
        await store(db, service, number)
        relay.nudge()
        assert number_of((await inbox.next_msg(timeout=10)).data) == number
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# The order of one key


async def test_idle_relay_only_looks_and_finds_events_of_other_processes(
    db: Database, broker: Client, jetstream: JetStreamContext, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round takes the lock in a transaction: four round trips, twice a second in each process that has nothing."""
    await streams.declare_streams(jetstream, service)
    looks, rounds = list[bool](), list[int]()
    has_looked = asyncio.Event()
    relay = Relay(db)
    has_events, relay_once = relay._has_events, relay.relay_once

    async def look() -> bool:
        looks.append(await has_events())
        if len(looks) == 5:
            has_looked.set()
        return looks[-1]

    async def relay_round(connection: Client, stream: JetStreamContext) -> int:
        rounds.append(await relay_once(connection, stream))
        return rounds[-1]

    monkeypatch.setattr(outbox, "_IDLE_SECONDS", 0.02)
    monkeypatch.setattr(relay, "_has_events", look)
    monkeypatch.setattr(relay, "relay_once", relay_round)
    running = asyncio.create_task(relay.run(broker))
    try:
        await asyncio.wait_for(has_looked.wait(), 30)
        assert (rounds, any(looks)) == ([0], False)
        await store(db, service, 1)  # by another process, which nudges only its own relay
        await eventually(partial(waiting, db), lambda left: left == 0, seconds=30)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert await published_numbers(jetstream, service) == [1]


async def test_refused_event_delays_only_its_own_key(
    db: Database, broker: Client, jetstream: JetStreamContext, service: str
) -> None:
    full = StreamConfig(
        name=service.upper(), subjects=[f"stampede.{service}.>"], max_msgs_per_subject=1, discard=DiscardPolicy.NEW,
        discard_new_per_subject=True,
    )  # fmt: skip
    await jetstream.add_stream(full)
    first = f"stampede.{service}.order.1"
    await jetstream.publish(first, b"in the way")
    await store_changes(db, service, ("a", 1), ("a", 2), ("b", 3), ("b", 4))

    assert await Relay(db).relay_once(broker, jetstream) == 2
    await jetstream.purge_stream(service.upper(), subject=first)
    assert await Relay(db).relay_once(broker, jetstream) == 2
    assert await published_changes(jetstream, service) == [("b", 3), ("b", 4), ("a", 1), ("a", 2)]


def large_change(size: int) -> OrderChanged:
    change = OrderChanged(order_id="a", version=1, state_reason="x" * (size - 9))
    assert change.ByteSize() == size
    return change


@pytest.mark.parametrize("excess", [-40, 0, 1_000_000])
async def test_event_larger_than_nats_accepts_delays_only_its_own_key(
    db: Database, relay_once: RelayOnce, broker: Client, jetstream: JetStreamContext, service: str, excess: int
) -> None:
    """Also where only the header makes it too large: the server would end the connection on such a message."""
    async with db.begin() as tx:
        change = large_change(broker.max_payload + excess)
        await outbox.publish(tx, [Event(f"stampede.{service}.order.1", change.order_id, change)])
    await store_changes(db, service, ("a", 2), ("b", 1), ("b", 2))
    assert await relay_once() == 2
    assert await published_changes(jetstream, service) == [("b", 1), ("b", 2)]
    assert await waiting(db) == 2
    assert broker.is_connected


async def test_refused_key_leaves_room_for_others_however_many_events_it_has(
    db: Database, broker: Client, jetstream: JetStreamContext, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch holds the oldest events; those of a refused key must not fill it for ever."""
    monkeypatch.setattr(outbox, "_BATCH_MAX", 4)
    await streams.declare_streams(jetstream, service)
    async with db.begin() as tx:
        change = large_change(broker.max_payload)
        await outbox.publish(tx, [Event(f"stampede.{service}.order.1", change.order_id, change)])
    await store_changes(db, service, *[("a", number) for number in range(2, 10)], ("b", 1), ("b", 2))
    relay = Relay(db)
    assert [await relay.relay_once(broker, jetstream) for _ in range(2)] == [0, 2]
    assert await published_changes(jetstream, service) == [("b", 1), ("b", 2)]

    monkeypatch.setattr(outbox, "_HEADER_BYTES", -broker.max_payload)  # as after its payload was mended
    async with db.begin() as tx:
        await tx.execute(text("UPDATE outbox SET payload = '' WHERE id = (SELECT min(id) FROM outbox)"))
    relay._refused.clear()
    assert await relay.relay_once(broker, jetstream) == 4


async def test_largest_event_that_nats_accepts_is_published(
    db: Database, relay_once: RelayOnce, broker: Client, service: str
) -> None:
    async with db.begin() as tx:
        change = large_change(broker.max_payload - outbox._HEADER_BYTES)
        await outbox.publish(tx, [Event(f"stampede.{service}.order.1", change.order_id, change)])
    assert await relay_once() == 1


async def test_cancelled_relay_loses_and_reorders_nothing(
    db: Database, relay_once: RelayOnce, broker: Client, jetstream: JetStreamContext, service: str
) -> None:
    """It is cancelled after ever more steps of the event loop, until it is done first three times in a row."""
    steps, finished, number = 0, 0, 0
    while finished < 3:
        number += 1
        await store_changes(db, service, *[(order, n) for n in (2 * number - 1, 2 * number) for order in "abc"])
        relaying = asyncio.create_task(Relay(db).relay_once(broker, JetStreamContext(broker)))
        for _ in range(steps):
            await asyncio.sleep(0)
        finished = finished + 1 if relaying.done() else 0
        relaying.cancel()
        await asyncio.gather(relaying, return_exceptions=True)
        steps = steps * 9 // 8 + 5
    while await waiting(db):
        await relay_once()
    expected = {order: list(range(1, 2 * number + 1)) for order in "abc"}
    assert numbers_by_order(await published_changes(jetstream, service)) == expected


def numbers_by_order(changes: Sequence[Change]) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = defaultdict(list)
    for order, number in changes:
        numbers[order].append(number)
    return numbers


_PUBLISHING = text(r"""
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = :database AND state = 'idle in transaction' AND query ~ 'FROM outbox\s+WHERE key'
""")


class Chaos:
    """Two relay processes, a consumer and a writer, and the faults that are done to them."""

    ORDERS = 20

    def __init__(self, infra: Infra, db: Database, broker: Broker, service: str) -> None:
        self._infra, self._db, self._broker, self._service = infra, db, broker, service
        self._database = str(db.kw["bind"].url.database)
        self._relays: list[asyncio.subprocess.Process] = []
        self.numbers: dict[str, int] = defaultdict(int)
        self.consumed: list[Change] = []

    async def act(self, _tx: AsyncSession, payloads: Sequence[bytes]) -> None:
        self.consumed += [change_of(payload) for payload in payloads]

    async def start_relays(self) -> None:
        while len(self._relays) < 2:
            command = ["-m", "tests.integration.chassis.events.relay_process", self._infra.database_url(self._database)]
            relay = await asyncio.create_subprocess_exec(
                sys.executable, *command, self._broker.url, cwd=ROOT,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            self._relays.append(relay)
            assert relay.stdout
            while (line := await relay.stdout.readline()) != b"connected\n":
                assert line

    async def write(self, chance: random.Random) -> None:
        """Writes until cancelled, at most 1,000 events ahead of the consumer, so that relays publish all the time."""
        while True:
            changes = []
            for _ in range(chance.randrange(1, 60)):
                order = f"order-{chance.randrange(self.ORDERS)}"
                self.numbers[order] += 1
                changes.append((order, self.numbers[order]))
            await asyncio.shield(store_changes(self._db, self._service, *changes))
            if self.written() > len(self.consumed) + 1000:
                await self.wait_for(1)

    def written(self) -> int:
        return sum(self.numbers.values())

    async def kill_relay(self, chance: random.Random) -> None:
        relay = self._relays.pop(chance.randrange(len(self._relays)))
        relay.kill()
        await relay.communicate()

    async def kill_relays(self, chance: random.Random) -> None:
        while self._relays:
            await self.kill_relay(chance)

    async def restart_nats(self, _: random.Random) -> None:
        await asyncio.to_thread(self._broker.kill)
        await asyncio.to_thread(self._broker.start)

    async def disconnect_database(self, _: random.Random) -> None:
        self._infra.admin(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self._database}'"
            " AND query ~ 'advisory|FROM outbox'"
        )

    async def fail_while_publishing(self, chance: random.Random) -> None:
        """Does one of the above while a relay waits for acknowledgements that do not come."""
        self._broker.pause()

        async def publishing() -> bool:
            async with self._db() as tx:
                return bool(await tx.scalar(_PUBLISHING, {"database": self._database}))

        await until(publishing)
        await chance.choice([self.kill_relays, self.restart_nats, self.disconnect_database])(chance)
        self._broker.go_on()

    async def wait_for(self, more: int) -> None:
        seen = len(self.consumed)

        async def consumed_more() -> bool:
            return len(self.consumed) >= min(seen + more, self.written())

        await until(consumed_more, seconds=60)


@pytest.mark.parametrize("seed", range(int(os.environ.get("CHAOS_SEEDS", "1"))))
async def test_killed_relays_lose_and_reorder_nothing(
    infra: Infra, db: Database, service: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Requests that a fault swallows end sooner.
    monkeypatch.setattr(subscriber, "_ACK_SECONDS", 2)
    monkeypatch.setattr(subscriber, "_FETCH_SECONDS", 1.0)
    chance = random.Random(seed)
    with a_broker() as server:
        chaos = Chaos(infra, db, server, service)
        connection = await subscriber.connect(server.url, "consumer")
        jetstream = connection.jetstream()
        await streams.declare_streams(jetstream, service)
        consumer = Consumer("reader", stream=service, subject=f"stampede.{service}.>", db=db, act=chaos.act)
        consuming = asyncio.create_task(consumer.run(jetstream))
        try:
            await chaos.start_relays()
            writing = asyncio.create_task(chaos.write(random.Random(seed)))
            for _ in range(5):
                at_random = [chaos.kill_relay, chaos.restart_nats, chaos.disconnect_database]
                await chance.choice([*at_random, *3 * [chaos.fail_while_publishing]])(chance)
                await chaos.start_relays()
                await chaos.wait_for(chance.randrange(1, 500))
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await until(lambda: _none(db), seconds=60)
            await chaos.wait_for(chaos.written())
        finally:
            consuming.cancel()
            await asyncio.gather(consuming, return_exceptions=True)
            await chaos.kill_relays(chance)
            await connection.close()
    assert numbers_by_order(chaos.consumed) == {order: list(range(1, n + 1)) for order, n in chaos.numbers.items()}


async def _none(db: Database) -> bool:
    return await waiting(db) == 0
