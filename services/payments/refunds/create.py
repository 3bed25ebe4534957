"""Refunds of paid orders, in full or in part, because staff decided so."""

import dataclasses
import uuid
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.chassis import ids
from services.chassis.data import idempotency
from services.chassis.data.db import Database
from services.chassis.errors import AppError, RequestIdReused
from services.chassis.money import Money
from services.chassis.request_context import RequestKey
from services.payments.dispatch.dispatcher import ChargeDispatcher, Deadline
from services.payments.domain import (
    Payment,
    PaymentDisputed,
    PaymentNotFound,
    Refund,
    RefundRefused,
    RefundState,
)
from services.payments.refunds.rules import refundable_minor
from services.payments.sql import disputes, payments
from services.payments.sql import refunds as sql
from services.payments.sql.refunds import NewRefund, RefundOfPayment


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundLine:
    """One line of a request of orders. `id` becomes the refund's id; without `amount`, all that is left is refunded."""

    id: uuid.UUID
    order_id: uuid.UUID
    amount: Money | None
    reason: str


class BegunRefunds(NamedTuple):
    """One outcome for each line of a request, and those refunds that no other request has begun."""

    outcomes: list[Refund | AppError]
    new: list[Refund]


class Refunds:
    """The actions behind both refund methods: commit, call the provider, return the known state in time."""

    def __init__(self, db: Database, dispatcher: ChargeDispatcher) -> None:
        self._db, self._dispatcher = db, dispatcher

    async def refund_payment(
        self, *, payment_id: uuid.UUID, amount: Money | None, reason: str, request: RequestKey | None
    ) -> Payment:
        """Refund `amount` of a payment, or all that is left; return the payment. A repeat finds the first refund.

        Raises `PaymentNotFound`, `RequestIdReused`, `RefundRefused`, and the errors of `refundable_minor`.
        """
        deadline, refund_id = Deadline(), ids.new()
        async with self._db.begin() as tx:
            payment = await payments.read_one(tx, payment_id, lock=True)
            if first := await idempotency.find_repeat(tx, request, refund_id):
                refund = (await sql.read(tx, [first]))[first].refund
                await sql.hasten(tx, [first])
            else:
                # The lock on the payment keeps this check valid until the sum has grown. A CHECK constraint guards it.
                minor = refundable_minor(payment, amount)
                if await disputes.read_withdrawn(tx, [payment.id]):
                    raise PaymentDisputed()
                new = NewRefund(id=refund_id, payment=payment, amount_minor=minor, reason=reason)
                (refund,) = await sql.insert(tx, [new])
        await self._dispatch([] if first else [refund], [refund.id], deadline)
        async with self._db() as tx:
            now = (await sql.read(tx, [refund.id]))[refund.id]
        if now.refund.state is RefundState.FAILED:
            raise RefundRefused(cause=now.refund.failure_reason or "REFUND_FAILED")
        return now.payment

    async def create(self, lines: Sequence[RefundLine]) -> list[RefundOfPayment | AppError]:
        """Make the refunds of `lines`. Return one outcome for each, in their order."""
        deadline = Deadline()
        outcomes, new = await begin_refunds(self._db, lines)
        made = [one.id for one in outcomes if isinstance(one, Refund)]
        if not made:
            return [one for one in outcomes if isinstance(one, AppError)]
        await self._dispatch(new, made, deadline)
        async with self._db() as tx:
            now = await sql.read(tx, made)
        return [now[one.id] if isinstance(one, Refund) else one for one in outcomes]

    async def _dispatch(self, new: Sequence[Refund], made: Sequence[uuid.UUID], deadline: Deadline) -> None:
        """Call the provider for `new` refunds, and wait for all that are `made`."""
        for refund in new:
            self._dispatcher.refund(refund)
        await self._dispatcher.wait_for_refunds(made, seconds=deadline.seconds_left())


async def begin_refunds(db: Database, lines: Sequence[RefundLine]) -> BegunRefunds:
    """Commit the refunds of `lines`, no id twice.

    A refund that exists already is returned as it is, and the reconciler repeats it at once if it is pending.
    """
    async with db.begin() as tx:
        known = await payments.read_by_order(tx, sorted({line.order_id for line in lines}), lock=True)
        # Read under the locks: concurrent requests for the same refund of the same order have committed by now.
        existing = await sql.read(tx, [line.id for line in lines])
        disputed = await disputes.read_withdrawn(tx, [payment.id for payment in known.values()])
        new, refused = _check([line for line in lines if line.id not in existing], known, disputed)
        made = {refund.id: refund for refund in await sql.insert(tx, new)}
        if taken := [refund.id for refund in new if refund.id not in made]:
            # A concurrent request for another order has used the id, so these locks did not wait for it.
            existing |= await sql.read(tx, taken)
        await sql.hasten(tx, list(existing))
    outcomes = [
        refused.get(line.id) or made.get(line.id) or _existing_refund(line, existing[line.id]) for line in lines
    ]
    return BegunRefunds(outcomes, list(made.values()))


def _check(
    lines: Sequence[RefundLine], known: Mapping[uuid.UUID, Payment], disputed: Container[uuid.UUID]
) -> tuple[list[NewRefund], dict[uuid.UUID, AppError]]:
    """Return the refunds to insert, and the errors of refused lines. A line leaves less for the lines after it."""
    now, new, refused = dict(known), list[NewRefund](), dict[uuid.UUID, AppError]()
    for line in lines:
        payment = now.get(line.order_id)
        try:
            if payment is None:
                raise PaymentNotFound(orderId=line.order_id)
            minor = refundable_minor(payment, line.amount)
            if payment.id in disputed:
                raise PaymentDisputed()
        except AppError as error:
            refused[line.id] = error.with_traceback(None)
            continue
        new.append(NewRefund(id=line.id, payment=payment, amount_minor=minor, reason=line.reason))
        now[line.order_id] = dataclasses.replace(payment, refunding_minor=payment.refunding_minor + minor)
    return sorted(new, key=lambda refund: refund.id), refused


def _existing_refund(line: RefundLine, existing: RefundOfPayment) -> Refund | AppError:
    """Return the refund with the id of `line`, or an error if the id belongs to another request."""
    refund, payment = existing
    same = line.amount is None or line.amount == Money(payment.currency, refund.amount_minor)
    if not same or refund.stray or payment.order_id != line.order_id:
        return RequestIdReused(requestId=line.id)
    return refund
