"""Each event is acted on once and in order; one that cannot be acted on delays no other."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.events import streams, subscriber
from services.chassis.events.outbox import Relay
from services.chassis.events.subscriber import Consumer
from tests.integration.chassis.events.sample_events import message, number_of, store


class Actions:
    """The numbers that a consumer acted on, and its failures to come."""

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
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(lambda: set(numbers) <= set(self.done))


@contextlib.asynccontextmanager
async def consuming(db: Database, jetstream: JetStreamContext, service: str, actions: Actions) -> AsyncIterator[None]:
    consumer = Consumer(f"{service}-reader", stream=service, subject=f"stampede.{service}.>", db=db, act=actions.act)
    running = asyncio.create_task(consumer.run(jetstream))
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def publish(jetstream: JetStreamContext, service: str, number: int, event_id: uuid.UUID | None = None) -> None:
    headers = {"Nats-Msg-Id": str(event_id or uuid.uuid4())}
    await jetstream.publish(f"stampede.{service}.thing.happened", message(number).SerializeToString(), headers=headers)


async def test_events_are_acted_on_in_order(
    db: Database, broker: Client, jetstream: JetStreamContext, service: str
) -> None:
    await streams.declare_streams(jetstream, service)
    actions = Actions()
    async with consuming(db, jetstream, service, actions):
        await store(db, service, *range(30))
        await Relay(db).relay_once(broker, jetstream)
        await actions.until(*range(30))
    assert actions.done == list(range(30))


async def test_event_delivered_twice_is_acted_on_once(db: Database, jetstream: JetStreamContext, service: str) -> None:
    """The stream is made anew in between, so that JetStream does not know the event, and the consumer must."""
    event_id, actions = uuid.uuid4(), Actions()
    for number in (1, 2):
        await streams.declare_streams(jetstream, service)
        await publish(jetstream, service, 0, event_id)
        await publish(jetstream, service, number)
        async with consuming(db, jetstream, service, actions):
            await actions.until(number)
        await jetstream.delete_stream(service.upper())
    assert actions.done == [0, 1, 2]


async def test_poison_event_becomes_a_dead_letter_and_delays_no_other(
    db: Database, broker: Client, jetstream: JetStreamContext, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "_ATTEMPTS_MAX", 3)
    monkeypatch.setattr(subscriber, "_RETRY_SECONDS", 0.01)
    await streams.declare_streams(jetstream, service)
    dead = await broker.subscribe(f"dead.{service}-reader.>")
    for number in range(5):
        await publish(jetstream, service, number)
    actions = Actions(2)
    async with consuming(db, jetstream, service, actions):
        await actions.until(0, 1, 3, 4)
        letter = await dead.next_msg(timeout=15)
        await publish(jetstream, service, 5)
        await actions.until(5)
    assert number_of(letter.data) == 2
    assert letter.subject == f"dead.{service}-reader.stampede.{service}.thing.happened"
    assert len(actions.failures[2]) == 100 - 4, "once with its neighbours, three times alone"
    assert sorted(actions.done) == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("headers", [None, {"Nats-Msg-Id": "not an id"}], ids=["no id", "another id"])
async def test_message_of_a_stranger_delays_no_event(
    db: Database, broker: Client, jetstream: JetStreamContext, service: str, monkeypatch: pytest.MonkeyPatch,
    headers: dict[str, str] | None,
) -> None:  # fmt: skip
    """No outbox has published it, so it has no event id; it stopped its consumer for good."""
    monkeypatch.setattr(subscriber, "_ATTEMPTS_MAX", 2)
    monkeypatch.setattr(subscriber, "_RETRY_SECONDS", 0.01)
    await streams.declare_streams(jetstream, service)
    dead = await broker.subscribe(f"dead.{service}-reader.>")
    await jetstream.publish(f"stampede.{service}.thing.happened", message(0).SerializeToString(), headers=headers)
    await publish(jetstream, service, 1)
    actions = Actions(0)
    async with consuming(db, jetstream, service, actions):
        letter = await dead.next_msg(timeout=15)
        await publish(jetstream, service, 2)
        await actions.until(1, 2)
    assert number_of(letter.data) == 0


async def test_unavailable_database_makes_no_event_a_dead_letter(
    db: Database, broker: Client, jetstream: JetStreamContext, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "_ATTEMPTS_MAX", 2)
    monkeypatch.setattr(subscriber, "_RETRY_SECONDS", 0.01)
    await streams.declare_streams(jetstream, service)
    actions = Actions()
    actions.failures[1] = [OperationalError("SELECT 1", {}, Exception("the server is restarting"))] * 5
    await publish(jetstream, service, 1)
    async with consuming(db, jetstream, service, actions):
        await actions.until(1)
    assert actions.done == [1]


@pytest.mark.parametrize("headers", [None, {"Nats-Msg-Id": "not an id"}], ids=["no id", "malformed id"])
async def test_message_without_an_event_id_stops_no_other(
    db: Database, broker: Client, jetstream: JetStreamContext, service: str, monkeypatch: pytest.MonkeyPatch,
    headers: dict[str, str] | None,
) -> None:  # fmt: skip
    """Somebody published it by hand. It is acted on if it can be, and otherwise becomes a dead letter."""
    monkeypatch.setattr(subscriber, "_ATTEMPTS_MAX", 2)
    monkeypatch.setattr(subscriber, "_RETRY_SECONDS", 0.01)
    await streams.declare_streams(jetstream, service)
    dead = await broker.subscribe(f"dead.{service}-reader.>")
    actions = Actions(7)
    for number in (6, 7):
        said = {"Nats-Msg-Id": f"{headers['Nats-Msg-Id']} {number}"} if headers else None
        payload = message(number).SerializeToString()
        await jetstream.publish(f"stampede.{service}.thing.happened", payload, headers=said)
    await publish(jetstream, service, 8)
    async with consuming(db, jetstream, service, actions):
        await actions.until(6, 8)
        assert number_of((await dead.next_msg(timeout=15)).data) == 7


async def test_failed_event_is_not_recorded_as_seen(
    db: Database, jetstream: JetStreamContext, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "_RETRY_SECONDS", 0.01)
    await streams.declare_streams(jetstream, service)
    actions = Actions()
    actions.failures[1] = [ValueError("for now")]
    await publish(jetstream, service, 1)
    async with consuming(db, jetstream, service, actions):
        await actions.until(1)
    assert actions.done == [1]
