"""The inbox of provider events: each is stored once, answered fast, and applied in batches later.

An event is a hint. It moves no payment: the provider is asked, and its own record does.
"""

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import structlog
from prometheus_client import Counter, Gauge
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.batcher import Batcher
from services.chassis.data.db import Database
from services.chassis.errors import AppError, RateLimited, Unavailable, as_app_error
from services.chassis.events.subscriber import cause_of
from services.payments.dispatch import settle
from services.payments.dispatch.decisions import is_other_amount
from services.payments.dispatch.dispatcher import ChargeDispatcher
from services.payments.domain import (
    EVENT_ATTEMPTS_MOST,
    OPEN,
    OTHER_AMOUNT,
    UNANSWERED_ATTEMPTS_MOST,
    Payment,
    State,
)
from services.payments.providers import PaymentProvider
from services.payments.providers.events import EventKind, ProviderEvent
from services.payments.providers.results import ChargeRecord, ChargeResult, ChargeStatus, Unknown
from services.payments.sql import payments, provider_events
from services.payments.sql.provider_events import Attempt
from services.payments.webhooks.news import Need, need_of
from services.payments.webhooks.reports import Report, apply_reports

log = structlog.get_logger()

_EVENTS = Counter("stampede_provider_events_total", "Events of providers.", ["type", "outcome"])
_WAITING = Gauge("stampede_provider_events_waiting", "Provider events that are not applied yet.")
_OLDEST = Gauge("stampede_provider_events_oldest_seconds", "Age of the oldest provider event that waits.")
_PARKED = Gauge("stampede_provider_events_parked", "Provider events that wait for an operator.")

# Causes with which an event waits for its next attempt.
_UNKNOWN_PAYMENT, _NOT_CONFIRMED, _NOT_PAID_YET = "UNKNOWN_PAYMENT", "NOT_CONFIRMED", "NOT_PAID_YET"
_IN_PROGRESS, _UNANSWERED = "IN_PROGRESS", "PROVIDER_UNAVAILABLE"
# Causes that no further attempt can change.
_UNREADABLE, _OTHER_PAYMENT = "UNREADABLE", "OTHER_PAYMENT"
_NO_SUCH_CHARGE = "NO_SUCH_CHARGE"
_FINAL = frozenset((_UNREADABLE, OTHER_AMOUNT, _OTHER_PAYMENT, _NO_SUCH_CHARGE))
_WITHOUT_MONEY = (State.CANCELLED, State.FAILED)
_BATCH_MOST = 200
_LOOK_UP_SECONDS = 1.5
"""A success waits so long for the provider's word; see `_or_believed`."""


class Inbox:
    """Stores events, each once, and wakes the process that applies them."""

    def __init__(self, db: Database, wake: Callable[[], None]) -> None:
        """`wake` is called when an event waits to be applied."""
        self._db, self._wake = db, wake
        self._put: Batcher[ProviderEvent, None] = Batcher("payments.inbox", self._put_all, lanes=1)

    async def receive(self, provider: PaymentProvider, body: bytes, headers: Mapping[str, Any]) -> None:
        """Verify and store a message of a provider. Raises what `PaymentProvider.verify_webhook` does."""
        try:
            event = provider.verify_webhook(body, headers)
        except AppError as error:
            _EVENTS.labels("other", "refused").inc()
            log.warning("a provider event is refused", reason=error.reason, fields=getattr(error, "violations", None))
            raise
        await self.put(event)

    async def put(self, event: ProviderEvent | None) -> None:
        """Return once the event is stored. A known event is no error; None stands for one that is dropped."""
        if event is None:
            _EVENTS.labels("other", "dropped").inc()
        else:
            await self._put(event)

    async def _put_all(self, events: Sequence[ProviderEvent]) -> list[None]:
        stored = await provider_events.put(self._db, events)
        if stored.waiting:
            self._wake()
        for kind in stored.applied:
            _EVENTS.labels(kind, "applied").inc()
        for kind in stored.unhandled:
            _EVENTS.labels(kind, "unhandled").inc()
        return [None] * len(events)


class Batch(NamedTuple):
    """The result of `apply_events`."""

    size: int
    made_due: bool
    """Whether some payments are now due at the reconciler."""

    @property
    def is_full(self) -> bool:
        """Whether more events may wait."""
        return self.size >= _BATCH_MOST


Records = Mapping[str, ChargeRecord | Unknown | None]
"""The provider's records of charges, by event id."""


async def apply_events(db: Database, dispatcher: ChargeDispatcher) -> Batch:
    """Claim the oldest waiting events and apply them. Any number may run at once."""
    claimed = await provider_events.claim_waiting(db, _BATCH_MOST)
    return Batch(len(claimed), made_due=bool(claimed) and await _apply(db, dispatcher, claimed))


async def _apply(db: Database, dispatcher: ChargeDispatcher, claimed: Sequence[Attempt]) -> bool:
    """Apply claimed events together, or each alone if that fails. Return whether payments are due."""
    try:
        records = await _look_up(db, dispatcher, claimed)
        async with db.begin() as tx:
            made_due, causes = await _apply_to_payments(tx, dispatcher, claimed, records)
            await provider_events.mark(tx, [_outcome(one, causes.get(one.id)) for one in claimed])
        return made_due
    except Exception as error:
        # An unavailable or full database is no fault of an event: the claim ends, and the next attempt follows.
        if isinstance(as_app_error(error), Unavailable | RateLimited):
            raise
        if len(claimed) > 1:
            return any([await _apply(db, dispatcher, [one]) for one in claimed])
        cause = cause_of(error)  # not the error's text, which may quote a statement with its values
        log.error("an event cannot be applied", event_id=claimed[0].id, cause=cause)
        async with db.begin() as tx:
            await provider_events.mark(tx, [_outcome(claimed[0], cause)])
        return False


async def _look_up(db: Database, dispatcher: ChargeDispatcher, claimed: Sequence[Attempt]) -> Records:
    """Ask the provider about the charges of events, each once. No transaction is open meanwhile."""
    async with db() as tx:
        known = await payments.find(tx, *_keys(claimed))
    wanted = [
        (one.event, payment)
        for one in claimed
        if one.event and (payment := _payment_of(one.event, known)) and _need(one, payment) is Need.LOOK_UP
    ]
    tasks = {
        (payment.id, event.look_up_reference): asyncio.ensure_future(_bounded(dispatcher, payment, event))
        for event, payment in {(e.look_up_reference, p.id): (e, p) for e, p in wanted}.values()
    }
    await asyncio.gather(*tasks.values())
    return {
        event.id: _or_believed(event, payment, tasks[payment.id, event.look_up_reference].result())
        for event, payment in wanted
    }


def _or_believed(
    event: ProviderEvent, payment: Payment, record: ChargeRecord | Unknown | None
) -> ChargeRecord | Unknown | None:
    """Return the provider's record; if it does not answer in time, a success of the payment's own charge is believed.

    A customer who has paid must not wait for a slow provider, whose signature says that they have. Nothing else is
    believed: an end without money, a refund, or money of another charge.
    """
    is_own = payment.state in OPEN and event.reference == payment.provider_reference
    if not isinstance(record, Unknown) or event.charge_status is not ChargeStatus.SUCCEEDED or not is_own:
        return record
    log.warning("a success is believed, because the provider does not answer", payment_id=payment.id)
    _EVENTS.labels(event.type, "believed").inc()
    return ChargeRecord(
        payment_id=payment.id,
        result=ChargeResult(
            payment_id=payment.id, status=ChargeStatus.SUCCEEDED, reference=event.reference,
            amount_minor=event.amount_minor, currency=event.currency,
            capture_reference=event.capture_reference or None,
        ),
    )  # fmt: skip


async def _bounded(
    dispatcher: ChargeDispatcher, payment: Payment, event: ProviderEvent
) -> ChargeRecord | Unknown | None:
    try:
        async with asyncio.timeout(_LOOK_UP_SECONDS):
            return await dispatcher.look_up(payment, event.look_up_reference, event.provider)
    except TimeoutError:
        return Unknown()


async def _apply_to_payments(
    tx: AsyncSession, dispatcher: ChargeDispatcher, claimed: Sequence[Attempt], records: Records
) -> tuple[bool, dict[str, str]]:
    """Lock the payments of events and apply what the provider's records show.

    Return whether the reconciler has something to ask now, and the causes, by event id, of events that are not done.
    """
    before = await payments.lock(tx, *_keys(claimed))
    causes = {one.id: _UNREADABLE for one in claimed if one.event is None}
    due, results, reports = set[uuid.UUID](), list[ChargeResult](), list[Report]()
    for one in claimed:
        if (event := one.event) is None:
            continue
        payment = _payment_of(event, before)
        if cause := _objection(event, payment):
            causes[event.id] = cause
            if payment and payment.state in OPEN:
                due.add(payment.id)  # the provider's own answer parks it
            continue
        assert payment
        need = _need(one, payment)
        if need is Need.REPORT:
            reports.append((event, payment))
        elif need is Need.WAIT:
            causes[event.id] = _IN_PROGRESS
        elif need in (Need.CHECK, Need.CHECK_UNTIL_SHOWN):
            due.add(payment.id)
            if dispatcher.is_in_progress(payment.id):
                causes[event.id] = _IN_PROGRESS  # the call may have begun before the event
            elif need is Need.CHECK_UNTIL_SHOWN:
                causes[event.id] = _NOT_CONFIRMED
        elif need is Need.LOOK_UP:
            record = records.get(event.id, _NOT_ASKED)
            if isinstance(record, ChargeRecord) and not (cause := _contradiction(event, payment, record)):
                results.append(replace(record.result, provider=event.provider))
            else:
                causes[event.id] = cause or (_UNANSWERED if record else _NO_SUCH_CHARGE)
    if results:
        before |= await settle.apply_results(tx, {r.payment_id: before[r.payment_id] for r in results}, results)
    await payments.check_now(tx, sorted(due))
    compares = await apply_reports(tx, [(event, before[payment.id]) for event, payment in reports])
    return bool(due) or compares, causes


_NOT_ASKED = Unknown()
"""The payment of an event changed after the look-up."""


def _keys(claimed: Sequence[Attempt]) -> tuple[set[uuid.UUID], set[str], set[str]]:
    events = [one.event for one in claimed if one.event]
    without_id = {e.reference for e in events if e.payment_id is None and e.reference}
    return {e.payment_id for e in events if e.payment_id}, {e.reference for e in events}, without_id


def _need(one: Attempt, payment: Payment) -> Need:
    assert one.event
    return need_of(one.event, payment, earlier_attempts=one.earlier)


def _payment_of(event: ProviderEvent, known: Mapping[uuid.UUID, Payment]) -> Payment | None:
    """Return the payment of the charge that an event names; else the one that the charge's metadata names.

    Razorpay's events have no metadata: there a charge may be one of an earlier attempt.
    """
    own = next((p for p in known.values() if event.reference and event.reference in p.references), None)
    if own is not None:
        return own
    if event.payment_id is not None:
        return known.get(event.payment_id)
    return next((p for p in known.values() if event.reference in p.former_references), None)


def _objection(event: ProviderEvent, payment: Payment | None) -> str | None:
    """Return the cause why an event cannot be used at all."""
    if payment is None:
        return _UNKNOWN_PAYMENT
    if event.kind is not EventKind.CHARGE or payment.state in _WITHOUT_MONEY:
        return None  # money that an ended payment does not count goes back, whatever its amount
    return OTHER_AMOUNT if is_other_amount(payment, event.amount_minor, event.currency, reported=True) else None


def _contradiction(event: ProviderEvent, payment: Payment, record: ChargeRecord) -> str | None:
    """Return the cause why the provider's record of an event's charge does not bear the event out."""
    result = record.result
    if event.reference not in payment.references and record.payment_id != payment.id:
        return _OTHER_PAYMENT
    is_other = is_other_amount(payment, result.amount_minor, result.currency, reported=True)
    if is_other and payment.state not in _WITHOUT_MONEY:
        return OTHER_AMOUNT
    is_true = result.status in (ChargeStatus.SUCCEEDED, event.charge_status)
    # An authorisation that has gone back is no news, and no contradiction.
    return None if is_true or event.charge_status is ChargeStatus.AUTHORISED else _NOT_CONFIRMED


def _outcome(attempt: Attempt, cause: str | None) -> Attempt:
    """Decide whether an event is done. One that cannot be applied is tried again, and parked after its last attempt."""
    most = UNANSWERED_ATTEMPTS_MOST if cause == _UNANSWERED else EVENT_ATTEMPTS_MOST
    done = cause is None or cause in _FINAL or attempt.earlier + 1 >= most
    kind = attempt.event.type if attempt.event else "other"
    _EVENTS.labels(kind, "applied" if not cause else "parked" if done else "later").inc()
    if cause and done:
        log.error("an event is parked", event_id=attempt.id, cause=cause)
    return attempt._replace(error=cause, done=done)


async def watch_events(db: Database) -> int:
    """Update the metrics of the inbox, and have parked events applied whose payments have changed since.

    Return how many those are.
    """
    taken_up = await provider_events.take_up_parked(db)
    counted = await provider_events.count(db)
    _WAITING.set(counted.waiting)
    _PARKED.set(counted.parked)
    _OLDEST.set(counted.oldest_seconds)
    return taken_up
