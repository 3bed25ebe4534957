"""Stores provider results and publishes what they change. Each function is one transaction, or runs inside one."""

import dataclasses
import uuid
from collections.abc import Sequence

import structlog
from prometheus_client import Counter
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.events import outbox
from services.chassis.events.outbox import Event
from services.chassis.server import wire
from services.payments.books.chart import entries_of_payment, entries_of_refund
from services.payments.dispatch.decisions import Verdict, decide
from services.payments.domain import (
    OPEN,
    PROVIDER_NOT_SET_UP,
    Dispute,
    Payment,
    Refund,
    RefundState,
    State,
)
from services.payments.providers.results import ChargeResult, ChargeStatus, RefundResult, unknown_charge
from services.payments.refunds.rules import FAILED_LATER, after_refund
from services.payments.sql import journal, payments, refunds
from services.payments.sql.payment_columns import is_of_attempt
from services.payments.sql.payments import Change
from services.payments.sql.refunds import NewRefund
from stampede.payments.v1.events_pb2 import PaymentChanged, PaymentDisputed

log = structlog.get_logger()

_FINAL = frozenset((ChargeStatus.SUCCEEDED, ChargeStatus.AUTHORISED, ChargeStatus.CANCELLED))

PUBLISHED = frozenset(State) - {State.AWAITING_CUSTOMER, State.PROCESSING}
"""The states that are published when a payment reaches them."""

_REJECTED = Counter(
    "stampede_provider_results_rejected_total",
    "Provider results with another amount, or of stray charges.",
    ["verdict"],
)


async def settle_charges(db: Database, results: Sequence[tuple[Payment, ChargeResult]]) -> list[Payment]:
    """Store the results of payments, each with its payment as it was read; return the payments as they are now.

    A payment that has not changed since then is stored in the fast statement. Others are locked and decided again.
    """
    fast = {payment.id: change for payment, result in results if (change := _fast_change(payment, result))}
    stored = await payments.store_fast(db, list(fast.values())) if fast else {}
    if rest := [(payment, result) for payment, result in results if payment.id not in stored]:
        async with db.begin() as tx:
            before = await payments.lock(tx, {payment.id for payment, _ in rest})
            now = [_as_of_now(before[payment.id], payment, result) for payment, result in rest]
            stored |= await apply_results(tx, before, now)
            await payments.mark_unsent(tx, [p for p, result in rest if result.calls and result.calls.is_first])
    return [stored[payment.id] for payment, _ in results]


def _fast_change(payment: Payment, result: ChargeResult) -> Change | None:
    """Return the change for the fast statement; None if nothing changes, or if the result is rejected."""
    after, verdict = decide(payment, result)
    if verdict is not Verdict.ACCEPTED or after == payment or is_of_attempt(payment, after):
        return None
    event = ended_event(after) if _has_ended(payment, after) else None
    return Change(after, event, entries_of_payment(payment, after))


def _as_of_now(now: Payment, read: Payment, result: ChargeResult) -> ChargeResult:
    """Return the result of a call about a payment as it was `read`, for the payment as it is now.

    If another attempt has begun meanwhile, only what no attempt can change is left of it.
    """
    result = dataclasses.replace(result, provider=read.provider)
    if now.attempt == read.attempt or result.status in _FINAL:
        return result
    return unknown_charge(now)


def _has_ended(before: Payment, after: Payment) -> bool:
    return after.state is not before.state and after.state in PUBLISHED


async def apply_results(
    tx: AsyncSession, before: dict[uuid.UUID, Payment], results: Sequence[ChargeResult]
) -> dict[uuid.UUID, Payment]:
    """Apply results to the locked payments `before`, in their order; store and publish what has changed."""
    after = dict(before)
    stray: list[NewRefund] = []
    for result in results:
        after[result.payment_id], verdict = decide(after[result.payment_id], result)
        if verdict is not Verdict.ACCEPTED:
            _REJECTED.labels(verdict.name).inc()
            log.error(
                "a provider result was rejected",
                payment_id=result.payment_id, verdict=verdict.name, status=result.status.name,
            )  # fmt: skip
        if verdict is Verdict.STRAY_CHARGE:
            stray.append(_refund_of_stray(after[result.payment_id], result))
    changed = [payment for payment in after.values() if payment != before[payment.id]]
    waiting = [payment for payment in after.values() if payment == before[payment.id] and payment.state in OPEN]
    ended = {result.payment_id: result.calls for result in results if result.calls}
    answered = {result.payment_id for result in results if result.status is not ChargeStatus.UNKNOWN}
    await payments.store(tx, changed, unchanged=waiting, ended=ended, answered=answered)
    received = await refunds.insert(tx, stray)
    await journal.enter(tx, [entry for p in changed for entry in entries_of_payment(before[p.id], p)])
    await journal.enter(tx, [entry for refund in received for entry in entries_of_refund(None, refund)])
    await outbox.publish(tx, [ended_event(p) for p in changed if _has_ended(before[p.id], p)])
    return after


def _refund_of_stray(payment: Payment, result: ChargeResult) -> NewRefund:
    reference = result.capture_reference or result.reference
    assert reference is not None
    return NewRefund(
        id=uuid.uuid5(payment.id, reference),  # reported twice, it is still refunded once
        payment=payment,
        amount_minor=result.amount_minor or payment.amount_minor,
        reason="arrived after the payment had ended without it",
        stray_reference=reference,
        stray_provider=result.provider,
    )


async def settle_refunds(db: Database, results: Sequence[RefundResult]) -> list[Refund]:
    """Store the results of refunds; return the refunds as they are now."""
    async with db.begin() as tx:
        known = await payments.lock(tx, {result.payment_id for result in results})
        read = await refunds.lock(tx, [result.refund_id for result in results])
        found = dict(read)
        before, events, failed = dict(known), list[Event](), set[uuid.UUID]()
        for result in results:
            refund = found[result.refund_id]
            if refund.state is not RefundState.PENDING:
                continue
            outcome = result.state or RefundState.PENDING
            found[refund.id] = dataclasses.replace(
                refund,
                state=outcome,
                provider_reference=result.reference or refund.provider_reference,
                failure_reason=result.reason,
                problem=_problem_after(refund, outcome, result),
            )
            if outcome is RefundState.PENDING:
                continue
            known[refund.payment_id] = payment = after_refund(known[refund.payment_id], refund, outcome)
            if not refund.stray:
                succeeded = outcome is RefundState.SUCCEEDED
                events.append(refunded_event(payment) if succeeded else refund_failed_event(payment))
            if outcome is RefundState.FAILED:
                failed.add(payment.id)
        await payments.store(tx, [payment for payment in known.values() if payment != before[payment.id]])
        ended = {result.refund_id: result.calls for result in results if result.calls}
        answered = {result.refund_id for result in results if result.state}
        await refunds.store(tx, list(found.values()), ended=ended, answered=answered)
        await journal.enter(tx, [entry for r in found.values() for entry in entries_of_refund(read[r.id], r)])
        if whole := [p.id for p in known.values() if p.state is State.REFUNDED and p != before[p.id]]:
            await refunds.clear_failed_later(tx, whole)
        if failed:  # people may have refunded the charge at the provider
            await payments.check_refunds(tx, sorted(failed))
        await outbox.publish(tx, events)
    return [found[result.refund_id] for result in results]


def _problem_after(refund: Refund, outcome: RefundState, result: RefundResult) -> str:
    if outcome is RefundState.PENDING:
        return result.problem or ("" if refund.problem == PROVIDER_NOT_SET_UP else refund.problem)
    # A stray charge whose refund fails is money that nobody else asks for.
    return FAILED_LATER if outcome is RefundState.FAILED and refund.stray else ""


def ended_event(payment: Payment) -> Event:
    """A payment reached a final state, or its money is set aside."""
    return _event(payment, payment.state.lower())


def refunded_event(payment: Payment) -> Event:
    """A refund was confirmed, full or partial; `payment` has the new sum."""
    return _event(payment, "refunded")


def refund_failed_event(payment: Payment) -> Event:
    """A refund failed, perhaps after it had succeeded; `payment` has the new sum."""
    return _event(payment, "refund_failed")


def disputed_event(payment: Payment, dispute: Dispute) -> Event:
    """A dispute of a payment was opened or has changed; `dispute` is as it is now."""
    message = PaymentDisputed(
        payment_id=str(payment.id),
        order_id=str(payment.order_id),
        dispute=dispute.reference,
        status=dispute.status,
        reason=dispute.reason,
        amount_minor_units=dispute.amount_minor,
        currency_code=dispute.currency,
        state=dispute.state,
        evidence_due_time=wire.timestamp(dispute.evidence_due_time) if dispute.evidence_due_time else None,
    )
    return Event(f"stampede.payments.dispute.{dispute.status.lower()}", message.payment_id, message)


def _event(payment: Payment, name: str) -> Event:
    message = PaymentChanged(
        payment_id=str(payment.id),
        order_id=str(payment.order_id),
        state=payment.state,
        failure_reason=payment.failure_reason,
        refunded_minor_units=payment.refunded_minor,
        amount_minor_units=payment.amount_minor,
    )
    return Event(f"stampede.payments.payment.{name}", message.payment_id, message)
