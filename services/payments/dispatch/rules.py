"""Which provider call comes next, and when a call without an answer is repeated. Pure."""

import enum
from datetime import timedelta

from services.payments.domain import (
    LEASE_SECONDS,
    OPEN,
    PROVIDER_NOT_SET_UP,
    Calls,
    Capture,
    Payment,
    Refund,
    RefundState,
    State,
)

LOOK_UP_AFTER_CHECKS = 6
"""After this many calls under one key without an answer, the provider's records are searched instead."""

REFUND_KEYS_MOST = 3
"""A refund that the provider does not take under so many keys is parked for an operator."""

_OVER = timedelta(seconds=30)
_LISTED_AFTER = timedelta(seconds=60)
_DELAYED_MOST = timedelta(minutes=10)
_PARKED_SECONDS = 600.0
_PROCESSING_SECONDS = (1.0, 60.0)
_AWAITING_SECONDS = (60.0, 3600.0)
_CANCELLING_SECONDS = (1.0, 60.0)
_EVENT_SECONDS = (1.0, 600.0)


class Operation(enum.Enum):
    """The calls of a provider about a payment; see `PaymentProvider`."""

    CREATE = enum.auto()
    FIND = enum.auto()
    CONFIRM = enum.auto()
    CAPTURE = enum.auto()
    VOID = enum.auto()
    RETRIEVE = enum.auto()


def next_operation(payment: Payment, *, key_expired: bool = False, can_void: bool = True) -> Operation:
    """Return the next provider call for an open payment. `key_expired`: the provider may have forgotten the key.

    Without `can_void`, money that is authorised can only be captured, and then refunded.
    """
    if not payment.is_begun:
        if payment.cancel_requested:
            return Operation.FIND  # a repeat under the key could take money
        # Every second time only: while the provider is unavailable, nothing but a repeat under the key can charge.
        look_up = payment.checks >= LOOK_UP_AFTER_CHECKS and payment.checks % 2 == 0
        return Operation.FIND if key_expired or look_up else Operation.CREATE
    stuck = payment.checks >= LOOK_UP_AFTER_CHECKS and payment.checks % 2 == 0
    gives_way = payment.cancel_requested or payment.next_terms is not None
    authorised = payment.capture_reference is not None
    if payment.state is State.AUTHORIZED:
        if payment.waits_for_staff:
            return Operation.RETRIEVE  # it may have lapsed
        authorised, gives_way = True, payment.capture is Capture.VOID
    if authorised and not (gives_way and can_void):
        return Operation.RETRIEVE if stuck else Operation.CAPTURE
    if gives_way:
        return Operation.VOID
    # Safe without a key too: an intent takes money once, and then refuses to be confirmed again.
    return Operation.CONFIRM if payment.payment_method and not stuck else Operation.RETRIEVE


def is_over(calls: Calls) -> bool:
    """Whether no earlier call can still take money, as far as can be known: its connection was closed long ago.

    If one does nevertheless, its charge is a stray one, and is refunded.
    """
    return calls.unanswered_age is None or calls.unanswered_age > _OVER


class RefundOperation(enum.Enum):
    """The calls of a provider about a refund."""

    CREATE = enum.auto()
    FIND = enum.auto()
    RETRIEVE = enum.auto()


def next_refund_operation(refund: Refund, *, key_expired: bool = False) -> RefundOperation:
    """Return the next provider call for a pending refund."""
    if refund.provider_reference is not None:
        return RefundOperation.RETRIEVE
    stuck = refund.checks >= LOOK_UP_AFTER_CHECKS and refund.checks % 2 == 0
    return RefundOperation.FIND if key_expired or stuck or _is_refused(refund) else RefundOperation.CREATE


def _is_refused(refund: Refund) -> bool:
    """Whether it is parked for what its provider does: more calls change little."""
    return refund.problem not in ("", PROVIDER_NOT_SET_UP)


def may_change_key(refund: Refund, calls: Calls) -> bool:
    """Whether a refund that the provider's list lacks may get a new key: no call under the old one can take effect.

    A minute after the last one that was answered, its effect would be listed. One without an answer may be delayed.
    """
    quiet = calls.unanswered_age is None or calls.unanswered_age > _DELAYED_MOST
    return quiet and calls.key_age > _LISTED_AFTER and refund.attempt < REFUND_KEYS_MOST


def check_seconds(payment: Payment) -> float | None:
    """Return the pause before the reconciler asks the provider again; None once the payment has ended."""
    if payment.state not in OPEN:
        return None
    if payment.state is State.PROCESSING:
        is_leased = payment.latest_order_attempt and not payment.checks  # a new attempt, whose call is made at once
        return LEASE_SECONDS if is_leased else backoff(payment.checks, _PROCESSING_SECONDS)
    hurries = not payment.waits_for_staff if payment.state is State.AUTHORIZED else payment.cancel_requested
    return backoff(payment.checks, _CANCELLING_SECONDS if hurries else _AWAITING_SECONDS)


def refund_check_seconds(refund: Refund) -> float | None:
    """Return the pause before the reconciler repeats a refund; None once it has ended."""
    if _is_refused(refund) and refund.state is RefundState.PENDING:
        return _PARKED_SECONDS
    return backoff(refund.checks, _PROCESSING_SECONDS) if refund.state is RefundState.PENDING else None


def event_seconds(attempts: int) -> float:
    """Return the pause before an event that could not be applied is tried again."""
    return backoff(attempts, _EVENT_SECONDS)


def backoff(tries: int, bounds: tuple[float, float]) -> float:
    """Double the pause with each try, within the bounds. The database adds the jitter."""
    least, most = bounds
    return min(least * 2.0 ** min(tries, 30), most)
