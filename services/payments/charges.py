"""Charging, cancelling and reversing the payments of orders."""

import dataclasses
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis import ids
from services.chassis.batcher import Batcher
from services.chassis.data.db import Database
from services.chassis.errors import AppError, RequestIdReused
from services.chassis.events import outbox
from services.chassis.money import Money
from services.payments.dispatch.dispatcher import ChargeDispatcher, Deadline
from services.payments.dispatch.settle import ended_event
from services.payments.domain import (
    CHARGE_DISPUTED,
    OPEN,
    REVERSAL,
    REVERSAL_REFUSED,
    Charge,
    NewRefund,
    Payment,
    PaymentNotFound,
    Refund,
    State,
)
from services.payments.providers import Providers
from services.payments.sql import disputes, leases, payments, refunds
from services.payments.sql.refunds import Refusals

REVERSALS_MOST = 3
REVERSAL_PAUSE = timedelta(seconds=60)
"""Between the first refusal of a reversal and the next try; ten times as long after each further one."""
_CALLS_MOST = 32  # in one transaction, each with up to 200 orders


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """The payment of one order after the transaction that began or found it."""

    payment: Payment
    call_provider: bool
    """Whether this call, and no other one, must dispatch the payment to the provider."""


class Charges:
    """The actions behind `ChargeService`: commit the intention, call the provider, return the known state in time."""

    def __init__(
        self, db: Database, dispatcher: ChargeDispatcher, published: Callable[[], None], providers: Providers
    ) -> None:
        """`published` is called after a commit that stored events. `providers.default` gets all new payments."""
        self._db, self._dispatcher, self._published, self._providers = db, dispatcher, published, providers
        self._begin: Batcher[Sequence[Charge], list[Begun | AppError]] = Batcher(
            "payments.begin", self._begin_all, size_max=_CALLS_MOST
        )

    async def charge(self, charges: Sequence[Charge]) -> list[Payment | AppError]:
        """Begin or continue the payments of orders. Return one outcome for each, in their order."""
        deadline = Deadline()
        self._dispatcher.check_capacity()
        begun = await self._begin(charges)
        for one in begun:
            if isinstance(one, Begun) and one.call_provider:
                self._dispatcher.advance(one.payment)
        known = [one.payment for one in begun if isinstance(one, Begun)]
        results = iter(await self._dispatcher.wait(known, seconds=deadline.seconds_left()))
        return [next(results) if isinstance(one, Begun) else one for one in begun]

    async def _begin_all(self, calls: Sequence[Sequence[Charge]]) -> list[list[Begun | AppError]]:
        """Commit the payments of several calls before the provider is called, so that a crash cannot lose them.

        An order that has a payment keeps it; one that occurs twice gets one. `RequestIdReused` if the payment is for
        another customer or amount.
        """
        charges = [charge for call in calls for charge in call]
        made = await payments.insert_alone(
            self._db, self._chargeable(charges), state=State.PROCESSING, provider=self._providers.default.name
        )
        known: dict[uuid.UUID, Payment] = {}
        retried: dict[uuid.UUID, Payment] = {}
        if missing := [charge.order_id for charge in charges if charge.order_id not in made]:
            async with self._db.begin() as tx:
                known = await payments.read_by_order(tx, missing, lock=False)
                retried = await self._start_attempts(tx, charges, known)
        ours = made | retried

        def outcome(charge: Charge) -> Begun | AppError:
            payment = ours.get(charge.order_id) or known[charge.order_id]
            if _differs(payment, charge):
                return RequestIdReused(requestId=charge.order_id)
            return Begun(payment=payment, call_provider=charge.order_id in ours)

        return [[outcome(charge) for charge in call] for call in calls]

    async def _start_attempts(
        self, tx: AsyncSession, charges: Sequence[Charge], known: dict[uuid.UUID, Payment]
    ) -> dict[uuid.UUID, Payment]:
        """Start a new attempt, with a new key, for each new card of a payment that waits for its customer."""
        cards = {
            payment.id: charge.payment_method
            for charge in charges
            if (payment := known.get(charge.order_id)) is not None
            and charge.payment_method
            and payment.customer_pays
            and self._providers[payment.provider].can.charges_tokens
            and payment.state is State.AWAITING_CUSTOMER
            and not payment.cancel_requested
            and not _differs(payment, charge)
        }
        return await payments.start_attempts(tx, cards) if cards else {}

    def _chargeable(self, charges: Sequence[Charge]) -> Sequence[Charge]:
        """Leave out cards that new payments cannot use: where no token is charged, customers pay in the browser."""
        if self._providers.default.can.charges_tokens:
            return charges
        return [dataclasses.replace(charge, payment_method="") for charge in charges]

    async def cancel(self, charges: Sequence[Charge]) -> list[Payment]:
        """Cancel the payments of orders for which no money has moved."""
        deadline = Deadline()
        async with self._db.begin() as tx:
            found, requested = await self._request_cancel(tx, charges)
        withdrawn = self._dispatcher.withdraw(payment.id for payment in found.values() if payment.cancel_requested)
        return await self._void([found[charge.order_id] for charge in charges], requested, withdrawn, deadline)

    async def reverse(self, charges: Sequence[Charge]) -> list[Payment]:
        """Refund all that orders paid, and cancel what they have not paid."""
        deadline = Deadline()
        async with self._db.begin() as tx:
            found, requested = await self._request_cancel(tx, charges)
            pending, new = await _refund_in_full(tx, [p for p in found.values() if p.state is State.SUCCEEDED])
        withdrawn = self._dispatcher.withdraw(payment.id for payment in found.values() if payment.cancel_requested)
        for refund in new:
            self._dispatcher.refund(refund)
        known = await self._void([found[charge.order_id] for charge in charges], requested, withdrawn, deadline)
        if not pending:
            return known
        await self._dispatcher.wait_for_refunds(pending, seconds=deadline.seconds_left())
        async with self._db() as tx:
            now = await payments.read(tx, [payment.id for payment in known])
        return [now[payment.id] for payment in known]

    async def find_in_process(self, known: Sequence[Payment], *, now: float) -> set[uuid.UUID]:
        """Return which payments have only such refunds under way as the provider reports to be pending."""
        refunding = [payment.id for payment in known if payment.refunding_minor]
        if not refunding:
            return set()
        async with self._db() as tx:
            pending = await refunds.read_pending(tx, refunding)
        return set(refunding) - {refund.payment_id for refund in pending if not refund.is_in_process(now)}

    async def _request_cancel(
        self, tx: AsyncSession, charges: Sequence[Charge]
    ) -> tuple[dict[uuid.UUID, Payment], set[uuid.UUID]]:
        """Cancel payments, or request it where the provider must be called first.

        Return the payments by order, and the ids of those for which no earlier call has requested it. The row lock
        orders this against charges: the second transaction finds the effect of the first.
        """
        # An order without a payment gets a cancelled one, so that a late charge finds it.
        made = await payments.insert(tx, charges, state=State.CANCELLED, provider=self._providers.default.name)
        await outbox.publish(tx, [ended_event(payment) for payment in made.values()])
        missing = [charge.order_id for charge in charges if charge.order_id not in made]
        found = made | await payments.read_by_order(tx, missing, lock=True)
        requested = [p for p in found.values() if p.state in OPEN and not p.cancel_requested]
        if repeated := [p.id for p in found.values() if p.is_cancellable and p.cancel_requested]:
            await leases.hasten(tx, "payments", repeated)
        if requested:
            await payments.request_cancel(tx, [payment.id for payment in requested])
            found |= {p.order_id: dataclasses.replace(p, cancel_requested=True) for p in requested}
        return found, {payment.id for payment in requested}

    async def _void(
        self,
        known: Sequence[Payment],
        requested: Collection[uuid.UUID],
        withdrawn: Collection[uuid.UUID],
        deadline: Deadline,
    ) -> list[Payment]:
        """Void the charges that wait for their customer; return all payments as they are then."""
        self._published()
        cancellable = [payment for payment in known if payment.is_cancellable]
        for payment in cancellable:
            if payment.id in requested:
                self._dispatcher.advance(payment)
        # Charges under way are not awaited: the caller calls again, and can do other work until then.
        ending = [payment for payment in known if payment.is_cancellable or payment.id in withdrawn]
        results = await self._dispatcher.wait(ending, seconds=deadline.seconds_left())
        now = {payment.id: payment for payment in results}
        return [now.get(payment.id, payment) for payment in known]

    async def take_callback(self, provider: str, fields: Mapping[str, str]) -> Payment:
        """Verify what a checkout has handed to a browser, ask the provider, and return the payment as it is then.

        Raises `ProviderNotSetUp`, `BadSignature`, `PaymentNotFound`.
        """
        deadline = Deadline()
        reference = self._providers.get_known(provider).verify_callback(fields)
        async with self._db() as tx:
            found = await payments.find(tx, (), [reference])
        payment = next((one for one in found.values() if one.provider == provider), None)
        if payment is None:
            raise PaymentNotFound(charge=reference)
        if payment.state in OPEN:
            self._dispatcher.advance(payment)
        (now,) = await self._dispatcher.wait([payment], seconds=deadline.seconds_left())
        return now

    async def get_by_orders(self, order_ids: Sequence[uuid.UUID]) -> tuple[list[Payment | AppError], set[uuid.UUID]]:
        """Return the payments of orders, in their order, and the ids of those that are disputed.

        An order without a payment has `PaymentNotFound` in its place.
        """
        async with self._db() as tx:
            known = await payments.read_by_order(tx, order_ids, lock=False)
            disputed = await disputes.read_disputed(tx, [payment.id for payment in known.values()])
        return [known.get(order_id) or PaymentNotFound(orderId=order_id) for order_id in order_ids], disputed

    async def get(self, payment_id: uuid.UUID) -> Payment:
        """Raises `PaymentNotFound`."""
        async with self._db() as tx:
            return await payments.read_one(tx, payment_id, lock=False)


def _differs(payment: Payment, charge: Charge) -> bool:
    same = Money(payment.currency, payment.amount_minor) == charge.amount
    return not same or payment.customer_id != charge.customer_id


async def _refund_in_full(tx: AsyncSession, paid: Sequence[Payment]) -> tuple[list[uuid.UUID], list[Refund]]:
    """Commit refunds of all that is left of locked payments. Return the ids of all pending ones, and the new ones.

    Those begun before are repeated at once by the reconciler.
    One that the provider has refused is tried again after a pause, and a few times only: then an operator must help.
    Money that a bank holds because of a dispute is not refunded.
    """
    before = [one.id for one in await refunds.read_pending(tx, [p.id for p in paid if p.refunding_minor])]
    await refunds.hasten(tx, before)
    left = [p for p in paid if p.left_minor > 0]
    refused = await refunds.count_refused(tx, [p.id for p in left], reason=REVERSAL)
    withdrawn = await disputes.read_withdrawn(tx, [p.id for p in left])
    due, parked = list[NewRefund](), list[Payment]()
    for payment in left:
        number, age, is_disputed = refused.get(payment.id, Refusals())
        if is_disputed or payment.id in withdrawn:
            problem = CHARGE_DISPUTED  # until the dispute ends; see `books.disputes`
        else:
            problem = REVERSAL_REFUSED if number >= REVERSALS_MOST else ""
        if problem and not payment.problem:
            parked.append(dataclasses.replace(payment, problem=problem))
        elif not problem and age > REVERSAL_PAUSE * 10 ** max(number - 1, 0):
            due.append(NewRefund(id=ids.new(), payment=payment, amount_minor=payment.left_minor, reason=REVERSAL))
    await payments.store(tx, parked)
    new = await refunds.insert(tx, due)
    return before + [refund.id for refund in new], new
