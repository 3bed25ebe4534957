"""Charging, cancelling and reversing the payments of orders."""

import dataclasses
import time
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
from services.payments.dispatch import attempts
from services.payments.dispatch.dispatcher import ChargeDispatcher, Deadline
from services.payments.dispatch.saved_methods import SavedMethods
from services.payments.dispatch.settle import ended_event
from services.payments.domain import (
    CHARGE_DISPUTED,
    OPEN,
    PAGE_SECONDS_LEAST,
    REVERSAL,
    REVERSAL_REFUSED,
    Capture,
    Charge,
    Payment,
    PaymentMethodNotFound,
    PaymentNotFound,
    Refund,
    State,
    Terms,
)
from services.payments.providers import Providers
from services.payments.sql import disputes, leases, lists, payments, refunds
from services.payments.sql.refunds import NewRefund, Refusals

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
        self,
        db: Database,
        dispatcher: ChargeDispatcher,
        published: Callable[[], None],
        providers: Providers,
        *,
        capture: Capture = Capture.AUTOMATIC,
    ) -> None:
        """`published` is called after a commit that stored events. New payments begin at `providers.default`.

        `capture` is the fate of their money once it is authorised.
        """
        self.capture_of_new = capture
        self._db, self._dispatcher, self._published, self._providers = db, dispatcher, published, providers
        self._saved = SavedMethods(db, providers)
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
        another customer or amount. A payment that does not know the attempt of its charge may begin it.
        """
        calls = [
            [charge if charge.terms is None else await self._with_terms(charge, charge.terms) for charge in call]
            for call in calls
        ]
        charges = [charge for call in calls for charge in call]
        made = await payments.insert_alone(
            self._db, self._chargeable(charges), state=State.PROCESSING, provider=self._providers.default.name,
            capture=self.capture_of_new,
        )  # fmt: skip
        begun = {order_id: Begun(payment=payment, call_provider=True) for order_id, payment in made.items()}
        if missing := [charge.order_id for charge in charges if charge.order_id not in made]:
            async with self._db.begin() as tx:
                known = await payments.read_by_order(tx, missing, lock=False)
                begun |= {order_id: Begun(payment=payment, call_provider=False) for order_id, payment in known.items()}
                begun |= await _ask_for_attempts(tx, charges, known)

        def outcome(charge: Charge) -> Begun | AppError:
            one = begun[charge.order_id]
            return RequestIdReused(requestId=charge.order_id) if _differs(one.payment, charge) else one

        return [[outcome(charge) for charge in call] for call in calls]

    def _chargeable(self, charges: Sequence[Charge]) -> Sequence[Charge]:
        """Leave out cards that new payments cannot use: where no token is charged, customers pay in the browser."""

        def takes_card(charge: Charge) -> bool:
            name = charge.terms.provider if charge.terms else ""
            return (self._providers[name] if name else self._providers.default).can.charges_tokens

        return [
            charge
            if not charge.payment_method or takes_card(charge)
            else dataclasses.replace(charge, payment_method="")
            for charge in charges
        ]

    async def _with_terms(self, charge: Charge, terms: Terms) -> Charge:
        """Return a charge whose terms can be met: by a provider of this deployment, a saved card, a page that lasts."""
        provider = terms.provider if terms.provider in self._providers else ""
        end = max(terms.page_end, int(time.time()) + PAGE_SECONDS_LEAST) if terms.checkout else 0
        charge = dataclasses.replace(charge, terms=dataclasses.replace(terms, provider=provider, page_end=end))
        if not terms.saved_method:
            return charge
        try:
            saved = await self._saved.get(charge.customer_id, uuid.UUID(terms.saved_method))
        except PaymentMethodNotFound as missing:  # removed since orders has checked it
            plain = Terms(number=terms.number, provider=provider, refusal=missing.reason)
            return dataclasses.replace(charge, terms=plain)
        return dataclasses.replace(
            charge, payment_method=saved.card.reference, terms=dataclasses.replace(terms, provider=saved.provider)
        )

    async def cancel(self, charges: Sequence[Charge]) -> list[Payment]:
        """Cancel the payments of orders for which no money has moved."""
        deadline = Deadline()
        async with self._db.begin() as tx:
            found, requested = await self._request_cancel(tx, charges, void=False)
        withdrawn = self._dispatcher.withdraw(payment.id for payment in found.values() if payment.cancel_requested)
        return await self._void([found[charge.order_id] for charge in charges], requested, withdrawn, deadline)

    async def reverse(self, charges: Sequence[Charge]) -> list[Payment]:
        """Refund all that orders paid, void what is set aside, and cancel what they have not paid."""
        deadline = Deadline()
        async with self._db.begin() as tx:
            found, requested = await self._request_cancel(tx, charges, void=True)
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
        self, tx: AsyncSession, charges: Sequence[Charge], *, void: bool
    ) -> tuple[dict[uuid.UUID, Payment], set[uuid.UUID]]:
        """Cancel payments, or request it where the provider must be called first. Without `void`, keep authorised ones.

        Return the payments by order, and the ids of those for which no earlier call has requested it. The row lock
        orders this against charges: the second transaction finds the effect of the first.
        """
        # An order without a payment gets a cancelled one, so that a late charge finds it.
        made = await payments.insert(tx, charges, state=State.CANCELLED, provider=self._providers.default.name)
        await outbox.publish(tx, [ended_event(payment) for payment in made.values()])
        missing = [charge.order_id for charge in charges if charge.order_id not in made]
        found = made | await payments.read_by_order(tx, missing, lock=True)
        requested = [p for p in found.values() if _is_to_cancel(p, void=void)]
        if repeated := [p.id for p in found.values() if p.is_cancellable and p.cancel_requested]:
            await leases.hasten(tx, "payments", repeated)
        if requested:
            await payments.request_cancel(tx, [payment.id for payment in requested], void=void)
            found |= {p.order_id: _cancelling(p, void=void) for p in requested}
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

    async def page(
        self, state: State | None, *, before: uuid.UUID | None, most: int
    ) -> tuple[list[Payment], uuid.UUID | None]:
        """Return one page of payments, newest first, and the id at its end; None on the last page."""
        return await lists.page_of_payments(self._db, state, before=before, most=most)

    async def get(self, payment_id: uuid.UUID) -> Payment:
        """Raises `PaymentNotFound`."""
        async with self._db() as tx:
            return await payments.read_one(tx, payment_id, lock=False)


def _is_to_cancel(payment: Payment, *, void: bool) -> bool:
    """Whether the cancellation of a payment is to be requested, because no earlier call has asked for as much."""
    if payment.state not in OPEN or (payment.state is State.AUTHORIZED and not void):
        return False
    keeps = payment.capture in (Capture.MANUAL, Capture.REQUESTED)
    return not payment.cancel_requested or (void and keeps)


def _cancelling(payment: Payment, *, void: bool) -> Payment:
    """Return a payment as `payments.request_cancel` has stored it."""
    capture = Capture.VOID if void and payment.capture is not Capture.AUTOMATIC else payment.capture
    return dataclasses.replace(payment, cancel_requested=True, next_terms=None, capture=capture)


async def _ask_for_attempts(
    tx: AsyncSession, charges: Sequence[Charge], known: Mapping[uuid.UUID, Payment]
) -> dict[uuid.UUID, Begun]:
    """Begin the attempts that payments does not know of, or have them wait; return the changed payments, by order.

    The row lock orders this against results and cancellations.
    """
    asked = {
        charge.order_id: dataclasses.replace(charge.terms, payment_method=charge.payment_method)
        for charge in charges
        if charge.terms
        and (payment := known.get(charge.order_id)) is not None
        and charge.terms.number > payment.latest_order_attempt
        and not _differs(payment, charge)
    }
    locked = await payments.read_by_order(tx, sorted(asked), lock=True)
    after = {
        order_id: attempts.ask(payment, asked[order_id])
        for order_id, payment in locked.items()
        if asked[order_id].number > payment.latest_order_attempt
    }
    await payments.store(tx, list(after.values()))
    # One that waits for the call in progress is carried on by it.
    return {
        order_id: Begun(payment=_stored(payment), call_provider=attempts.calls_now(locked[order_id], payment))
        for order_id, payment in after.items()
    }


def _stored(payment: Payment) -> Payment:
    return dataclasses.replace(payment, version=payment.version + 1)


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
