"""Calls to the provider in flight: started, waited for, and seen to their end."""

import asyncio
import contextvars
import uuid
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import structlog

from services.chassis.batcher import Batcher
from services.chassis.data.db import Database
from services.chassis.errors import RateLimited
from services.payments import actions, refunds
from services.payments.domain import (
    IN_FLIGHT_MOST,
    NOT_FOUND,
    OPEN,
    Fact,
    Kind,
    Payment,
    Refund,
    RefundFact,
    State,
    next_step,
)
from services.payments.provider import Stripe

log = structlog.get_logger()

_STEPS_MOST = 3


class Flights:
    """What this process is asking the provider. Each payment and refund at most once at a time."""

    def __init__(self, db: Database, provider: Stripe, told: Callable[[], None]) -> None:
        """`told` is called after a commit that stored events."""
        self._db, self._provider, self._told = db, provider, told
        self._payments: dict[uuid.UUID, asyncio.Task[Payment | None]] = {}
        self._refunds: dict[uuid.UUID, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._settle: Batcher[tuple[Payment, Fact], Payment] = Batcher(
            "payments.settle", self._settle_all, lanes=1, queue_max=IN_FLIGHT_MOST
        )
        self._settle_refund: Batcher[RefundFact, Refund] = Batcher("payments.refund", self._settle_all_refunds, lanes=1)
        self.draining = False

    @property
    def payments(self) -> list[uuid.UUID]:
        """The payments in flight."""
        return list(self._payments)

    @property
    def refunds(self) -> list[uuid.UUID]:
        """The refunds in flight."""
        return list(self._refunds)

    def check_room(self) -> None:
        """Raises `RateLimited` where too much is in flight to begin more."""
        if len(self._payments) + len(self._refunds) >= IN_FLIGHT_MOST:
            raise RateLimited(what="payments")

    def ask(self, payment: Payment, *, key_expired: bool = False) -> None:
        """Begins to ask about a payment, unless that is under way."""
        if payment.id not in self._payments:
            task = _apart(self._bring_to_rest(payment, key_expired=key_expired))
            self._payments[payment.id] = task
            task.add_done_callback(lambda _: self._payments.pop(payment.id, None))

    def pay_back(self, refund: Refund, *, key_expired: bool = False) -> None:
        """Begins a refund at the provider, unless that is under way."""
        if refund.id not in self._refunds:
            task = _apart(self._pay_back(refund, key_expired=key_expired))
            self._refunds[refund.id] = task
            task.add_done_callback(lambda _: self._refunds.pop(refund.id, None))

    async def answers(self, payments: Sequence[Payment], *, seconds: float) -> list[Payment]:
        """The payments once they are no more in flight, or as they are known after `seconds`."""
        tasks = {p.id: self._payments[p.id] for p in payments if p.id in self._payments}
        if tasks:
            await asyncio.wait(tasks.values(), timeout=max(seconds, 0))
        answered = []
        for payment in payments:
            task = tasks.get(payment.id)
            done = task is not None and task.done() and not task.cancelled()
            answered.append((task.result() if task and done else None) or payment)
        return answered

    async def refunded(self, refund_ids: Iterable[uuid.UUID], *, seconds: float) -> None:
        """Waits for refunds in flight, for at most `seconds`."""
        if tasks := [self._refunds[key] for key in refund_ids if key in self._refunds]:
            await asyncio.wait(tasks, timeout=max(seconds, 0))

    async def drain(self, *, seconds: float) -> None:
        """Takes nothing new from the reconciler, and waits until what is in flight has ended."""
        self.draining = True
        pending: set[asyncio.Task[Any]] = {*self._payments.values(), *self._refunds.values(), *self._others}
        if pending:
            _, late = await asyncio.wait(pending, timeout=seconds)
            for task in late:  # their leases run out, and another process takes them over
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _bring_to_rest(self, payment: Payment, *, key_expired: bool) -> Payment | None:
        """Asks, stores the answer, and goes on where a cancellation waits. None: the answer could not be stored."""
        try:
            for _ in range(_STEPS_MOST):
                fact = await self._provider.ask(payment, next_step(payment, key_expired=key_expired))
                if fact.reason == NOT_FOUND:
                    await actions.new_attempt(self._db, payment)
                payment = await self._settle((payment, fact))
                waits = payment.cancel_requested and payment.state is State.AWAITING_CUSTOMER
                if fact.kind is Kind.UNKNOWN or not waits:
                    break
            if payment.state is State.FAILED and payment.provider_reference is not None:
                self._close(payment)
            return payment
        except Exception:
            # The row's lease runs out, and the reconciler asks again, under the same key.
            log.exception("an answer was not stored", payment_id=payment.id)
            return None

    def _close(self, payment: Payment) -> None:
        """Ends a declined intent, so that nothing can ever be paid on it. Best effort: nobody has its secret."""

        async def close() -> None:
            await self._provider.close_intent(payment)

        task = _apart(close())
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def _pay_back(self, refund: Refund, *, key_expired: bool) -> None:
        try:
            await self._settle_refund(await self._provider.refund(refund, key_expired=key_expired))
        except Exception:
            log.exception("an answer was not stored", refund_id=refund.id)

    async def _settle_all(self, said: Sequence[tuple[Payment, Fact]]) -> list[Payment]:
        payments = await actions.settle(self._db, said)
        if any(payment.state not in OPEN for payment in payments):
            self._told()
        return payments

    async def _settle_all_refunds(self, facts: Sequence[RefundFact]) -> list[Refund]:
        settled = await refunds.settle(self._db, facts)
        self._told()
        return settled


def _apart(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task in a context of its own: it outlives the call that began it, and its deadline."""
    return asyncio.create_task(work, context=contextvars.Context())
