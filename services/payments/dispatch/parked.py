"""The parked refunds and payments: what operators see of them, and the ends that operators choose."""

import dataclasses
import uuid

from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.errors import AppError
from services.chassis.events import outbox
from services.chassis.events.outbox import Event
from services.payments.books.chart import entries_of_refund
from services.payments.dispatch import settle
from services.payments.domain import (
    CHARGE_DISPUTED,
    OPEN,
    OTHER_AMOUNT,
    REVERSAL,
    REVERSAL_REFUSED,
    Payment,
    Refund,
    RefundState,
    RefundTooLarge,
    Settlement,
    State,
)
from services.payments.refunds import rules
from services.payments.sql import journal, lists, payments, refunds
from services.payments.sql.lists import Parked


class NotParked(AppError):
    code = "NOT_FOUND"
    template = "There is no parked refund or payment {id}."


class CallMayArrive(AppError):
    code = "FAILED_PRECONDITION"
    template = "A call about {id} got no answer less than ten minutes ago and may still arrive; try again later."


class MoneyMustGoBack(AppError):
    code = "FAILED_PRECONDITION"
    template = "The money of {id} must go back: resume it, or mark it as done."


class NothingToRefund(AppError):
    code = "FAILED_PRECONDITION"
    template = "No money of {id} has to go back."


async def list_parked(db: Database, *, most: int) -> list[Parked]:
    """Return the refunds and payments that wait for an operator, the longest first."""
    return await lists.read_parked(db, most=most)


async def resume(db: Database, id_: uuid.UUID, by: str) -> None:
    """Have a refund made again under a new key, or a payment asked about. Raises `NotParked`, `CallMayArrive`.

    A refund whose last call got no answer waits until ten minutes later: until then, that call may still take effect.
    """
    async with db.begin() as tx:
        payment, refund = await _lock(tx, id_)
        if refund is None:
            await refunds.sign_reversals(tx, payment.id, reason=REVERSAL, note=f"resumed by {by}")
            await payments.store(tx, [dataclasses.replace(payment, problem="", checks=0)])
            await payments.check_now(tx, [payment.id])
            return
        if refund.state is RefundState.FAILED and not refund.stray:
            if refund.amount_minor > payment.left_minor:
                raise RefundTooLarge(leftMinorUnits=payment.left_minor)
            more = payment.refunding_minor + refund.amount_minor
            await payments.store(tx, [dataclasses.replace(payment, refunding_minor=more)])
        if not await refunds.resume(tx, refund, f"resumed by {by}"):
            raise CallMayArrive(id=id_)


async def abandon(db: Database, id_: uuid.UUID, by: str) -> None:
    """Give a refund up: it has failed, and its sum is free. Cancel a payment. Raises `NotParked`, `MoneyMustGoBack`.

    A charge with another amount than its payment's is voided first, or its money goes back.
    """
    async with db.begin() as tx:
        payment, refund = await _lock(tx, id_)
        if refund is None:
            if payment.state not in OPEN:
                raise MoneyMustGoBack(id=id_)
            if payment.problem == OTHER_AMOUNT or payment.state is State.AUTHORIZED:
                await payments.request_cancel(tx, [payment.id], void=True)
                await payments.check_now(tx, [payment.id])
                return
            ended = dataclasses.replace(
                payment, state=State.CANCELLED, payment_method=None, client_secret=None, checkout_url=None,
                next_terms=None, authenticating=False,
                problem="", failure_reason=payment.problem,
            )  # fmt: skip
            await payments.store(tx, [ended])
            await outbox.publish(tx, [settle.ended_event(ended)])
            return
        events = list[Event]()
        if refund.state is RefundState.PENDING and not refund.stray:
            freed = rules.after_refund(payment, refund, RefundState.FAILED)
            await payments.store(tx, [freed])
            events.append(settle.refund_failed_event(freed))
        reason = refund.failure_reason or "ABANDONED"
        await refunds.store(
            tx, [dataclasses.replace(refund, state=RefundState.FAILED, problem="", failure_reason=reason)]
        )
        await refunds.sign(tx, [refund.id], f"abandoned by {by}")
        await outbox.publish(tx, events)


async def mark_as_done(db: Database, id_: uuid.UUID, by: str) -> None:
    """Count money as refunded that went back another way. Raises `NotParked`, `NothingToRefund`, `RefundTooLarge`."""
    await _settle(db, id_, Settlement.OUTSIDE, f"marked as done by {by}")


async def write_off(db: Database, id_: uuid.UUID, by: str) -> None:
    """Count money as refunded that stays here, because nobody claims it any more. Raises as `mark_as_done`."""
    await _settle(db, id_, Settlement.WRITTEN_OFF, f"written off by {by}")


async def _settle(db: Database, id_: uuid.UUID, settlement: Settlement, note: str) -> None:
    async with db.begin() as tx:
        payment, refund = await _lock(tx, id_)
        if refund is None:
            if payment.problem not in (REVERSAL_REFUSED, CHARGE_DISPUTED) or payment.left_minor == 0:
                raise NothingToRefund(id=id_)
            (refund,) = await refunds.insert_external(tx, [_by_hand(payment)])
            payment = dataclasses.replace(
                payment, problem="", refunding_minor=payment.refunding_minor + refund.amount_minor
            )
        elif refund.state is RefundState.FAILED and not refund.stray:
            if refund.amount_minor > payment.left_minor:
                raise RefundTooLarge(leftMinorUnits=payment.left_minor)
            more = payment.refunding_minor + refund.amount_minor
            payment = dataclasses.replace(payment, refunding_minor=more)
        after = rules.after_refund(payment, refund, RefundState.SUCCEEDED)
        done = dataclasses.replace(
            refund, state=RefundState.SUCCEEDED, problem="", failure_reason="", settlement=settlement
        )
        await payments.store(tx, [after])
        await refunds.store(tx, [done])
        await journal.enter(tx, entries_of_refund(refund, done))
        await refunds.sign(tx, [refund.id], note)
        await outbox.publish(tx, [] if refund.stray else [settle.refunded_event(after)])


async def _lock(tx: AsyncSession, id_: uuid.UUID) -> tuple[Payment, Refund | None]:
    """Lock and return a parked payment, or a parked refund with its payment."""
    found = (await refunds.read(tx, [id_])).get(id_)
    payment_id = found.refund.payment_id if found else id_
    payment = (await payments.lock(tx, [payment_id])).get(payment_id)
    refund = (await refunds.lock(tx, [id_]))[id_] if found else None
    if payment is None or not (refund or payment).problem:
        raise NotParked(id=id_)
    return payment, refund


def _by_hand(payment: Payment) -> Refund:
    return Refund(
        id=uuid.uuid5(payment.id, "marked as done"), payment_id=payment.id, provider=payment.provider,
        amount_minor=payment.left_minor, state=RefundState.PENDING, stray=False, external=True,
        charge_reference=payment.charge_reference or "", provider_reference=None, failure_reason="", problem="",
        attempt=1, checks=0,
    )  # fmt: skip
