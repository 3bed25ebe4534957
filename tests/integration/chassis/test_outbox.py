"""What is committed is told: at least once, and in order for each key, whatever dies in between."""

import asyncio
import os
import random
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StreamConfig
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.events import outbox, subscriber
from services.chassis.events.outbox import Event, Relay
from services.chassis.events.publishing import Message, Publisher
from services.chassis.events.subscriber import Consumer
from stampede.orders.v1 import events_pb2 as orders
from tests.integration.chassis.telling import (
    Change,
    change_of,
    fact,
    number_of,
    tell,
    tell_changes,
    told,
    told_changes,
    waiting,
)
from tests.support.broker import Broker, a_broker
from tests.support.infra import Infra
from tests.support.waiting import until

ROOT = Path(__file__).parents[3]


@pytest.fixture
async def publisher(broker: Any) -> AsyncIterator[Publisher]:
    async with Publisher(broker) as publisher:
        yield publisher


class Failing(Publisher):
    """Fails when so many messages of a batch are published."""

    after = 2

    async def publish(self, messages: Sequence[Message]) -> list[int]:
        await super().publish(messages[: self.after])
        raise ConnectionError("the connection broke")


class Pausing(Publisher):
    """Takes nothing until it is let go."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self.reached, self.gate = asyncio.Event(), asyncio.Event()

    async def publish(self, messages: Sequence[Message]) -> list[int]:
        self.reached.set()
        await self.gate.wait()
        return await super().publish(messages)


async def test_events_are_told_in_the_order_they_were_committed(
    db: Database, publisher: Publisher, jetstream: JetStreamContext, teller: str
) -> None:
    await subscriber.declare_stream(jetstream, teller)
    await tell(db, teller, 1, 2)
    await tell(db, teller, 3)
    assert await Relay(db).relay_once(publisher) == 3
    assert await told(jetstream, teller) == [1, 2, 3]
    assert await waiting(db) == 0


async def test_what_was_rolled_back_is_not_told(
    db: Database, publisher: Publisher, jetstream: JetStreamContext, teller: str
) -> None:
    await subscriber.declare_stream(jetstream, teller)
    with pytest.raises(ZeroDivisionError):
        async with db.begin() as tx:
            await outbox.publish(tx, [Event(f"stampede.{teller}.thing.happened", "1", fact(1))])
            raise ZeroDivisionError
    assert await Relay(db).relay_once(publisher) == 0


async def test_a_failed_publish_loses_nothing_and_its_repeat_doubles_nothing(
    db: Database, publisher: Publisher, broker: Any, jetstream: JetStreamContext, teller: str
) -> None:
    await subscriber.declare_stream(jetstream, teller)
    await tell(db, teller, 1, 2, 3, 4)
    async with Failing(broker) as failing:
        with pytest.raises(ConnectionError):
            await Relay(db).relay_once(failing)
    assert await waiting(db) == 4
    assert await Relay(db).relay_once(publisher) == 4
    assert await told(jetstream, teller) == [1, 2, 3, 4]


async def test_relays_of_several_processes_keep_the_order(
    db: Database, broker: Any, jetstream: JetStreamContext, teller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_BATCH_MOST", 3)
    await subscriber.declare_stream(jetstream, teller)
    await tell(db, teller, *range(60))

    async def relay() -> None:
        async with Publisher(broker) as publisher:
            while await waiting(db):
                await Relay(db).relay_once(publisher)

    await asyncio.gather(*(relay() for _ in range(4)))
    assert await told(jetstream, teller) == list(range(60))


async def test_while_one_relay_is_at_work_another_tells_nothing(
    db: Database, publisher: Publisher, broker: Any, jetstream: JetStreamContext, teller: str
) -> None:
    """It could otherwise overtake the first with what was committed since."""
    await subscriber.declare_stream(jetstream, teller)
    await tell(db, teller, 1)
    async with Pausing(broker) as slow:
        first = asyncio.create_task(Relay(db).relay_once(slow))
        await slow.reached.wait()
        await tell(db, teller, 2)
        assert await Relay(db).relay_once(publisher) == 0
        slow.gate.set()
        assert await first == 1
    assert await Relay(db).relay_once(publisher) == 1
    assert await told(jetstream, teller) == [1, 2]


async def test_a_relay_that_is_paused_for_long_holds_nobody_up(
    db: Database, publisher: Publisher, broker: Any, jetstream: JetStreamContext, teller: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(outbox, "_LOCK", text(outbox._LOCK.text.replace("'20s'", "'200ms'")))
    await subscriber.declare_stream(jetstream, teller)
    await tell_changes(db, teller, ("a", 1), ("a", 2))
    async with Pausing(broker) as slow:
        first = asyncio.create_task(Relay(db).relay_once(slow))
        await slow.reached.wait()
        await until(lambda: Relay(db).relay_once(publisher))
        await tell_changes(db, teller, ("a", 3))
        await until(lambda: Relay(db).relay_once(publisher))
        slow.gate.set()  # and what it tells late is known already
        with pytest.raises(Exception, match=r"idle-in-transaction|closed"):
            await first
    assert await told_changes(jetstream, teller) == [("a", 1), ("a", 2), ("a", 3)]


async def test_a_nudge_saves_the_wait(
    db: Database, broker: Any, jetstream: JetStreamContext, teller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_IDLE_SECONDS", 60)
    await subscriber.declare_stream(jetstream, teller)
    inbox = await jetstream.subscribe(f"stampede.{teller}.>")
    relay = Relay(db)
    running = asyncio.create_task(relay.run(broker))
    for number in (1, 2):
        await tell(db, teller, number)
        relay.nudge()
        assert number_of((await inbox.next_msg(timeout=10)).data) == number
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# In order, whatever happens


async def test_an_event_that_is_refused_holds_up_those_of_its_key_and_no_others(
    db: Database, publisher: Publisher, jetstream: JetStreamContext, teller: str
) -> None:
    full = StreamConfig(
        name=teller.upper(), subjects=[f"stampede.{teller}.>"], max_msgs_per_subject=1, discard=DiscardPolicy.NEW,
        discard_new_per_subject=True,
    )  # fmt: skip
    await jetstream.add_stream(full)
    first = f"stampede.{teller}.order.1"
    await jetstream.publish(first, b"in the way")
    await tell_changes(db, teller, ("a", 1), ("a", 2), ("b", 3))

    assert await Relay(db).relay_once(publisher) == 1
    assert "maximum messages per subject" in publisher.refusal
    await jetstream.purge_stream(teller.upper(), subject=first)
    assert await Relay(db).relay_once(publisher) == 2
    assert await told_changes(jetstream, teller) == [("b", 3), ("a", 1), ("a", 2)]


async def test_an_event_too_large_for_nats_holds_up_no_others(
    db: Database, publisher: Publisher, jetstream: JetStreamContext, teller: str
) -> None:
    await subscriber.declare_stream(jetstream, teller)
    async with db.begin() as tx:
        large = orders.OrderChanged(order_id="a", version=1, state_reason="x" * 2_000_000)
        await outbox.publish(tx, [Event(f"stampede.{teller}.order.1", large.order_id, large)])
    await tell_changes(db, teller, ("a", 2), ("b", 1))
    await Relay(db).relay_once(publisher)
    assert await told_changes(jetstream, teller) == [("b", 1)]
    assert await waiting(db) == 2


async def test_a_relay_cancelled_at_any_point_loses_and_reorders_nothing(
    db: Database, broker: Any, jetstream: JetStreamContext, teller: str
) -> None:
    await subscriber.declare_stream(jetstream, teller)
    steps, finished, number = 0, 0, 0
    while finished < 3:  # times in a row that it was done before it could be cancelled
        number += 1
        await tell_changes(db, teller, *[(order, n) for n in (2 * number - 1, 2 * number) for order in "abc"])
        async with Publisher(broker) as publisher:
            relaying = asyncio.create_task(Relay(db).relay_once(publisher))
            for _ in range(steps):
                await asyncio.sleep(0)
            finished = finished + 1 if relaying.done() else 0
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)
        steps += 9
    async with Publisher(broker) as publisher:
        while await waiting(db):
            await Relay(db).relay_once(publisher)
    heard = in_order_of_keys(await told_changes(jetstream, teller))
    assert heard == {order: list(range(1, 2 * number + 1)) for order in "abc"}


def in_order_of_keys(changes: Sequence[Change]) -> dict[str, list[int]]:
    heard: dict[str, list[int]] = defaultdict(list)
    for order, number in changes:
        heard[order].append(number)
    return heard


_PUBLISHING = text("""
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = :database AND state = 'idle in transaction' AND query ~ 'FROM outbox ORDER'
""")


class Chaos:
    """Two relays as processes, a consumer, and a writer; and what happens to them."""

    ORDERS = 20

    def __init__(self, infra: Infra, db: Database, broker: Broker, teller: str) -> None:
        self._infra, self._db, self._broker, self._teller = infra, db, broker, teller
        self._database = str(db.kw["bind"].url.database)
        self._relays: list[asyncio.subprocess.Process] = []
        self.numbers: dict[str, int] = defaultdict(int)
        self.heard: list[Change] = []

    async def act(self, _tx: AsyncSession, payloads: Sequence[bytes]) -> None:
        self.heard += [change_of(payload) for payload in payloads]

    async def start_relays(self) -> None:
        while len(self._relays) < 2:
            command = ["-m", "tests.integration.chassis.relaying", self._infra.database_url(self._database)]
            relay = await asyncio.create_subprocess_exec(
                sys.executable, *command, self._broker.url, cwd=ROOT,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            self._relays.append(relay)
            assert relay.stdout
            while (line := await relay.stdout.readline()) != b"connected\n":
                assert line

    async def write(self, chance: random.Random) -> None:
        """Until cancelled, but never far ahead of what was heard: so that relays are at work all the time."""
        while True:
            changes = []
            for _ in range(chance.randrange(1, 60)):
                order = f"order-{chance.randrange(self.ORDERS)}"
                self.numbers[order] += 1
                changes.append((order, self.numbers[order]))
            await asyncio.shield(tell_changes(self._db, self._teller, *changes))
            if self.written() > len(self.heard) + 1000:
                await self.goes_on(1)

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

    async def cut_off_database(self, _: random.Random) -> None:
        """In the middle of whatever the relays do: half of the time, that is waiting for NATS."""
        self._infra.admin(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self._database}'"
            " AND query ~ 'advisory|FROM outbox'"
        )

    async def in_the_middle_of_publishing(self, chance: random.Random) -> None:
        """One of the above, while a relay waits for answers that do not come."""
        self._broker.pause()

        async def publishing() -> bool:
            async with self._db() as tx:
                return bool(await tx.scalar(_PUBLISHING, {"database": self._database}))

        await until(publishing)
        await chance.choice([self.kill_relays, self.restart_nats, self.cut_off_database])(chance)
        self._broker.go_on()

    async def goes_on(self, more: int) -> None:
        seen = len(self.heard)

        async def heard_more() -> bool:
            return len(self.heard) >= min(seen + more, self.written())

        await until(heard_more, seconds=60)


@pytest.mark.parametrize("seed", range(int(os.environ.get("CHAOS_SEEDS", "1"))))
async def test_relays_killed_at_any_point_lose_and_reorder_nothing(
    infra: Infra, db: Database, teller: str, seed: int
) -> None:
    chance = random.Random(seed)
    with a_broker() as server:
        chaos = Chaos(infra, db, server, teller)
        connection = await subscriber.connect(server.url, "consumer")
        jetstream = connection.jetstream()
        await subscriber.declare_stream(jetstream, teller)
        consumer = Consumer("reader", stream=teller, subject=f"stampede.{teller}.>", db=db, act=chaos.act)
        consuming = asyncio.create_task(consumer.run(jetstream))
        try:
            await chaos.start_relays()
            writing = asyncio.create_task(chaos.write(random.Random(seed)))
            for _ in range(5):
                at_random = [chaos.kill_relay, chaos.restart_nats, chaos.cut_off_database]
                await chance.choice([*at_random, *3 * [chaos.in_the_middle_of_publishing]])(chance)
                await chaos.start_relays()
                await chaos.goes_on(chance.randrange(1, 500))
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await until(lambda: _none(db), seconds=60)
            await chaos.goes_on(chaos.written())
        finally:
            consuming.cancel()
            await asyncio.gather(consuming, return_exceptions=True)
            await chaos.kill_relays(chance)
            await connection.close()
    assert in_order_of_keys(chaos.heard) == {order: list(range(1, n + 1)) for order, n in chaos.numbers.items()}


async def _none(db: Database) -> bool:
    return await waiting(db) == 0
