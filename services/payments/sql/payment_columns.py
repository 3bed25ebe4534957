"""The columns of the table `payments`: read as values, and written by the statements of `payments`."""

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import Row

from services.chassis import ids
from services.chassis.events.outbox import Event
from services.payments.dispatch.rules import check_seconds
from services.payments.domain import LEASE_SECONDS, OPEN, Calls, Capture, Charge, Payment, State, Terms
from services.payments.sql import schema

NAMES = tuple(field.name for field in dataclasses.fields(Payment))
COLUMNS = tuple(getattr(schema.Payment, name) for name in NAMES)


def from_row(row: Sequence[Any]) -> Payment:
    """Return a row of `COLUMNS` as a value."""
    values = dict(zip(NAMES, row, strict=True))
    values["state"] = State(values["state"])
    values["capture"] = Capture(values["capture"])
    values["former_references"] = tuple(values["former_references"])
    for name in ("terms", "next_terms"):
        if values[name] is not None:
            values[name] = Terms(**values[name])
    return Payment(**values)


def to_insert(fresh: Mapping[uuid.UUID, Charge], state: State, provider: str, capture: Capture) -> dict[str, object]:
    """Return the arguments of the statement that inserts payments."""
    document = [
        {
            "id": id_, "order_id": charge.order_id, "customer_id": charge.customer_id, "amount": charge.amount.minor,
            "currency": charge.amount.currency, "method": charge.payment_method or None,
            "hold_end": charge.hold_expire_time, **({"terms": charge.terms} if charge.terms else {}),
        }
        for id_, charge in fresh.items()
    ]  # fmt: skip
    return {
        "charges": orjson.dumps(document).decode(), "state": str(state), "provider": provider,
        "is_open": state in OPEN, "lease": LEASE_SECONDS, "capture": capture,
    }  # fmt: skip


def inserted(
    fresh: Mapping[uuid.UUID, Charge], rows: Sequence[Row[Any]], state: State, provider: str, capture: Capture
) -> dict[uuid.UUID, Payment]:
    """Build the payments that the statement wrote, without reading them back."""
    is_open = state in OPEN
    made = {}
    for row in rows:
        charge, time, terms = fresh[row.id], row.create_time, fresh[row.id].terms
        made[charge.order_id] = Payment(
            id=row.id, order_id=charge.order_id, customer_id=charge.customer_id, amount_minor=charge.amount.minor,
            currency=charge.amount.currency, state=state, provider=terms.provider if terms else provider,
            customer_pays=not charge.payment_method or terms is not None, terms=terms,
            order_attempt=terms.number if terms else 0, latest_order_attempt=terms.number if terms else 0,
            payment_method=(charge.payment_method or None) if is_open else None, provider_reference=None,
            client_secret=None, attempt=1, failure_reason=terms.refusal if terms else "", authenticating=False,
            refunded_minor=0, refunding_minor=0, cancel_requested=not is_open, problem="", checks=0, version=1,
            create_time=time, update_time=time, hold_expire_time=charge.hold_expire_time, capture=capture,
        )  # fmt: skip
    return made


# The columns that results change. One list for both statements that store them, so that they cannot differ.
RECORD = """
    id uuid, version bigint, state text, method text, reference text, capture text, secret text, reason text,
    authenticating boolean, refunded bigint, refunding bigint, problem text, checks bigint, pause double precision,
    bump int, has_ended boolean, unanswered double precision, answered boolean, event_id uuid, subject text, key text,
    event bytea
"""
SET = """
    state = n.state, payment_method = n.method, provider_reference = n.reference, capture_reference = n.capture,
    client_secret = n.secret, failure_reason = n.reason, authenticating = n.authenticating, refunded_minor = n.refunded,
    refunding_minor = n.refunding, problem = n.problem, checks = n.checks, version = p.version + n.bump,
    update_time = CASE n.bump WHEN 1 THEN now() ELSE p.update_time END,
    answer_time = CASE WHEN n.answered THEN now() ELSE p.answer_time END,
    next_check_time = now() + make_interval(secs => n.pause * (0.75 + random() / 2)),
    authorize_time = CASE WHEN n.state = 'AUTHORIZED' THEN coalesce(p.authorize_time, now()) ELSE p.authorize_time END
"""
_UNANSWERED = "CASE WHEN n.has_ended THEN now() - make_interval(secs => n.unanswered) ELSE p.unanswered_time END"
SET_CALLS = f"unanswered_time = {_UNANSWERED}"
# Those that another attempt changes; its first call counts as one without an answer until that is stored.
ATTEMPT_RECORD = """
    provider text, customer_pays boolean, attempt bigint, order_attempt integer, latest_order_attempt integer,
    terms jsonb, next_terms jsonb, former_references text[], checkout_reference text, checkout_url text
"""
SET_ATTEMPT = f"""
    provider = n.provider, customer_pays = n.customer_pays, attempt = n.attempt, order_attempt = n.order_attempt,
    latest_order_attempt = n.latest_order_attempt, terms = n.terms, next_terms = n.next_terms,
    former_references = n.former_references, checkout_reference = n.checkout_reference, checkout_url = n.checkout_url,
    attempt_time = CASE WHEN n.attempt = p.attempt THEN p.attempt_time ELSE now() END,
    sent = p.sent OR n.attempt <> p.attempt,
    unanswered_time = CASE WHEN n.attempt = p.attempt THEN {_UNANSWERED} ELSE now() END
"""
_ATTEMPT_NAMES = (
    "provider", "customer_pays", "attempt", "order_attempt", "latest_order_attempt", "terms", "next_terms",
    "former_references", "checkout_reference", "checkout_url",
)  # fmt: skip


def is_of_attempt(before: Payment, after: Payment) -> bool:
    """Whether the columns of attempts change, so that the fast statement does not store all of it."""
    return any(getattr(before, name) != getattr(after, name) for name in _ATTEMPT_NAMES)


def to_record(
    after: Payment,
    *,
    bump: int = 1,
    calls: Calls | None = None,
    answered: bool = False,
    event: Event | None = None,
) -> dict[str, object]:
    """Return a payment as a record of `RECORD`.

    `calls` are those before its last one, which has ended for sure. `answered`: the provider has answered about it.
    """
    age = calls.unanswered_age if calls else None
    subject, key, message = event or (None, None, None)
    return {
        "id": after.id, "version": after.version, "state": after.state, "method": after.payment_method,
        "reference": after.provider_reference, "capture": after.capture_reference,
        "secret": after.client_secret, "reason": after.failure_reason,
        "authenticating": after.authenticating, "refunded": after.refunded_minor, "refunding": after.refunding_minor,
        "problem": after.problem, "checks": after.checks, "pause": check_seconds(after), "bump": bump,
        "has_ended": calls is not None, "unanswered": age.total_seconds() if age is not None else None,
        "answered": answered, "event_id": ids.new() if message else None, "subject": subject, "key": key,
        "event": f"\\x{message.SerializeToString().hex()}" if message else None,
    }  # fmt: skip


def to_attempt_record(after: Payment) -> dict[str, object]:
    """Return a payment as a record of `ATTEMPT_RECORD`."""
    return {name: getattr(after, name) for name in _ATTEMPT_NAMES}
