"""Calls to providers: started, awaited, and their results stored. No transaction is open during a call."""

import asyncio
import contextvars
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import structlog

from services.chassis import request_context
from services.chassis.batcher import Batcher
from services.chassis.data.db import Database
from services.chassis.errors import RateLimited
from services.payments.books import disputes
from services.payments.dispatch import settle
from services.payments.dispatch.calls import ProviderCalls
from services.payments.dispatch.rules import Operation, next_operation
from services.payments.domain import ANSWER_SECONDS, IN_PROGRESS_MOST, OPEN, Calls, Payment, Refund, State
from services.payments.providers import Providers
from services.payments.providers.results import ChargeRecord, ChargeResult, ChargeStatus, RefundResult, Unknown
from services.payments.refunds import listed
from services.payments.sql.disputes import DisputeCheck
from services.payments.sql.payments import RefundCheck

log = structlog.get_logger()

_OPERATIONS_MOST = 3
_MARGIN_SECONDS = 0.2
_FIRST = Calls()
_WARN_BEFORE = timedelta(days=2)


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

    def __init__(self, db: Database, providers: Providers, published: Callable[[], None]) -> None:
        """`published` is called after a commit that stored events."""
        self._db, self._providers, self._published = db, providers, published
        self._payments: dict[uuid.UUID, asyncio.Task[Payment | None]] = {}
        self._refunds: dict[uuid.UUID, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[Any]] = set()
        self._settle: Batcher[tuple[Payment, ChargeResult], Payment] = Batcher(
            "payments.settle", self._settle_all, lanes=1, queue_max=IN_PROGRESS_MOST
        )
        self._settle_refund: Batcher[RefundResult, Refund] = Batcher("payments.refund", self._settle_refunds, lanes=1)
        self._calls = ProviderCalls(db, providers)
        self.recovered = set[str]()
        """The providers that answer again after they gave no answers for some time. The reconciler empties it."""
        for name, provider in providers.items():
            provider.limits.breaker.callbacks.append(partial(self.recovered.add, name))
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

    def advance(self, payment: Payment, *, calls: Calls = _FIRST) -> None:
        """Start the provider calls that an open payment needs next, unless it is in progress already.

        The payment was read just now. `calls` are those that were made for it before.
        """
        if payment.id not in self._payments:
            task = _detached(self._advance(payment, calls, time.monotonic()))
            self._payments[payment.id] = task
            task.add_done_callback(lambda _: self._payments.pop(payment.id, None))

    def withdraw(self, payment_ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
        """Have no call begin that could take money of these payments: their rows say that it is not wanted.

        Return those whose call waited for its turn. Those that are under way already are looked up afterwards.
        """
        return {payment_id for payment_id in payment_ids if self._calls.withdraw(payment_id)}

    @property
    def silent_providers(self) -> list[str]:
        """The providers that gave no answers of late."""
        return [name for name, provider in self._providers.items() if provider.limits.breaker.is_open]

    @property
    def patience_with_staff(self) -> dict[str, timedelta]:
        """How long authorised money waits before staff are warned, by provider: until two days before it lapses."""
        return {name: provider.can.authorises_for - _WARN_BEFORE for name, provider in self._providers.items()}

    def refund(self, refund: Refund, *, calls: Calls = _FIRST) -> None:
        """Start a refund at the provider, unless it is in progress already."""
        if refund.id not in self._refunds:
            task = _detached(self._refund(refund, calls))
            self._refunds[refund.id] = task
            task.add_done_callback(lambda _: self._refunds.pop(refund.id, None))

    def is_in_progress(self, payment_id: uuid.UUID) -> bool:
        return payment_id in self._payments

    async def look_up(self, payment: Payment, reference: str, provider: str) -> ChargeRecord | Unknown | None:
        """Return the record of a charge of a payment at `provider`; None if it has none."""
        return await self._providers[provider].look_up(payment, reference) if provider in self._providers else Unknown()

    def check_refunds(self, check: RefundCheck) -> None:
        """Start to compare a payment's refunds with the provider's list."""
        self._detach(self._check_refunds(check))

    def check_dispute(self, check: DisputeCheck) -> None:
        """Start to read the provider's record of a dispute."""
        self._detach(self._check_dispute(check))

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

    async def _advance(self, payment: Payment, calls: Calls, read_time: float) -> Payment | None:
        """Call the provider and store the result, again while a cancellation or an attempt waits. None: not stored."""
        try:
            for _ in range(_OPERATIONS_MOST):
                before, operation = payment, self._next_operation(payment, calls)
                result = await self._calls.charge(payment, operation, calls, read_time)
                payment, read_time = await self._settle((payment, result)), time.monotonic()
                if payment.attempt != before.attempt:
                    calls = _FIRST
                if not _goes_on(before, payment, result, operation):
                    break
            if payment.state is State.FAILED and payment.provider_reference is not None:
                self._void(payment)
            return payment
        except Exception:
            # The row's lease expires, and the reconciler repeats the call under the same key.
            log.exception("a provider result was not stored", payment_id=payment.id)
            return None

    def _next_operation(self, payment: Payment, calls: Calls) -> Operation:
        if (provider := self._providers.get(payment.provider)) is None:
            return Operation.RETRIEVE  # no call is made
        expired = calls.key_age > provider.key_lifetime
        return next_operation(payment, key_expired=expired, can_void=provider.can.voids)

    def _void(self, payment: Payment) -> None:
        """Void a declined charge, so that it can never be paid. If that fails, still no customer has its secret."""
        self._detach(self._calls.charge(payment, Operation.VOID, Calls(), time.monotonic()))

    async def _refund(self, refund: Refund, calls: Calls) -> None:
        try:
            if result := await self._calls.refund(refund, calls):
                await self._settle_refund(result)
        except Exception:
            log.exception("a provider result was not stored", refund_id=refund.id)

    async def _check_refunds(self, check: RefundCheck) -> None:
        try:
            await listed.check_refunds(self._db, self._providers, check)
            self._published()
        except Exception:  # the lease expires, and the check is claimed again
            log.exception("refunds are not compared", payment_id=check.payment.id)

    async def _check_dispute(self, check: DisputeCheck) -> None:
        try:
            await disputes.check_dispute(self._db, self._providers[check.provider], check)
            self._published()
        except Exception:  # it is due again later
            log.exception("a dispute is not read", payment_id=check.payment_id, dispute=check.reference)

    def _detach(self, work: Coroutine[Any, Any, Any]) -> None:
        task = _detached(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def _settle_all(self, results: Sequence[tuple[Payment, ChargeResult]]) -> list[Payment]:
        settled = await settle.settle_charges(self._db, results)
        if any(payment.state in settle.PUBLISHED for payment in settled):
            self._published()
        return settled

    async def _settle_refunds(self, results: Sequence[RefundResult]) -> list[Refund]:
        settled = await settle.settle_refunds(self._db, results)
        self._published()
        return settled


def _goes_on(before: Payment, payment: Payment, result: ChargeResult, operation: Operation) -> bool:
    """Whether a payment needs another call now: for a requested cancellation, or for another attempt.

    Money that was just authorised is captured, unless that waits for staff.
    """
    if payment.state not in OPEN:
        return False
    if payment.state is State.AUTHORIZED:
        # Staff, or a reversal, have decided while the call was made.
        return payment.capture is not before.capture
    if result.status is ChargeStatus.AUTHORISED and payment.capture_reference is not None:
        return True
    if payment.cancel_requested:
        if result.status is ChargeStatus.UNKNOWN:
            # A call that took no effect gives way to the one that voids or finds the charge; that one is not repeated.
            return result.calls is not None and operation in (Operation.CREATE, Operation.CONFIRM)
        return payment.is_cancellable
    if payment.next_terms:
        return result.status is not ChargeStatus.UNKNOWN and operation is not Operation.VOID
    return payment.attempt != before.attempt and payment.state is State.PROCESSING


def _detached(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Start a task in a context of its own: it outlives the call that started it, and its deadline."""
    return asyncio.create_task(work, context=contextvars.Context())
