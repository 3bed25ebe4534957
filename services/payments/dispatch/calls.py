"""One call to a provider: looks again whether it is wanted, shares searches, and notices when a provider is back."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice

from services.chassis.batcher import Batcher
from services.chassis.data.db import Database
from services.payments.dispatch import rules
from services.payments.dispatch.rules import Operation, RefundOperation, next_refund_operation
from services.payments.domain import (
    READ_AGAIN_SECONDS,
    Calls,
    ChargeResult,
    ChargeStatus,
    Payment,
    Refund,
    RefundResult,
)
from services.payments.providers import OutcomeUnknown, PaymentProvider, Withdrawn
from services.payments.sql import payments, refunds

NOT_TAKEN = "NOT_TAKEN"
_SEARCHED_MOST = 5_000
_REMEMBERED_SECONDS = 300.0
_SILENT_AFTER = 5  # calls in a row without an answer


class ProviderCalls:
    """The calls of this process to all providers."""

    def __init__(self, db: Database, providers: Mapping[str, PaymentProvider], recovered: Callable[[], None]) -> None:
        """`recovered` is called when a provider answers again after it gave no answer for some time."""
        self._db, self._providers, self._recovered = db, providers, recovered
        self._unsent: dict[uuid.UUID, asyncio.Task[object]] = {}
        self._withdrawn: dict[uuid.UUID, float] = {}
        self._without_answer = 0
        self._is_wanted: Batcher[Payment, bool] = Batcher("payments.wanted", self._are_wanted)
        self._find = {
            name: Batcher[Payment, ChargeResult | None](f"{name}.find", _finder(provider), size_max=_SEARCHED_MOST)
            for name, provider in providers.items()
        }

    @property
    def is_silent(self) -> bool:
        """Whether no call of late got an answer."""
        return self._without_answer >= _SILENT_AFTER

    def withdraw(self, payment_id: uuid.UUID) -> bool:
        """Have no call begin any more that could take money of a payment. Return whether one waited for its turn."""
        now = time.monotonic()
        # A call that begins later than this has read a row that says so.
        for old in [key for key, since in islice(self._withdrawn.items(), 100) if now - since > _REMEMBERED_SECONDS]:
            del self._withdrawn[old]
        self._withdrawn[payment_id] = now
        task = self._unsent.pop(payment_id, None)
        if task is not None:
            task.cancel()
        return task is not None

    async def charge(self, payment: Payment, operation: Operation, calls: Calls, read_time: float) -> ChargeResult:
        """Make one call about a payment that was read at `read_time`, by the monotonic clock. Return its result."""
        try:
            if operation is Operation.FIND:
                return await self._search(payment, calls)
            if operation in (Operation.CREATE, Operation.CONFIRM):
                result = await self._take_money(payment, operation, read_time)
            else:
                provider = self._providers[payment.provider]
                result = await (provider.cancel if operation is Operation.CANCEL else provider.retrieve)(payment)
        except Withdrawn:
            never = calls.is_first and operation is Operation.CREATE
            return ChargeResult(
                payment_id=payment.id, status=ChargeStatus.WITHDRAWN if never else ChargeStatus.UNKNOWN, calls=calls
            )
        except OutcomeUnknown as unknown:
            self._without_answer += 1
            ended = unknown.has_ended or operation not in (Operation.CREATE, Operation.CONFIRM)
            return ChargeResult(payment_id=payment.id, status=ChargeStatus.UNKNOWN, calls=calls if ended else None)
        self._note_answer()
        return result

    async def _take_money(self, payment: Payment, operation: Operation, read_time: float) -> ChargeResult:
        """Make a call that can take money, unless that is not wanted any more when its turn has come."""
        task = asyncio.current_task()
        assert task
        sent = False

        async def check() -> None:
            nonlocal sent
            late = time.monotonic() - read_time > READ_AGAIN_SECONDS
            if (late and not await self._is_wanted(payment)) or payment.id in self._withdrawn:
                raise Withdrawn()
            self._unsent.pop(payment.id, None)
            sent = True

        if payment.id in self._withdrawn:
            raise Withdrawn()
        provider = self._providers[payment.provider]
        self._unsent[payment.id] = task
        try:
            return await (provider.create if operation is Operation.CREATE else provider.confirm)(payment, check)
        except asyncio.CancelledError:
            if sent or payment.id not in self._withdrawn:
                raise
            task.uncancel()  # by `withdraw`
            raise Withdrawn() from None
        finally:
            self._unsent.pop(payment.id, None)

    async def _are_wanted(self, read: Sequence[Payment]) -> list[bool]:
        wanted = await payments.read_wanted(self._db, [payment.id for payment in read])
        return [(payment.id, payment.attempt) in wanted for payment in read]

    async def _search(self, payment: Payment, calls: Calls) -> ChargeResult:
        """Search the provider's records for a payment; all that wait for a search share the next one."""
        if found := await self._find[payment.provider](payment):
            return found
        if payment.cancel_requested and rules.is_over(calls):
            return ChargeResult(payment_id=payment.id, status=ChargeStatus.WITHDRAWN)
        if not payment.cancel_requested:
            async with self._db.begin() as tx:
                await payments.change_key(tx, payment)
        return ChargeResult(payment_id=payment.id, status=ChargeStatus.UNKNOWN, calls=calls)

    async def refund(self, refund: Refund, calls: Calls) -> RefundResult | None:
        """Make one call about a refund. Return its result; None if it goes on under a new key."""
        provider = self._providers[refund.provider]
        operation = next_refund_operation(refund, key_expired=calls.key_age > provider.key_lifetime)
        unknown = RefundResult(refund_id=refund.id, payment_id=refund.payment_id, calls=calls)
        try:
            if operation is not RefundOperation.FIND:
                result = await provider.refund(refund)
                self._note_answer()
                return result
            listed = await provider.list_refunds(refund.charge_reference)
        except OutcomeUnknown as failed:
            self._without_answer += 1
            ended = failed.has_ended or operation is not RefundOperation.CREATE
            return unknown if ended else RefundResult(refund_id=refund.id, payment_id=refund.payment_id)
        self._note_answer()
        if made := next((one for one in listed if one.is_of(refund)), None):
            return made.result(refund)
        if rules.may_change_key(refund, calls):
            async with self._db.begin() as tx:
                await refunds.change_key(tx, refund)
            return None
        if refund.attempt < rules.REFUND_KEYS_MOST:
            return unknown
        return RefundResult(refund_id=refund.id, payment_id=refund.payment_id, calls=calls, problem=NOT_TAKEN)

    def _note_answer(self) -> None:
        was_silent, self._without_answer = self.is_silent, 0
        if was_silent:
            self._recovered()


def _finder(
    provider: PaymentProvider,
) -> Callable[[Sequence[Payment]], Awaitable[list[ChargeResult | Exception | None]]]:
    async def find(wanted: Sequence[Payment]) -> list[ChargeResult | Exception | None]:
        try:
            found = await provider.find(wanted)
        except OutcomeUnknown as unknown:
            return [unknown for _ in wanted]
        return [found.get(payment.id) for payment in wanted]

    return find
