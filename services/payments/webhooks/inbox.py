"""The inbox of provider events: each is stored once, answered fast, and applied in batches later."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from prometheus_client import Counter
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.batcher import Batcher
from services.chassis.data.db import Database
from services.chassis.events import outbox
from services.payments import settle
from services.payments.domain import (
    EVENT_ATTEMPTS_MOST,
    OPEN,
    ChargeResult,
    Payment,
    ProviderEvent,
    State,
    is_other_amount,
    with_refunded,
)
from services.payments.sql import payments, provider_events
from services.payments.sql.provider_events import Attempt

log = structlog.get_logger()

_EVENTS = Counter("stampede_provider_events_total", "Events of providers.", ["type", "outcome"])
_UNKNOWN_PAYMENT, _OTHER_AMOUNT = "UNKNOWN_PAYMENT", "OTHER_AMOUNT"
_NOT_PAID_YET, _REFUND_PENDING = "NOT_PAID_YET", "REFUND_PENDING"
_BATCH_MOST = 200


class Inbox:
    """Stores events, each once, and wakes the process that applies them."""

    def __init__(self, db: Database, wake: Callable[[], None]) -> None:
        """`wake` is called when an event waits to be applied."""
        self._db, self._wake = db, wake
        self._put: Batcher[ProviderEvent, None] = Batcher("payments.inbox", self._put_all, lanes=1)

    async def put(self, event: ProviderEvent | None) -> None:
        """Return once the event is stored. A known event is no error; None stands for one that is dropped."""
        if event is None:
            _EVENTS.labels("other", "dropped").inc()
        else:
            await self._put(event)

    async def _put_all(self, events: Sequence[ProviderEvent]) -> list[None]:
        processed, waiting = await provider_events.put(self._db, events)
        if waiting:
            self._wake()
        for kind in processed:
            _EVENTS.labels(kind, "applied").inc()
        return [None] * len(events)


@dataclass(frozen=True, slots=True)
class Batch:
    """The result of `apply_events`."""

    size: int
    made_due: bool
    """Whether some payments are now due at the reconciler."""

    @property
    def is_full(self) -> bool:
        """Whether more events may wait."""
        return self.size >= _BATCH_MOST


async def apply_events(db: Database) -> Batch:
    """Apply the oldest waiting events and their consequences in one transaction. Any number may run at once."""
    async with db.begin() as tx:
        waiting = await provider_events.claim_waiting(tx, _BATCH_MOST)
        if not waiting:
            return Batch(0, made_due=False)
        events = [one.event for one in waiting]
        before = await payments.lock(tx, {e.payment_id for e in events if e.payment_id}, {e.reference for e in events})
        sorted_ = _sort(events, before)
        after = await settle.apply_results(tx, before, sorted_.results) if sorted_.results else before
        errors = sorted_.errors | await _apply_refunds(tx, after, sorted_.refunds)
        if sorted_.unclear:
            await payments.check_now(tx, sorted(sorted_.unclear))
        await provider_events.mark(tx, [_outcome(one, errors.get(one.event)) for one in waiting])
    return Batch(len(waiting), made_due=bool(sorted_.unclear))


@dataclass(frozen=True, slots=True)
class _Sorted:
    """Events by what is to be done with them."""

    results: list[ChargeResult]
    refunds: list[tuple[ProviderEvent, uuid.UUID]]
    unclear: set[uuid.UUID]
    """Payments whose events may be overtaken by others: the provider is asked about them."""
    errors: dict[ProviderEvent, str]


def _sort(events: Sequence[ProviderEvent], known: dict[uuid.UUID, Payment]) -> _Sorted:
    by_reference = {p.provider_reference: p for p in known.values() if p.provider_reference}
    found = _Sorted([], [], set(), {})
    for event in events:
        payment = by_reference.get(event.reference) or (known.get(event.payment_id) if event.payment_id else None)
        if payment is None:
            found.errors[event] = _UNKNOWN_PAYMENT
        elif is_other_amount(payment, event.amount_minor, event.currency):
            found.errors[event] = _OTHER_AMOUNT
        elif event.refunded_minor is not None:
            found.refunds.append((event, payment.id))
        elif event.charge_status is not None:
            found.results.append(
                ChargeResult(
                    payment_id=payment.id,
                    status=event.charge_status,
                    reference=event.reference,
                    amount_minor=event.amount_minor,
                    currency=event.currency,
                )
            )
        elif payment.state in OPEN and payment.provider_reference is not None:
            found.unclear.add(payment.id)
    return found


async def _apply_refunds(
    tx: AsyncSession, known: dict[uuid.UUID, Payment], refunds: Sequence[tuple[ProviderEvent, uuid.UUID]]
) -> dict[ProviderEvent, str]:
    """Count refunds that were made in the provider's dashboard; return the events that must wait, and why.

    Our own refunds are counted when the provider confirms them, so their events change nothing.
    """
    errors: dict[ProviderEvent, str] = {}
    changed: dict[uuid.UUID, Payment] = {}
    for event, payment_id in refunds:
        payment, total = changed.get(payment_id, known[payment_id]), event.refunded_minor or 0
        if payment.state in OPEN:
            errors[event] = _NOT_PAID_YET
        elif payment.state not in (State.SUCCEEDED, State.REFUNDED) or total <= payment.refunded_minor:
            continue
        elif payment.refunding_minor:
            errors[event] = _REFUND_PENDING
        else:
            changed[payment.id] = with_refunded(payment, total)
    if changed:
        await payments.store(tx, list(changed.values()))
        await outbox.publish(tx, [settle.refunded_event(payment) for payment in changed.values()])
    return errors


def _outcome(attempt: Attempt, error: str | None) -> Attempt:
    """Decide whether an event is done. One that cannot be applied is tried again, and parked after its last attempt."""
    done = error in (None, _OTHER_AMOUNT) or attempt.earlier + 1 >= EVENT_ATTEMPTS_MOST
    _EVENTS.labels(attempt.event.type, "applied" if not error else "parked" if done else "later").inc()
    if error and done:
        log.error("an event is parked", event_id=attempt.event.id, cause=error)
    return attempt._replace(error=error, done=done)
