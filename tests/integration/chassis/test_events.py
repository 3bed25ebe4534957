"""What is committed is told, in order and at least once; what is heard is acted on once."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from nats.js import JetStreamContext
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis import events, outbox
from services.chassis.db import Database
from services.chassis.events import Consumer
from services.chassis.outbox import OutboxEvent, Relay
from stampede.inventory.v1.events_pb2 import ReservationExpired


def fact(number: int) -> ReservationExpired:
    return ReservationExpired(reservation_id=str(number))


def number_of(payload: bytes) -> int:
    return int(ReservationExpired.FromString(payload).reservation_id)


async def tell(db: Database, teller: str, *numbers: int) -> None:
    async with db.begin() as tx:
        await outbox.tell(tx, [(f"stampede.{teller}.thing.happened", fact(number)) for number in numbers])


async def told(jetstream: JetStreamContext, teller: str) -> list[int]:
    """All that the stream holds, in its order."""
    count = (await jetstream.stream_info(teller.upper())).state.messages
    return [number_of((await jetstream.get_msg(teller.upper(), seq)).data or b"") for seq in range(1, count + 1)]


async def waiting(db: Database) -> int:
    async with db() as tx:
        return await tx.scalar(select(func.count()).select_from(OutboxEvent)) or 0


class Failing:
    """A JetStream that fails once, after so many messages."""

    def __init__(self, jetstream: JetStreamContext, *, after: int) -> None:
        self._jetstream, self._left = jetstream, after

    async def publish_async(self, *arguments: Any, **options: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ConnectionError("the connection broke")
        return await self._jetstream.publish_async(*arguments, **options)


class Pausing:
    """A JetStream that takes nothing until it is let go."""

    def __init__(self, jetstream: JetStreamContext) -> None:
        self._jetstream = jetstream
        self.reached, self.gate = asyncio.Event(), asyncio.Event()

    async def publish_async(self, *arguments: Any, **options: Any) -> Any:
        self.reached.set()
        await self.gate.wait()
        return await self._jetstream.publish_async(*arguments, **options)


# Telling


async def test_events_are_told_in_the_order_they_were_committed(
    db: Database, jetstream: JetStreamContext, teller: str
) -> None:
    await events.declare_stream(jetstream, teller)
    await tell(db, teller, 1, 2)
    await tell(db, teller, 3)
    assert await Relay(db).relay_once(jetstream) == 3
    assert await told(jetstream, teller) == [1, 2, 3]
    assert await waiting(db) == 0


async def test_what_was_rolled_back_is_not_told(db: Database, jetstream: JetStreamContext, teller: str) -> None:
    await events.declare_stream(jetstream, teller)
    with pytest.raises(ZeroDivisionError):
        async with db.begin() as tx:
            await outbox.tell(tx, [(f"stampede.{teller}.thing.happened", fact(1))])
            raise ZeroDivisionError
    assert await Relay(db).relay_once(jetstream) == 0


async def test_a_failed_publish_loses_nothing_and_its_repeat_doubles_nothing(
    db: Database, jetstream: JetStreamContext, teller: str
) -> None:
    await events.declare_stream(jetstream, teller)
    await tell(db, teller, 1, 2, 3, 4)
    with pytest.raises(ConnectionError):
        await Relay(db).relay_once(Failing(jetstream, after=2))  # type: ignore[arg-type]
    assert await waiting(db) == 4
    assert await Relay(db).relay_once(jetstream) == 4
    assert await told(jetstream, teller) == [1, 2, 3, 4]


async def test_relays_of_several_processes_keep_the_order(
    db: Database, jetstream: JetStreamContext, teller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_BATCH_MOST", 3)
    await events.declare_stream(jetstream, teller)
    await tell(db, teller, *range(60))

    async def relay() -> None:
        while await waiting(db):
            await Relay(db).relay_once(jetstream)

    await asyncio.gather(*(relay() for _ in range(4)))
    assert await told(jetstream, teller) == list(range(60))


async def test_while_one_relay_is_at_work_another_tells_nothing(
    db: Database, jetstream: JetStreamContext, teller: str
) -> None:
    """It could otherwise overtake the first with what was committed since."""
    await events.declare_stream(jetstream, teller)
    await tell(db, teller, 1)
    slow = Pausing(jetstream)
    first = asyncio.create_task(Relay(db).relay_once(slow))  # type: ignore[arg-type]
    await slow.reached.wait()
    await tell(db, teller, 2)
    assert await Relay(db).relay_once(jetstream) == 0
    slow.gate.set()
    assert await first == 1
    assert await Relay(db).relay_once(jetstream) == 1
    assert await told(jetstream, teller) == [1, 2]


async def test_a_nudge_saves_the_wait(
    db: Database, jetstream: JetStreamContext, teller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_IDLE_SECONDS", 60)
    await events.declare_stream(jetstream, teller)
    inbox = await jetstream.subscribe(f"stampede.{teller}.>")
    relay = Relay(db)
    running = asyncio.create_task(relay.run(jetstream))
    for number in (1, 2):
        await tell(db, teller, number)
        relay.nudge()
        assert number_of((await inbox.next_msg(timeout=10)).data) == number
    running.cancel()


# Hearing


class Deeds:
    """What a consumer did, and what it fails at."""

    def __init__(self, *poison: int) -> None:
        self.done: list[int] = []
        self.failures: dict[int, list[Exception]] = {number: [ValueError(number)] * 100 for number in poison}
        self._changed = asyncio.Condition()

    async def act(self, _tx: AsyncSession, payloads: Sequence[bytes]) -> None:
        numbers = [number_of(payload) for payload in payloads]
        for number in numbers:
            if self.failures.get(number):
                raise self.failures[number].pop()
        async with self._changed:
            self.done += numbers
            self._changed.notify_all()

    async def until(self, *numbers: int) -> None:
        async with asyncio.timeout(15), self._changed:
            await self._changed.wait_for(lambda: set(numbers) <= set(self.done))


@contextlib.asynccontextmanager
async def consuming(db: Database, jetstream: JetStreamContext, teller: str, deeds: Deeds) -> AsyncIterator[None]:
    consumer = Consumer(f"{teller}-reader", stream=teller, subject=f"stampede.{teller}.>", db=db, act=deeds.act)
    running = asyncio.create_task(consumer.run(jetstream))
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def publish(jetstream: JetStreamContext, teller: str, number: int, event_id: uuid.UUID | None = None) -> None:
    headers = {"Nats-Msg-Id": str(event_id or uuid.uuid4())}
    await jetstream.publish(f"stampede.{teller}.thing.happened", fact(number).SerializeToString(), headers=headers)


async def test_what_is_told_is_heard_in_order(db: Database, jetstream: JetStreamContext, teller: str) -> None:
    await events.declare_stream(jetstream, teller)
    deeds = Deeds()
    async with consuming(db, jetstream, teller, deeds):
        await tell(db, teller, *range(30))
        await Relay(db).relay_once(jetstream)
        await deeds.until(*range(30))
    assert deeds.done == list(range(30))


async def test_an_event_that_comes_twice_is_acted_on_once(
    db: Database, jetstream: JetStreamContext, teller: str
) -> None:
    """The stream is made anew in between, so that it is the consumer who has to know the event."""
    event_id, deeds = uuid.uuid4(), Deeds()
    for number in (1, 2):
        await events.declare_stream(jetstream, teller)
        await publish(jetstream, teller, 0, event_id)
        await publish(jetstream, teller, number)
        async with consuming(db, jetstream, teller, deeds):
            await deeds.until(number)
        await jetstream.delete_stream(teller.upper())
    assert deeds.done == [0, 1, 2]


async def test_a_poison_event_goes_to_the_dead_letters_and_its_neighbours_go_on(
    db: Database, broker: Any, jetstream: JetStreamContext, teller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_ATTEMPTS_MOST", 3)
    monkeypatch.setattr(events, "_RETRY_SECONDS", 0.01)
    await events.declare_stream(jetstream, teller)
    dead = await broker.subscribe(f"dead.{teller}-reader.>")
    for number in range(5):
        await publish(jetstream, teller, number)
    deeds = Deeds(2)
    async with consuming(db, jetstream, teller, deeds):
        await deeds.until(0, 1, 3, 4)
        letter = await dead.next_msg(timeout=15)
        await publish(jetstream, teller, 5)
        await deeds.until(5)
    assert number_of(letter.data) == 2
    assert letter.subject == f"dead.{teller}-reader.stampede.{teller}.thing.happened"
    assert len(deeds.failures[2]) == 100 - 4, "once with its neighbours, three times alone"
    assert sorted(deeds.done) == [0, 1, 3, 4, 5]


async def test_an_event_is_not_poison_because_the_database_is_away(
    db: Database, broker: Any, jetstream: JetStreamContext, teller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_ATTEMPTS_MOST", 2)
    monkeypatch.setattr(events, "_RETRY_SECONDS", 0.01)
    await events.declare_stream(jetstream, teller)
    deeds = Deeds()
    deeds.failures[1] = [OperationalError("SELECT 1", {}, Exception("the server is restarting"))] * 5
    await publish(jetstream, teller, 1)
    async with consuming(db, jetstream, teller, deeds):
        await deeds.until(1)
    assert deeds.done == [1]


async def test_what_fails_leaves_no_trace_that_it_was_seen(
    db: Database, jetstream: JetStreamContext, teller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_RETRY_SECONDS", 0.01)
    await events.declare_stream(jetstream, teller)
    deeds = Deeds()
    deeds.failures[1] = [ValueError("for now")]
    await publish(jetstream, teller, 1)
    async with consuming(db, jetstream, teller, deeds):
        await deeds.until(1)
    assert deeds.done == [1]
