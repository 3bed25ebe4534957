"""Calls to providers: started, awaited, and their results stored. No transaction is open during a call."""

import asyncio
import contextvars
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import structlog

from services.chassis import request_context
from services.chassis.batcher import Batcher
from services.chassis.data.db import Database
from services.chassis.errors import RateLimited
from services.payments import settle
from services.payments.dispatch.rules import Operation, next_operation
from services.payments.domain import (
    ANSWER_SECONDS,
    IN_PROGRESS_MOST,
    OPEN,
    ChargeRecord,
    ChargeResult,
    ChargeStatus,
    Payment,
    Refund,
    RefundResult,
    State,
)
from services.payments.providers import OutcomeUnknown, PaymentProvider
from services.payments.refunds import listed
from services.payments.sql import payments
from services.payments.sql.payments import RefundCheck

log = structlog.get_logger()

_OPERATIONS_MOST = 3
_MARGIN_SECONDS = 0.2
_NEW_KEY = timedelta(0)


class Deadline:
    """The time until which the current call may wait for the provider."""

    def __init__(self) -> None:
        left = request_context.current().seconds_left()
        seconds = ANSWER_SECONDS if left is None else min(ANSWER_SECONDS, left - _MARGIN_SECONDS)
        self._until = time.monotonic() + seconds

    def seconds_left(self) -> float:
        return max(self._until - time.monotonic(), 0.0)


class ChargeDispatcher:
    """The payments and refunds in progress at providers, from this process. Each is in progress at most once."""

    def __init__(self, db: Database, providers: Mapping[str, PaymentProvider], published: Callable[[], None]) -> None:
        """`published` is called after a commit that stored events."""
        self._db, self._providers, self._published = db, providers, published
        self._payments: dict[uuid.UUID, asyncio.Task[Payment | None]] = {}
        self._refunds: dict[uuid.UUID, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[Any]] = set()
        self._settle: Batcher[tuple[Payment, ChargeResult], Payment] = Batcher(
            "payments.settle", self._settle_all, lanes=1, queue_max=IN_PROGRESS_MOST
        )
        self._settle_refund: Batcher[RefundResult, Refund] = Batcher("payments.refund", self._settle_refunds, lanes=1)
        self.draining = False

    @property
    def payment_ids(self) -> list[uuid.UUID]:
        """The payments in progress."""
        return list(self._payments)

    @property
    def refund_ids(self) -> list[uuid.UUID]:
        """The refunds in progress."""
        return list(self._refunds)

    def check_capacity(self) -> None:
        """Raise `RateLimited` if too much is in progress to begin more."""
        if len(self._payments) + len(self._refunds) >= IN_PROGRESS_MOST:
            raise RateLimited(what="payments")

    def advance(self, payment: Payment, *, key_age: timedelta = _NEW_KEY) -> None:
        """Start the provider calls that an open payment needs next, unless it is in progress already."""
        if payment.id not in self._payments:
            task = _detached(self._advance(payment, key_age))
            self._payments[payment.id] = task
            task.add_done_callback(lambda _: self._payments.pop(payment.id, None))

    def refund(self, refund: Refund, *, key_age: timedelta = _NEW_KEY) -> None:
        """Start a refund at the provider, unless it is in progress already."""
        if refund.id not in self._refunds:
            task = _detached(self._refund(refund, key_age))
            self._refunds[refund.id] = task
            task.add_done_callback(lambda _: self._refunds.pop(refund.id, None))

    def is_in_progress(self, payment_id: uuid.UUID) -> bool:
        return payment_id in self._payments

    async def look_up(self, payment: Payment, reference: str) -> ChargeRecord | None:
        """Return the record of a charge at the payment's provider. Raises `OutcomeUnknown`."""
        return await self._providers[payment.provider].look_up(payment, reference)

    def check_refunds(self, check: RefundCheck) -> None:
        """Start to compare a payment's refunds with the provider's list."""
        self._detach(self._check_refunds(check))

    async def wait(self, known: Sequence[Payment], *, seconds: float) -> list[Payment]:
        """Return payments once they are no longer in progress, or as they are `known` after `seconds`."""
        tasks = {p.id: self._payments[p.id] for p in known if p.id in self._payments}
        if tasks:
            await asyncio.wait(tasks.values(), timeout=max(seconds, 0))
        now = []
        for payment in known:
            task = tasks.get(payment.id)
            done = task is not None and task.done() and not task.cancelled()
            now.append((task.result() if task and done else None) or payment)
        return now

    async def wait_for_refunds(self, refund_ids: Iterable[uuid.UUID], *, seconds: float) -> None:
        """Wait until refunds are no longer in progress, for at most `seconds`."""
        if tasks := [self._refunds[key] for key in refund_ids if key in self._refunds]:
            await asyncio.wait(tasks, timeout=max(seconds, 0))

    async def drain(self, *, seconds: float) -> None:
        """Refuse new work of the reconciler, and wait until nothing is in progress."""
        self.draining = True
        pending: set[asyncio.Task[Any]] = {*self._payments.values(), *self._refunds.values(), *self._others}
        if pending:
            _, late = await asyncio.wait(pending, timeout=seconds)
            for task in late:  # their leases expire, and another process takes them over
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _advance(self, payment: Payment, key_age: timedelta) -> Payment | None:
        """Call the provider and store the result, again while a requested cancellation waits. None: not stored."""
        provider = self._providers[payment.provider]
        try:
            for _ in range(_OPERATIONS_MOST):
                operation = next_operation(payment, key_expired=key_age > provider.key_lifetime)
                result = await self._call(provider, payment, operation)
                payment = await self._settle((payment, result))
                must_cancel = payment.cancel_requested and payment.is_cancellable
                if result.status is ChargeStatus.UNKNOWN or not must_cancel:
                    break
            if payment.state is State.FAILED and payment.provider_reference is not None:
                self._void(provider, payment)
            return payment
        except Exception:
            # The row's lease expires, and the reconciler repeats the call under the same key.
            log.exception("a provider result was not stored", payment_id=payment.id)
            return None

    async def _call(self, provider: PaymentProvider, payment: Payment, operation: Operation) -> ChargeResult:
        calls: dict[Operation, Callable[[Payment], Awaitable[ChargeResult | None]]] = {
            Operation.CREATE: provider.create,
            Operation.FIND: provider.find,
            Operation.CONFIRM: provider.confirm,
            Operation.CANCEL: provider.cancel,
            Operation.RETRIEVE: provider.retrieve,
        }
        unknown = ChargeResult(payment_id=payment.id, status=ChargeStatus.UNKNOWN)
        try:
            result = await calls[operation](payment)
        except OutcomeUnknown:
            return unknown
        if result is None:
            async with self._db.begin() as tx:
                await payments.change_key(tx, payment)
        return result or unknown

    def _void(self, provider: PaymentProvider, payment: Payment) -> None:
        """Void a declined charge, so that it can never be paid. If that fails, still no customer has its secret."""
        self._detach(self._call(provider, payment, Operation.CANCEL))

    async def _refund(self, refund: Refund, key_age: timedelta) -> None:
        provider = self._providers[refund.provider]
        try:
            try:
                result = await provider.refund(refund, key_expired=key_age > provider.key_lifetime)
            except OutcomeUnknown:
                result = RefundResult(refund_id=refund.id, payment_id=refund.payment_id)
            await self._settle_refund(result)
        except Exception:
            log.exception("a provider result was not stored", refund_id=refund.id)

    async def _check_refunds(self, check: RefundCheck) -> None:
        try:
            await listed.check_refunds(self._db, self._providers[check.payment.provider], check)
            self._published()
        except Exception:  # the lease expires, and the check is claimed again
            log.exception("refunds are not compared", payment_id=check.payment.id)

    def _detach(self, work: Coroutine[Any, Any, Any]) -> None:
        task = _detached(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def _settle_all(self, results: Sequence[tuple[Payment, ChargeResult]]) -> list[Payment]:
        settled = await settle.settle_charges(self._db, results)
        if any(payment.state not in OPEN for payment in settled):
            self._published()
        return settled

    async def _settle_refunds(self, results: Sequence[RefundResult]) -> list[Refund]:
        settled = await settle.settle_refunds(self._db, results)
        self._published()
        return settled


def _detached(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Start a task in a context of its own: it outlives the call that started it, and its deadline."""
    return asyncio.create_task(work, context=contextvars.Context())
