"""Events for the tests of publishing and consuming, and what a stream holds of them."""

from nats.js import JetStreamContext
from sqlalchemy import text

from services.chassis.data.db import Database
from services.chassis.events import outbox
from services.chassis.events.outbox import Event
from stampede.inventory.v1.events_pb2 import ReservationExpired
from stampede.orders.v1.events_pb2 import OrderChanged

Change = tuple[str, int]
"""The order's name, and the number of the change."""


def message(number: int) -> ReservationExpired:
    return ReservationExpired(reservation_id=str(number))


def number_of(payload: bytes) -> int:
    return int(ReservationExpired.FromString(payload).reservation_id)


def change_of(payload: bytes) -> Change:
    changed = OrderChanged.FromString(payload)
    return changed.order_id, changed.version


async def store(db: Database, service: str, *numbers: int) -> None:
    """Stores one event a number in the outbox, each with a key of its own."""
    async with db.begin() as tx:
        await outbox.publish(tx, [Event(f"stampede.{service}.thing.happened", str(n), message(n)) for n in numbers])


async def store_changes(db: Database, service: str, *changes: Change) -> None:
    """Stores changes of orders. The order is the key; each number has a subject of its own, as each state has."""
    async with db.begin() as tx:
        events = [
            Event(f"stampede.{service}.order.{number}", order, OrderChanged(order_id=order, version=number))
            for order, number in changes
        ]
        await outbox.publish(tx, events)


async def waiting(db: Database) -> int:
    """How many events the outbox holds."""
    async with db() as tx:
        return int(await tx.scalar(text("SELECT count(*) FROM outbox")) or 0)


async def published(jetstream: JetStreamContext, service: str) -> list[bytes]:
    """The payloads in the stream, in its order."""
    state = (await jetstream.stream_info(service.upper())).state
    found = [await jetstream.get_msg(service.upper(), seq) for seq in range(state.first_seq, state.last_seq + 1)]
    return [message.data or b"" for message in found]


async def published_numbers(jetstream: JetStreamContext, service: str) -> list[int]:
    return [number_of(payload) for payload in await published(jetstream, service)]


async def published_changes(jetstream: JetStreamContext, service: str) -> list[Change]:
    return [change_of(payload) for payload in await published(jetstream, service)]
