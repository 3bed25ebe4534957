"""What is heard is acted on once, in order; what cannot be acted on holds nothing up."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from nats.js import JetStreamContext
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.events.outbox import Relay
from services.chassis.events.publishing import Publisher
from services.chassis.events.subscriber import Consumer, subscriber
from tests.integration.chassis.telling import fact, number_of, tell


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


async def test_what_is_told_is_heard_in_order(
    db: Database, broker: Any, jetstream: JetStreamContext, teller: str
) -> None:
    await subscriber.declare_stream(jetstream, teller)
    deeds = Deeds()
    async with consuming(db, jetstream, teller, deeds):
        await tell(db, teller, *range(30))
        async with Publisher(broker) as publisher:
            await Relay(db).relay_once(publisher)
        await deeds.until(*range(30))
    assert deeds.done == list(range(30))


async def test_an_event_that_comes_twice_is_acted_on_once(
    db: Database, jetstream: JetStreamContext, teller: str
) -> None:
    """The stream is made anew in between, so that it is the consumer who has to know the event."""
    event_id, deeds = uuid.uuid4(), Deeds()
    for number in (1, 2):
        await subscriber.declare_stream(jetstream, teller)
        await publish(jetstream, teller, 0, event_id)
        await publish(jetstream, teller, number)
        async with consuming(db, jetstream, teller, deeds):
            await deeds.until(number)
        await jetstream.delete_stream(teller.upper())
    assert deeds.done == [0, 1, 2]


async def test_a_poison_event_goes_to_the_dead_letters_and_its_neighbours_go_on(
    db: Database, broker: Any, jetstream: JetStreamContext, teller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "_ATTEMPTS_MOST", 3)
    monkeypatch.setattr(subscriber, "_RETRY_SECONDS", 0.01)
    await subscriber.declare_stream(jetstream, teller)
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
    monkeypatch.setattr(subscriber, "_ATTEMPTS_MOST", 2)
    monkeypatch.setattr(subscriber, "_RETRY_SECONDS", 0.01)
    await subscriber.declare_stream(jetstream, teller)
    deeds = Deeds()
    deeds.failures[1] = [OperationalError("SELECT 1", {}, Exception("the server is restarting"))] * 5
    await publish(jetstream, teller, 1)
    async with consuming(db, jetstream, teller, deeds):
        await deeds.until(1)
    assert deeds.done == [1]


async def test_what_fails_leaves_no_trace_that_it_was_seen(
    db: Database, jetstream: JetStreamContext, teller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "_RETRY_SECONDS", 0.01)
    await subscriber.declare_stream(jetstream, teller)
    deeds = Deeds()
    deeds.failures[1] = [ValueError("for now")]
    await publish(jetstream, teller, 1)
    async with consuming(db, jetstream, teller, deeds):
        await deeds.until(1)
    assert deeds.done == [1]
