"""How a provider result changes a payment. Pure."""

import dataclasses
import enum

from services.payments.domain import (
    MISSING_AT_PROVIDER,
    MISSING_CHECKS,
    MOVES,
    OPEN,
    OTHER_AMOUNT,
    Payment,
    State,
)
from services.payments.providers.results import ChargeResult, ChargeStatus

_STATES = {
    ChargeStatus.SUCCEEDED: State.SUCCEEDED,
    ChargeStatus.AUTHORISED: State.PROCESSING,
    ChargeStatus.REQUIRES_ACTION: State.AWAITING_CUSTOMER,
    ChargeStatus.PENDING: State.PROCESSING,
    ChargeStatus.CANCELLED: State.CANCELLED,
}


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
        return payment, Verdict.ACCEPTED
    if result.status in (ChargeStatus.WITHDRAWN, ChargeStatus.MISSING):
        return _without_charge(payment, result.status), Verdict.ACCEPTED
    has_money = result.status in (ChargeStatus.SUCCEEDED, ChargeStatus.AUTHORISED)
    # Of a voided charge the amount means nothing any more.
    other_amount = result.status is not ChargeStatus.CANCELLED and is_other_amount(
        payment, result.amount_minor, result.currency, reported=has_money
    )
    own, reported = payment.provider_reference, result.reference
    is_other_charge = own is not None and reported is not None and own != reported
    if is_other_charge or payment.state not in OPEN:
        if other_amount and _is_counted(payment, result, is_other_charge):
            return payment, Verdict.OTHER_AMOUNT
        return payment, Verdict.STRAY_CHARGE if _is_stray(payment, result, is_other_charge) else Verdict.ACCEPTED
    if other_amount:
        return _with_other_amount(payment, result)
    state = _state_after(payment, result)
    assert state == payment.state or state in MOVES[payment.state], f"{payment.state} to {state}"
    declined = result.status is ChargeStatus.DECLINED
    return dataclasses.replace(
        payment,
        state=state,
        payment_method=None,
        provider_reference=own or reported,
        capture_reference=result.capture_reference,
        client_secret=(result.client_secret or payment.client_secret) if state in OPEN else None,
        failure_reason=result.reason if declined else "" if state is State.SUCCEEDED else payment.failure_reason,
        authenticating=result.authenticating and state is State.AWAITING_CUSTOMER,
        problem="",
        checks=payment.checks if state == payment.state else 0,
    ), Verdict.ACCEPTED


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
    if payment.state not in OPEN or (status is ChargeStatus.WITHDRAWN and payment.provider_reference is not None):
        return payment
    missing = status is ChargeStatus.MISSING
    problem = MISSING_AT_PROVIDER if missing else payment.problem
    if not payment.cancel_requested or (missing and payment.checks < MISSING_CHECKS):
        return dataclasses.replace(payment, problem=problem)
    return dataclasses.replace(
        payment, state=State.CANCELLED, payment_method=None, client_secret=None, authenticating=False, problem=problem,
        failure_reason=problem, checks=0,
    )  # fmt: skip


def is_other_amount(
    payment: Payment, amount_minor: int | None, currency: str | None, *, reported: bool = False
) -> bool:
    """Whether an amount or a currency differs from the payment's; None differs only if it must be `reported`."""
    amount = payment.amount_minor if amount_minor is None and not reported else amount_minor
    code = payment.currency if currency is None and not reported else currency
    return amount != payment.amount_minor or code is None or code.upper() != payment.currency


def _state_after(payment: Payment, result: ChargeResult) -> State:
    if result.status is not ChargeStatus.DECLINED:
        return _STATES[result.status]
    # A customer in the browser may try another card; a card that came with the order is tried once. Without a charge at
    # the provider there is nothing to pay.
    has_charge = payment.provider_reference is not None or result.reference is not None
    tried_once = payment.state is State.PROCESSING and not payment.customer_pays
    return State.FAILED if tried_once or not has_charge else State.AWAITING_CUSTOMER
