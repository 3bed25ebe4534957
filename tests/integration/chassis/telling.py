"""What the tests of events tell, and what came of it."""

from nats.js import JetStreamContext
from sqlalchemy import func, select

from services.chassis.data.db import Database
from services.chassis.events import outbox
from services.chassis.events.outbox import Event, OutboxEvent
from stampede.inventory.v1.events_pb2 import ReservationExpired
from stampede.orders.v1.events_pb2 import OrderChanged

Change = tuple[str, int]
"""The order's name, and the number of the change."""


def fact(number: int) -> ReservationExpired:
    return ReservationExpired(reservation_id=str(number))


def number_of(payload: bytes) -> int:
    return int(ReservationExpired.FromString(payload).reservation_id)


async def tell(db: Database, teller: str, *numbers: int) -> None:
    async with db.begin() as tx:
        await outbox.publish(
            tx, [Event(f"stampede.{teller}.thing.happened", str(number), fact(number)) for number in numbers]
        )


async def tell_changes(db: Database, teller: str, *changes: Change) -> None:
    """Each number of a change has a subject of its own, as each state of an order has."""
    async with db.begin() as tx:
        told = [
            Event(f"stampede.{teller}.order.{number}", order, OrderChanged(order_id=order, version=number))
            for order, number in changes
        ]
        await outbox.publish(tx, told)


async def _payloads(jetstream: JetStreamContext, teller: str) -> list[bytes]:
    state = (await jetstream.stream_info(teller.upper())).state
    found = [await jetstream.get_msg(teller.upper(), seq) for seq in range(state.first_seq, state.last_seq + 1)]
    return [message.data or b"" for message in found]


async def told(jetstream: JetStreamContext, teller: str) -> list[int]:
    """All that the stream holds, in its order."""
    return [number_of(payload) for payload in await _payloads(jetstream, teller)]


async def told_changes(jetstream: JetStreamContext, teller: str) -> list[Change]:
    """As `told`."""
    return [change_of(payload) for payload in await _payloads(jetstream, teller)]


def change_of(payload: bytes) -> Change:
    changed = OrderChanged.FromString(payload)
    return changed.order_id, changed.version


async def waiting(db: Database) -> int:
    async with db() as tx:
        return await tx.scalar(select(func.count()).select_from(OutboxEvent)) or 0
