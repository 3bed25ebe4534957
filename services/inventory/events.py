"""The events that inventory publishes."""

import uuid
from collections.abc import Iterable

from services.chassis.events.outbox import Event
from stampede.inventory.v1 import events_pb2

SOLD_OUT = "stampede.inventory.sale.sold_out"
_AVAILABLE = "stampede.inventory.sale.available"
_EXPIRED = "stampede.inventory.reservation.expired"


def availability_event(sale_id: uuid.UUID, *, sold_out: bool) -> Event:
    """A sale sold out, or has units again."""
    message = events_pb2.SaleAvailabilityChanged(sale_id=str(sale_id), sold_out=sold_out)
    return Event(SOLD_OUT if sold_out else _AVAILABLE, str(sale_id), message)


def expired_events(reservation_ids: Iterable[uuid.UUID]) -> list[Event]:
    """Holds expired before their orders were paid."""
    return [
        Event(_EXPIRED, str(id_), events_pb2.ReservationExpired(reservation_id=str(id_))) for id_ in reservation_ids
    ]


def no_nudge() -> None:
    """Leave new events to the relay, which looks for them every half second."""
