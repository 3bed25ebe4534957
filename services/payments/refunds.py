"""Refunds of a part, or of what is left: each function one transaction. The provider is never asked inside of one."""

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.chassis import ids
from services.chassis.data import idempotency
from services.chassis.data.db import Database
from services.chassis.errors import AppError, RequestIdReused
from services.chassis.money import Money
from services.chassis.request_context import RequestKey
from services.payments import actions, rows
from services.payments.domain import (
    Payment,
    PaymentNotFound,
    Refund,
    RefundFact,
    RefundState,
    refundable,
    refunded,
)
from services.payments.rows import NewRefund, Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What orders wants to be paid back of one order. `id` is the refund's; without `amount`, all that is left."""

    id: uuid.UUID
    order_id: uuid.UUID
    amount: Money | None
    reason: str


async def begin(
    db: Database, *, payment_id: uuid.UUID, amount: Money | None, reason: str, request: RequestKey | None
) -> Refund:
    """Commits one refund, of `amount` or of all that is left. A repeat of the request finds the first one's.

    Raises `PaymentNotFound`, `RequestIdReused`, and what `refundable` does.
    """
    refund_id = ids.new()
    async with db.begin() as tx:
        payment = await actions.one(tx, payment_id, lock=True)
        first = await idempotency.find_repeat(tx, request, refund_id)
        if first is None:
            # The lock on the payment makes this check hold until the sum has grown; a CHECK stands behind it.
            minor = refundable(payment, amount)
            await rows.insert_refunds(tx, [NewRefund(id=refund_id, payment=payment, amount_minor=minor, reason=reason)])
        known = first or refund_id
        return (await rows.refunds(tx, [known]))[known].refund


async def begin_parts(db: Database, parts: Sequence[Part]) -> list[Refund | AppError]:
    """Commits the refunds that `parts` name, no id twice; one outcome for each, in their order.

    A refund that is there already is returned as it is.
    """
    async with db.begin() as tx:
        payments = await actions.read(tx, sorted({part.order_id for part in parts}), lock=True)
        # Read once the locks are held: whoever began the same refund of the same order a moment ago has committed.
        standing = await rows.refunds(tx, [part.id for part in parts])
        due, refused = _sort_out([part for part in parts if part.id not in standing], payments)
        if due:
            await rows.insert_refunds(tx, due)
            standing |= await rows.refunds(tx, [refund.id for refund in due])
    return [refused.get(part.id) or _of(part, standing[part.id]) for part in parts]


def _sort_out(
    parts: Sequence[Part], payments: Mapping[uuid.UUID, Payment]
) -> tuple[list[NewRefund], dict[uuid.UUID, AppError]]:
    """The refunds to be made, and why others may not be. What one part takes is not there for the next one."""
    now, due, refused = dict(payments), list[NewRefund](), dict[uuid.UUID, AppError]()
    for part in parts:
        payment = now.get(part.order_id)
        try:
            if payment is None:
                raise PaymentNotFound(orderId=part.order_id)
            minor = refundable(payment, part.amount)
        except AppError as error:
            refused[part.id] = error.with_traceback(None)
            continue
        due.append(NewRefund(id=part.id, payment=payment, amount_minor=minor, reason=part.reason))
        now[part.order_id] = dataclasses.replace(payment, refunding_minor=payment.refunding_minor + minor)
    return sorted(due, key=lambda refund: refund.id), refused


def _of(part: Part, standing: Standing) -> Refund | AppError:
    """The refund under the id of `part`, unless that id stands for something else."""
    refund, payment = standing
    same = part.amount is None or part.amount == Money(payment.currency, refund.amount_minor)
    if not same or refund.stray or payment.order_id != part.order_id:
        return RequestIdReused(requestId=part.id)
    return refund


async def get(db: Database, refund_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Standing]:
    """Refunds by id, each with its payment."""
    async with db() as tx:
        return await rows.refunds(tx, refund_ids)


async def settle(db: Database, facts: Sequence[RefundFact]) -> list[Refund]:
    """Stores what the provider said of refunds; the refunds as they are now."""
    async with db.begin() as tx:
        payments = await rows.locked(tx, {fact.payment_id for fact in facts})
        found = await rows.locked_refunds(tx, [fact.refund_id for fact in facts])
        before, told = dict(payments), []
        for fact in facts:
            refund = found[fact.refund_id]
            if refund.state is not RefundState.PENDING:
                continue
            outcome = fact.state or RefundState.PENDING
            found[refund.id] = dataclasses.replace(
                refund,
                state=outcome,
                provider_reference=fact.reference or refund.provider_reference,
                failure_reason=fact.reason,
            )
            if outcome is not RefundState.PENDING:
                payments[refund.payment_id] = refunded(payments[refund.payment_id], refund, outcome)
            if outcome is RefundState.SUCCEEDED and not refund.stray:
                told.append(payments[refund.payment_id])
        await rows.store(tx, [payment for payment in payments.values() if payment != before[payment.id]])
        await rows.store_refunds(tx, list(found.values()))
        await actions.tell_refunded(tx, told)
    return [found[fact.refund_id] for fact in facts]
