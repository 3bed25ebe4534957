"""What a call does: commit the intention, ask the provider, and answer in time with what is known."""

import time
import uuid
from collections.abc import Callable, Sequence

from services.chassis import request_context
from services.chassis.batcher import Batcher
from services.chassis.data.db import Database
from services.chassis.errors import AppError
from services.chassis.money import Money
from services.chassis.request_context import RequestKey
from services.payments import actions, refunds
from services.payments.actions import Begun, Order
from services.payments.domain import ANSWER_SECONDS, Payment, Refund, RefundState
from services.payments.flights import Flights
from services.payments.refunds import Part
from services.payments.rows import Standing

_MARGIN_SECONDS = 0.2
_CALLS_MOST = 32  # in one transaction, each with up to 200 orders


class Desk:
    """Where orders and staff bring their wishes."""

    def __init__(self, db: Database, flights: Flights, told: Callable[[], None]) -> None:
        """`told` is called after a commit that stored events."""
        self._db, self._flights, self._told = db, flights, told
        self._begin: Batcher[Sequence[Order], list[Begun | AppError]] = Batcher(
            "payments.begin", self._begin_all, size_max=_CALLS_MOST
        )

    async def charge(self, orders: Sequence[Order]) -> list[Payment | AppError]:
        """Begins or continues the payments of `orders`; one outcome for each, in their order."""
        patience = _Patience()
        self._flights.check_room()
        begun = await self._begin(orders)
        for one in begun:
            if isinstance(one, Begun) and one.ask:
                self._flights.ask(one.payment)
        known = [one.payment for one in begun if isinstance(one, Begun)]
        answers = iter(await self._flights.answers(known, seconds=patience.left()))
        return [next(answers) if isinstance(one, Begun) else one for one in begun]

    async def _begin_all(self, wishes: Sequence[Sequence[Order]]) -> list[list[Begun | AppError]]:
        """Begins the payments of several calls in one transaction."""
        begun = iter(await actions.begin_charges(self._db, [order for orders in wishes for order in orders]))
        return [[next(begun) for _ in orders] for orders in wishes]

    async def cancel(self, orders: Sequence[Order]) -> list[Payment]:
        """Gives up the payments of `orders`, where no money has moved."""
        patience = _Patience()
        begun = await actions.give_up(self._db, orders)
        return await self._given_up(begun, patience)

    async def refund(self, orders: Sequence[Order]) -> list[Payment]:
        """Pays back what was paid for `orders`, and gives up what was not."""
        patience = _Patience()
        begun = await actions.begin_refunds(self._db, orders)
        pending = [refund for one in begun for refund in one.refunds]
        self._pay_back(pending)
        payments = await self._given_up(begun, patience)
        if not pending:
            return payments
        await self._flights.refunded([refund.id for refund in pending], seconds=patience.left())
        now = await actions.get_payments(self._db, [one.payment.id for one in begun])
        return [now[payment.id] for payment in payments]

    async def refund_part(
        self, *, payment_id: uuid.UUID, amount: Money | None, reason: str, request: RequestKey | None
    ) -> Payment:
        """Pays back `amount`, or all that is left; the payment, with what the provider has confirmed of it."""
        patience = _Patience()
        refund = await refunds.begin(self._db, payment_id=payment_id, amount=amount, reason=reason, request=request)
        self._pay_back([refund])
        await self._flights.refunded([refund.id], seconds=patience.left())
        return await actions.get_payment(self._db, payment_id)

    async def refund_parts(self, parts: Sequence[Part]) -> list[Standing | AppError]:
        """Pays back each of `parts`; one outcome for each, with what the provider has confirmed of it."""
        patience = _Patience()
        begun = await refunds.begin_parts(self._db, parts)
        made = [one for one in begun if isinstance(one, Refund)]
        self._pay_back(made)
        await self._flights.refunded([refund.id for refund in made], seconds=patience.left())
        now = await refunds.get(self._db, [refund.id for refund in made]) if made else {}
        return [now[one.id] if isinstance(one, Refund) else one for one in begun]

    def _pay_back(self, begun: Sequence[Refund]) -> None:
        for refund in begun:
            if refund.state is RefundState.PENDING:
                self._flights.pay_back(refund)

    async def get(self, payment_id: uuid.UUID) -> Payment:
        """Raises `PaymentNotFound`."""
        return await actions.get_payment(self._db, payment_id)

    async def _given_up(self, begun: Sequence[Begun], patience: "_Patience") -> list[Payment]:
        self._told()
        for one in begun:
            if one.ask:
                self._flights.ask(one.payment)
        # A charge in flight is not waited for: whoever cancels asks again, and may do something else meanwhile.
        asked = [one.payment for one in begun if one.ask]
        answers = iter(await self._flights.answers(asked, seconds=patience.left()))
        return [next(answers) if one.ask else one.payment for one in begun]


class _Patience:
    """How long the current call may still wait for the provider."""

    def __init__(self) -> None:
        left = request_context.current().seconds_left()
        seconds = ANSWER_SECONDS if left is None else min(ANSWER_SECONDS, left - _MARGIN_SECONDS)
        self._until = time.monotonic() + seconds

    def left(self) -> float:
        return max(self._until - time.monotonic(), 0.0)
