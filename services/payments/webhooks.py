"""Stripe's events: verified, kept in an inbox, and applied in batches."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import stripe
import structlog
from prometheus_client import Counter
from sqlalchemy import Row, or_, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.batcher import Batcher
from services.chassis.data.db import Database, run_autocommit
from services.chassis.errors import InvalidFields
from services.payments import actions, rows, tables
from services.payments.domain import (
    EVENT_ATTEMPTS_MOST,
    OPEN,
    WEBHOOK_BYTES_MOST,
    BadSignature,
    Fact,
    Kind,
    Payment,
    State,
    contradicts,
    event_seconds,
    paid_back,
)
from services.payments.provider import said

log = structlog.get_logger()

_EVENTS = Counter("stampede_provider_events_total", "Events of the provider.", ["type", "outcome"])
_UNKNOWN_PAYMENT, _OTHER_AMOUNT = "UNKNOWN_PAYMENT", "OTHER_AMOUNT"
_NOT_PAID_YET, _REFUND_PENDING = "NOT_PAID_YET", "REFUND_PENDING"
_TOLERANCE_SECONDS = 300
_BATCH_MOST = 200

_SUCCEEDED = "payment_intent.succeeded"
_USED = frozenset((
    _SUCCEEDED, "payment_intent.payment_failed", "payment_intent.canceled",
    "payment_intent.processing", "payment_intent.requires_action", "charge.refunded",
))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event, reduced to what is used."""

    id: str
    payload: dict[str, Any]


def verified(body: bytes, signature: str, secret: str) -> Event | None:
    """The event in a signed body; None for one that is of no use here. Raises `BadSignature`."""
    if len(body) > WEBHOOK_BYTES_MOST:
        raise InvalidFields({"body": f"must have at most {WEBHOOK_BYTES_MOST} bytes"})
    try:
        stripe.WebhookSignature.verify_header(body, signature, secret, _TOLERANCE_SECONDS)
    except (stripe.SignatureVerificationError, UnicodeDecodeError, OverflowError, TypeError):
        raise BadSignature() from None
    try:
        told = orjson.loads(body)
        event_id, kind = str(told["id"]), str(told["type"])
        payload = _reduced(kind, told["data"]["object"]) if kind in _USED else {"reference": None}
        if payload["reference"] is None:  # not used, or a charge that was made without an intent: none of ours
            _EVENTS.labels("other", "dropped").inc()
            return None
        return Event(id=event_id, payload=payload)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise InvalidFields({"body": "must be an event of Stripe"}) from None


def _reduced(kind: str, subject: dict[str, Any]) -> dict[str, Any]:
    charge = kind.startswith("charge.")
    error = subject.get("last_payment_error") or {}
    return {
        "type": kind,
        "reference": subject["payment_intent"] if charge else subject["id"],
        "payment_id": (subject.get("metadata") or {}).get("payment_id"),
        "amount": subject["amount"],
        "currency": subject["currency"],
        "status": subject["status"],
        "refunded": subject["amount_refunded"] if charge else None,
        "code": error.get("code"),
        "decline_code": error.get("decline_code"),
    }


# That a payment has succeeded is old news wherever the provider's own answer was stored before: such events are kept,
# and there is nothing more to do. No lock is needed, as no payment ever returns from there.
_PUT = text("""
    INSERT INTO provider_events (provider, event_id, payload, attempts, processed_time)
    SELECT 'stripe', n.id, n.payload, CASE WHEN p.id IS NULL THEN 0 ELSE 1 END,
        CASE WHEN p.id IS NOT NULL THEN now() END
    FROM jsonb_to_recordset(CAST(:events AS jsonb)) AS n (id text, payload jsonb, payment_id uuid)
    -- Row by row: a plan made while the table was small must not read all of it when it is large.
    LEFT JOIN LATERAL (
        SELECT p.id FROM payments AS p WHERE p.id = n.payment_id AND p.state IN ('SUCCEEDED', 'REFUNDED')
            AND n.payload->>'type' = 'payment_intent.succeeded' AND n.payload->>'status' = 'succeeded'
            AND n.payload->>'reference' = p.provider_reference AND n.payload->'amount' = to_jsonb(p.amount_minor)
            AND upper(n.payload->>'currency') = p.currency LIMIT 1
    ) AS p ON true
    ORDER BY n.id
    ON CONFLICT DO NOTHING
    RETURNING processed_time IS NULL AS news
""")


class Inbox:
    """Keeps events, each once, and sees that they are acted on."""

    def __init__(self, db: Database, nudge: Callable[[], None]) -> None:
        """`nudge` is called when something new is in it."""
        self._db, self._nudge = db, nudge
        self._put: Batcher[Event, None] = Batcher("payments.inbox", self._put_all, lanes=1)

    async def put(self, event: Event) -> None:
        """Returns once the event is stored. One that is known already is no error."""
        await self._put(event)

    async def _put_all(self, events: Sequence[Event]) -> list[None]:
        document = [
            {"id": id_, "payload": payload, "payment_id": _uuid(payload["payment_id"])}
            for id_, payload in {event.id: event.payload for event in events}.items()
        ]
        put = await run_autocommit(self._db, _PUT, {"events": orjson.dumps(document).decode()})
        if news := sum(row.news for row in put):
            self._nudge()
        _EVENTS.labels(_SUCCEEDED, "applied").inc(len(put) - news)
        return [None] * len(events)


@dataclass(frozen=True, slots=True)
class Processed:
    """What a look into the inbox came to."""

    events: int
    look: bool
    """The provider is to be asked about some payment at once."""

    @property
    def more(self) -> bool:
        return self.events >= _BATCH_MOST


async def process(db: Database) -> Processed:
    """Applies the oldest waiting events, and what they change, in one transaction. Any number may do this at once."""
    async with db.begin() as tx:
        events = await _waiting(tx)
        if not events:
            return Processed(0, look=False)
        before = await _payments_of(tx, [event.payload for event in events])
        by_reference = {p.provider_reference: p for p in before.values() if p.provider_reference}
        facts: list[Fact] = []
        look: set[uuid.UUID] = set()
        problems: dict[str, str] = {}
        refunds: list[tuple[str, Payment, int]] = []
        for event in events:
            told = event.payload
            payment = by_reference.get(told["reference"]) or before.get(_uuid(told["payment_id"]))
            if payment is None:
                problems[event.event_id] = _UNKNOWN_PAYMENT
            elif contradicts(payment, told["amount"], told["currency"]):
                problems[event.event_id] = _OTHER_AMOUNT
            elif told["type"] == "charge.refunded":
                refunds.append((event.event_id, payment, told["refunded"]))
            elif (fact := _fact(payment, told)) is not None:
                facts.append(fact)
            elif payment.state in OPEN and payment.provider_reference is not None:
                look.add(payment.id)  # such events may be overtaken by others: the provider knows how it stands
        after = await actions.apply(tx, before, facts) if facts else before
        problems |= await _apply_refunds(tx, after, refunds)
        if look:
            await rows.look_now(tx, sorted(look))
        await _mark(tx, events, problems)
    return Processed(len(events), look=bool(look))


async def _waiting(tx: AsyncSession) -> Sequence[Row[Any]]:
    event = tables.ProviderEvent
    found = await tx.execute(
        select(event.event_id, event.payload, event.attempts)
        .where(event.processed_time.is_(None), event.next_try_time <= text("now()"))
        .order_by(event.next_try_time)
        .limit(_BATCH_MOST)
        .with_for_update(skip_locked=True)
    )
    return found.all()


async def _payments_of(tx: AsyncSession, payloads: Sequence[dict[str, Any]]) -> dict[uuid.UUID, Payment]:
    ids = {key for told in payloads if (key := _uuid(told["payment_id"])).int}
    references = {told["reference"] for told in payloads if told["reference"]}
    table = tables.Payment
    found = await tx.execute(
        select(*rows.PAYMENT)
        .where(or_(table.id.in_(ids), table.provider_reference.in_(references)))
        .order_by(table.id)
        .with_for_update()
    )
    return {row.id: rows.payment(row) for row in found}


def _uuid(value: object) -> uuid.UUID:
    """The id that an event's metadata names; the nil UUID where that is none of ours."""
    try:
        return uuid.UUID(str(value))
    except ValueError:
        return uuid.UUID(int=0)


def _fact(payment: Payment, told: dict[str, Any]) -> Fact | None:
    """What an event proves. None where it may be overtaken: only an intent's two ends never change again."""
    fact = said(
        payment.id, status=told["status"], reference=told["reference"], client_secret=None, amount=told["amount"],
        currency=told["currency"], error=(told["code"], told["decline_code"]),
    )  # fmt: skip
    return fact if fact.kind in (Kind.SUCCEEDED, Kind.CANCELLED) else None


async def _apply_refunds(
    tx: AsyncSession, payments: dict[uuid.UUID, Payment], refunds: Sequence[tuple[str, Payment, int]]
) -> dict[str, str]:
    """Counts what was paid back in the provider's dashboard; returns the events that must wait, and why.

    What we paid back ourselves is counted when the provider confirms it, so its events find nothing to do.
    """
    problems: dict[str, str] = {}
    changed: dict[uuid.UUID, Payment] = {}
    for event_id, told_of, total in refunds:
        payment = changed.get(told_of.id, payments[told_of.id])
        if payment.state in OPEN:
            problems[event_id] = _NOT_PAID_YET
        elif payment.state not in (State.SUCCEEDED, State.REFUNDED) or total <= payment.refunded_minor:
            continue
        elif payment.refunding_minor:
            problems[event_id] = _REFUND_PENDING
        else:
            changed[payment.id] = paid_back(payment, total)
    if changed:
        await rows.store(tx, list(changed.values()))
        await actions.tell_refunded(tx, list(changed.values()))
    return problems


async def _mark(tx: AsyncSession, events: Sequence[Row[Any]], problems: dict[str, str]) -> None:
    """Notes events as done, or when to try those again that could not be placed. After the last try they are parked."""
    outcomes = [problems.get(event.event_id) for event in events]
    done = [
        error in (None, _OTHER_AMOUNT) or event.attempts + 1 >= EVENT_ATTEMPTS_MOST
        for event, error in zip(events, outcomes, strict=True)
    ]
    await tx.execute(
        text(
            "UPDATE provider_events AS e SET attempts = e.attempts + 1, error = n.error,"
            " processed_time = CASE WHEN n.done THEN now() END,"
            " next_try_time = now() + make_interval(secs => n.pause * (0.75 + random() / 2))"
            " FROM unnest(CAST(:ids AS text[]), CAST(:errors AS text[]), CAST(:done AS boolean[]),"
            " CAST(:pauses AS double precision[])) AS n(id, error, done, pause)"
            " WHERE e.provider = 'stripe' AND e.event_id = n.id"
        ),
        {
            "ids": [event.event_id for event in events],
            "errors": outcomes,
            "done": done,
            "pauses": [event_seconds(event.attempts) for event in events],
        },
    )
    for event, error, ended in zip(events, outcomes, done, strict=True):
        _EVENTS.labels(event.payload["type"], "applied" if not error else "parked" if ended else "later").inc()
        if error and ended:
            log.error("an event was given up", event_id=event.event_id, cause=error)
