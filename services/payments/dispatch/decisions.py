"""How a provider result changes a payment. Pure."""

import dataclasses
import enum

from services.payments.dispatch import attempts
from services.payments.domain import (
    AUTHORIZATION_ENDED,
    MISSING_AT_PROVIDER,
    MISSING_CHECKS,
    MOVES,
    OPEN,
    OTHER_AMOUNT,
    Capture,
    Payment,
    State,
    Terms,
)
from services.payments.providers.results import ChargeResult, ChargeStatus

_STATES = {
    ChargeStatus.SUCCEEDED: State.SUCCEEDED,
    ChargeStatus.AUTHORISED: State.PROCESSING,
    ChargeStatus.REQUIRES_ACTION: State.AWAITING_CUSTOMER,
    ChargeStatus.PENDING: State.PROCESSING,
    ChargeStatus.CANCELLED: State.CANCELLED,
}


_UNPAID = (State.AWAITING_CUSTOMER, State.PROCESSING)
_AFTER_AUTHORISED = (ChargeStatus.SUCCEEDED, ChargeStatus.CANCELLED)


class Verdict(enum.Enum):
    """The finding of `decide` about a result, besides the payment's new state."""

    ACCEPTED = enum.auto()
    OTHER_AMOUNT = enum.auto()
    """Its amount or currency is not the payment's, so it does not count. An operator must look at an open payment."""
    STRAY_CHARGE = enum.auto()
    """Money arrived that the payment does not count, because it has ended or is not wanted; it must be refunded."""


def decide(payment: Payment, result: ChargeResult) -> tuple[Payment, Verdict]:
    """Return the payment after `result`. Results may come twice, late and in any order; none moves a payment back."""
    if result.status is ChargeStatus.UNKNOWN:
        is_parked = result.problem and payment.state in OPEN
        return dataclasses.replace(payment, problem=result.problem) if is_parked else payment, Verdict.ACCEPTED
    if result.status in (ChargeStatus.WITHDRAWN, ChargeStatus.MISSING):
        return _without_charge(payment, result.status), Verdict.ACCEPTED
    has_money = result.status in (ChargeStatus.SUCCEEDED, ChargeStatus.AUTHORISED)
    # Of a voided charge the amount means nothing any more.
    other_amount = result.status is not ChargeStatus.CANCELLED and is_other_amount(
        payment, result.amount_minor, result.currency, reported=has_money
    )
    own, reported = payment.provider_reference, result.reference
    is_other_charge = _is_other_charge(payment, result)
    if is_other_charge or payment.state not in OPEN:
        if other_amount and _is_counted(payment, result, is_other_charge):
            return payment, Verdict.OTHER_AMOUNT
        return payment, Verdict.STRAY_CHARGE if _is_stray(payment, result, is_other_charge) else Verdict.ACCEPTED
    if other_amount:
        return _with_other_amount(payment, result)
    if payment.state is State.AUTHORIZED and result.status not in _AFTER_AUTHORISED:
        return payment, Verdict.ACCEPTED  # it is still set aside, or the result is older than that
    state = _state_after(payment, result)
    assert state == payment.state or state in MOVES[payment.state], f"{payment.state} to {state}"
    after = dataclasses.replace(
        payment,
        state=state,
        payment_method=None,
        provider_reference=own or reported,
        capture_reference=result.capture_reference,
        checkout_reference=payment.checkout_reference or result.checkout_reference,
        checkout_url=_page_after(payment, result) if state is State.AWAITING_CUSTOMER else None,
        client_secret=(result.client_secret or payment.client_secret) if state in _UNPAID else None,
        failure_reason=_failure_after(payment, result, state),
        authenticating=result.authenticating and state is State.AWAITING_CUSTOMER,
        problem="",
        checks=payment.checks if state == payment.state else 0,
    )
    return _with_attempts(payment, after), Verdict.ACCEPTED


def _failure_after(payment: Payment, result: ChargeResult, state: State) -> str:
    if result.status is ChargeStatus.DECLINED:
        return result.reason
    if payment.state is State.AUTHORIZED and state is State.CANCELLED and payment.capture is not Capture.VOID:
        return AUTHORIZATION_ENDED
    return "" if state in (State.SUCCEEDED, State.AUTHORIZED) else payment.failure_reason


def _page_after(payment: Payment, result: ChargeResult) -> str | None:
    """Return the address at which the customer can pay; a result about a page that has ended has none."""
    return result.checkout_url if result.checkout_reference else payment.checkout_url


def _is_other_charge(payment: Payment, result: ChargeResult) -> bool:
    """Whether a result is about another charge or page than those of the attempt in progress."""
    pairs = (
        (payment.provider_reference, result.reference), (payment.checkout_reference, result.checkout_reference),
    )  # fmt: skip
    others = [theirs for own, theirs in pairs if theirs and own not in (None, theirs)]
    return bool(others) or any(theirs in payment.former_references for _, theirs in pairs)


def _with_attempts(before: Payment, after: Payment) -> Payment:
    """Return the payment after a result, with the attempt that begins because of it, if any."""
    if before.next_terms and not before.cancel_requested:
        return attempts.go_on(before, after)
    on_page = before.terms is not None and before.terms.checkout
    asked_for = before.terms and (before.payment_method or on_page)
    is_refused = after.state is State.FAILED and asked_for and not after.is_begun
    page_ended = after.state is State.CANCELLED and on_page and not before.cancel_requested
    if is_refused or page_ended:
        # The provider refused the card or the page itself, or people have ended the page there. The customer goes on in
        # the browser; their units stay held.
        plain = Terms(number=before.order_attempt, provider=before.provider)
        return attempts.begin(after, plain, failure_reason=after.failure_reason)
    return after


def _with_other_amount(payment: Payment, result: ChargeResult) -> tuple[Payment, Verdict]:
    """Return an open payment whose charge has another amount: parked, or ended once that money is not wanted anyway."""
    if result.status is not ChargeStatus.SUCCEEDED or not payment.cancel_requested:
        return dataclasses.replace(payment, problem=OTHER_AMOUNT), Verdict.OTHER_AMOUNT
    return dataclasses.replace(
        payment, state=State.CANCELLED, payment_method=None, client_secret=None, authenticating=False, problem="",
        failure_reason=OTHER_AMOUNT, provider_reference=payment.provider_reference or result.reference, checks=0,
    ), Verdict.STRAY_CHARGE  # fmt: skip


def _is_counted(payment: Payment, result: ChargeResult, is_other_charge: bool) -> bool:
    """Whether a result is about the money that an ended payment counts."""
    captured = result.capture_reference
    is_other_money = captured is not None and payment.capture_reference not in (None, captured)
    return payment.state in (State.SUCCEEDED, State.REFUNDED) and not is_other_charge and not is_other_money


def _is_stray(payment: Payment, result: ChargeResult, is_other_charge: bool) -> bool:
    """Whether money arrived that the payment does not count.

    Where one charge may be paid twice, its money has a reference of its own. There, money that is only authorised goes
    back too: such a provider cannot void it.
    """
    is_held = result.status is ChargeStatus.AUTHORISED and result.capture_reference is not None
    has_money = result.status is ChargeStatus.SUCCEEDED or is_held
    return has_money and not _is_counted(payment, result, is_other_charge)


def _without_charge(payment: Payment, status: ChargeStatus) -> Payment:
    """Return a payment that the provider has no charge for: it ends if that was requested."""
    if payment.state not in OPEN or (status is ChargeStatus.WITHDRAWN and payment.is_begun):
        return payment
    missing = status is ChargeStatus.MISSING
    problem = MISSING_AT_PROVIDER if missing else payment.problem
    gives_way = payment.cancel_requested or payment.next_terms
    if not gives_way or (missing and payment.checks < MISSING_CHECKS):
        return dataclasses.replace(payment, problem=problem)
    after = dataclasses.replace(
        payment, state=State.CANCELLED, payment_method=None, client_secret=None, checkout_url=None,
        authenticating=False, problem=problem, failure_reason=problem, checks=0,
    )  # fmt: skip
    return _with_attempts(payment, after)


def is_other_amount(
    payment: Payment, amount_minor: int | None, currency: str | None, *, reported: bool = False
) -> bool:
    """Whether an amount or a currency differs from the payment's; None differs only if it must be `reported`."""
    amount = payment.amount_minor if amount_minor is None and not reported else amount_minor
    code = payment.currency if currency is None and not reported else currency
    return amount != payment.amount_minor or code is None or code.upper() != payment.currency


def _state_after(payment: Payment, result: ChargeResult) -> State:
    if result.status is ChargeStatus.AUTHORISED and payment.capture is not Capture.AUTOMATIC:
        return State.AUTHORIZED
    if result.status is not ChargeStatus.DECLINED:
        return _STATES[result.status]
    # A customer in the browser may try another card; a card that came with the order is tried once. Without a charge at
    # the provider there is nothing to pay.
    has_charge = payment.is_begun or result.reference is not None or result.checkout_reference is not None
    tried_once = payment.state is State.PROCESSING and not payment.customer_pays
    return State.FAILED if tried_once or not has_charge else State.AWAITING_CUSTOMER
