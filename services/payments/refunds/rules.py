"""How refunds change a payment, and how the provider's list of refunds is compared with ours. Pure."""

import dataclasses
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.chassis.errors import AppError, InvalidFields, WrongState
from services.chassis.money import Money, check_chargeable
from services.payments.domain import Payment, Refund, RefundState, RefundTooLarge, Settlement, State
from services.payments.providers.results import ProviderRefund

DISPLACED = "CHARGE_ALREADY_REFUNDED"
FAILED_LATER = "FAILED_AFTER_SUCCESS"
_EXTERNAL = "made at the provider"


class PaymentNotCaptured(AppError):
    code = "FAILED_PRECONDITION"
    template = "The money of the payment {paymentId} is only set aside: capture it, or void it."


def refundable_minor(payment: Payment, amount: Money | None) -> int:
    """Return the minor units that a refund of `amount` takes; without `amount`, all that is left.

    Raises `PaymentNotCaptured`, `WrongState`, `InvalidFields` or `RefundTooLarge` if the refund is not allowed.
    """
    if payment.state is State.AUTHORIZED:
        raise PaymentNotCaptured(paymentId=payment.id)
    if payment.state not in (State.SUCCEEDED, State.REFUNDED):
        raise WrongState(resource="payment", state=payment.state, wanted=State.REFUNDED)
    if amount is not None and amount.minor < 1:
        raise InvalidFields({"amount.minorUnits": "must be at least 1"})
    if amount is not None and amount.currency != payment.currency:
        raise InvalidFields({"amount.currencyCode": f"must be {payment.currency}, the payment's"})
    if amount is not None:
        check_chargeable(amount, "amount")
    minor = payment.left_minor if amount is None else amount.minor
    if minor > payment.left_minor or minor == 0:
        raise RefundTooLarge(leftMinorUnits=payment.left_minor)
    return minor


def after_refund(payment: Payment, refund: Refund, outcome: RefundState) -> Payment:
    """Return the payment after its pending `refund` has ended with `outcome`."""
    if refund.stray:
        return payment
    total = payment.refunded_minor + (refund.amount_minor if outcome is RefundState.SUCCEEDED else 0)
    payment = with_refunded(payment, total)
    return dataclasses.replace(payment, refunding_minor=payment.refunding_minor - refund.amount_minor)


def with_refunded(payment: Payment, total_minor: int) -> Payment:
    """Return the payment once refunds of `total_minor` are confirmed.

    A full refund makes it `REFUNDED`. A refund that failed after it had succeeded makes it `SUCCEEDED` again.
    """
    state = payment.state
    if state in (State.SUCCEEDED, State.REFUNDED):
        state = State.REFUNDED if total_minor == payment.amount_minor else State.SUCCEEDED
    problem = "" if state is State.REFUNDED else payment.problem
    return dataclasses.replace(payment, refunded_minor=total_minor, state=state, problem=problem)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The payment and its refunds as the provider's records have them."""

    payment: Payment
    changed: list[Refund]
    new: list[Refund]
    """Refunds that were made at the provider, and are not known here yet."""
    failed: list[Refund]
    """Those of `changed` that have failed now."""


def compare(payment: Payment, known: Sequence[Refund], listed: Iterable[ProviderRefund]) -> Comparison:
    """Adopt the provider's list of a payment's refunds. `known` are all refunds of the payment.

    A refund of ours that is not in the list keeps its state: a call for it may still be under way.
    """
    before = {refund.id: refund for refund in known}
    after = dict(before)
    by_reference = {refund.provider_reference: refund for refund in known if refund.provider_reference}
    seen: set[uuid.UUID] = set()
    for report in listed:
        refund = by_reference.get(report.reference) or _by_id(after, report) or _external(payment, report, known)
        seen.add(refund.id)
        after[refund.id] = _adopted(refund, report)
    _fail_displaced(payment, after, seen)
    changed = [refund for key, refund in after.items() if key in before and refund != before[key]]
    counted = [refund for refund in after.values() if not refund.stray]
    now = with_refunded(payment, min(_sum(counted, RefundState.SUCCEEDED), payment.amount_minor))
    return Comparison(
        payment=dataclasses.replace(now, refunding_minor=_sum(counted, RefundState.PENDING)),
        changed=changed,
        new=[refund for key, refund in after.items() if key not in before],
        failed=[r for r in changed if r.state is RefundState.FAILED and before[r.id].state is not RefundState.FAILED],
    )


def _by_id(known: dict[uuid.UUID, Refund], report: ProviderRefund) -> Refund | None:
    refund = known.get(report.refund_id) if report.refund_id else None
    # With another reference it was refunded twice: the second one counts by itself.
    same = refund is not None and report.is_of(refund) and refund.provider_reference in (None, report.reference)
    return refund if same else None


def _external(payment: Payment, report: ProviderRefund, known: Sequence[Refund]) -> Refund:
    # A stray charge may be at the provider of an earlier attempt.
    at = next((r.provider for r in known if r.charge_reference == report.charge_reference), payment.provider)
    own = report.charge_reference == payment.charge_reference
    return Refund(
        id=uuid.uuid5(payment.id, report.reference),
        payment_id=payment.id,
        provider=at,
        amount_minor=report.amount_minor,
        state=report.state,
        stray=not own or payment.state not in (State.SUCCEEDED, State.REFUNDED),
        external=True,
        charge_reference=report.charge_reference,
        provider_reference=report.reference,
        failure_reason=report.reason,
        problem="",
        attempt=1,
        checks=0,
    )


def _adopted(refund: Refund, report: ProviderRefund) -> Refund:
    if refund.settlement is not Settlement.PROVIDER:
        return refund  # an operator has settled it another way, because of what the provider says
    state = report.state
    if state is RefundState.PENDING and refund.state is RefundState.SUCCEEDED:
        state = refund.state
    problem = "" if state is not RefundState.FAILED else refund.problem
    if state is RefundState.FAILED and (refund.state is RefundState.SUCCEEDED or refund.stray):
        problem = FAILED_LATER
    return dataclasses.replace(
        refund, state=state, provider_reference=report.reference, failure_reason=report.reason, problem=problem
    )


def _fail_displaced(payment: Payment, after: dict[uuid.UUID, Refund], seen: set[uuid.UUID]) -> None:
    """Fail pending refunds for which the provider's own refunds leave no money: it refuses them for good."""
    counted = [refund for refund in after.values() if not refund.stray]
    room = payment.amount_minor - _sum(counted, RefundState.SUCCEEDED)
    pending = [refund for refund in counted if refund.state is RefundState.PENDING]
    for refund in sorted(pending, key=lambda one: (one.id not in seen, one.id)):
        room -= refund.amount_minor
        if room < 0 and refund.id not in seen:
            after[refund.id] = dataclasses.replace(refund, state=RefundState.FAILED, failure_reason=DISPLACED)
            room += refund.amount_minor


def _sum(refunds: Iterable[Refund], state: RefundState) -> int:
    return sum(refund.amount_minor for refund in refunds if refund.state is state)
