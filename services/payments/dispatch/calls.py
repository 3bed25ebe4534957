"""One call to a provider: looks again whether it is wanted, shares searches, and notices when a provider is back."""

import asyncio
import dataclasses
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice

from services.chassis.batcher import Batcher
from services.chassis.data.db import Database
from services.payments.dispatch import rules
from services.payments.dispatch.rules import Operation, RefundOperation, next_refund_operation
from services.payments.dispatch.saved_methods import SavedMethods
from services.payments.domain import PROVIDER_NOT_SET_UP, READ_AGAIN_SECONDS, Calls, Payment, Refund
from services.payments.providers import PaymentProvider, Providers, Withdrawn
from services.payments.providers.results import ChargeResult, ChargeStatus, RefundResult, Unknown, unknown_charge
from services.payments.sql import payments, refunds, wanted

NOT_TAKEN = "NOT_TAKEN"
Found = ChargeResult | Unknown | None
"""The finding of a search for one payment; None if the provider has no charge of it."""
_SEARCHED_MOST = 5_000
_REMEMBERED_SECONDS = 300.0
_TAKE_MONEY = (Operation.CREATE, Operation.CONFIRM, Operation.CAPTURE)


class ProviderCalls:
    """The calls of this process to all providers."""

    def __init__(self, db: Database, providers: Providers) -> None:
        self._db, self._providers = db, providers
        self._saved = SavedMethods(db, providers)
        self._unsent: dict[uuid.UUID, asyncio.Task[object]] = {}
        self._withdrawn: dict[uuid.UUID, float] = {}
        self._is_wanted: Batcher[Payment, bool] = Batcher("payments.wanted", self._are_wanted)
        self._find = {
            name: Batcher[Payment, Found](f"{name}.find", _finder(provider), size_max=_SEARCHED_MOST)
            for name, provider in providers.items()
        }

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
        if payment.provider not in self._providers:
            return ChargeResult(
                payment_id=payment.id, status=ChargeStatus.UNKNOWN, calls=calls, problem=PROVIDER_NOT_SET_UP
            )
        try:
            if operation is Operation.FIND:
                if payment.cancel_requested and calls.is_first:
                    return ChargeResult(payment_id=payment.id, status=ChargeStatus.WITHDRAWN)
                return await self._search(payment, calls)
            result = await self._call(payment, operation, read_time)
        except Withdrawn:
            never = calls.is_first and operation is Operation.CREATE
            return ChargeResult(
                payment_id=payment.id, status=ChargeStatus.WITHDRAWN if never else ChargeStatus.UNKNOWN, calls=calls
            )
        if result.status is ChargeStatus.UNKNOWN:
            ended = result.has_ended or operation not in _TAKE_MONEY
            calls = dataclasses.replace(calls, is_first=calls.is_first and not result.was_sent)
            return dataclasses.replace(result, calls=calls if ended else None)
        return result

    async def _call(self, payment: Payment, operation: Operation, read_time: float) -> ChargeResult:
        provider = self._providers[payment.provider]
        match operation:
            case Operation.VOID:
                return await provider.void(payment)
            case Operation.RETRIEVE:
                return await provider.retrieve(payment)
            case Operation.CAPTURE if not provider.can.voids:
                # Wanted or not: what is authorised there goes back only after it was captured.
                return await provider.capture(payment, payment.amount_minor, _unconditionally)
        return await self._take_money(payment, operation, read_time)

    async def _take_money(self, payment: Payment, operation: Operation, read_time: float) -> ChargeResult:
        """Make a call that can take money, unless that is not wanted any more when its turn has come."""
        task = asyncio.current_task()
        assert task
        sent, is_capture = False, operation is Operation.CAPTURE

        async def check() -> None:
            nonlocal sent
            # A capture always asks the row: staff may request it after the charge was withdrawn because its hold ended.
            late = is_capture or time.monotonic() - read_time > READ_AGAIN_SECONDS
            if (late and not await self._is_wanted(payment)) or (payment.id in self._withdrawn and not is_capture):
                raise Withdrawn()
            self._unsent.pop(payment.id, None)
            sent = True

        if payment.id in self._withdrawn and not is_capture:
            raise Withdrawn()
        provider, customer = self._providers[payment.provider], ""
        if operation is Operation.CREATE and payment.terms and payment.terms.names_customer:
            found = await self._saved.customer_of(payment)
            if isinstance(found, Unknown):
                return unknown_charge(payment, has_ended=True)
            customer = found
        self._unsent[payment.id] = task
        try:
            if is_capture:
                return await provider.capture(payment, payment.amount_minor, check)
            if operation is Operation.CREATE:
                return await provider.create(payment, check, customer)
            return await provider.confirm(payment, check)
        except asyncio.CancelledError:
            if sent or payment.id not in self._withdrawn:
                raise
            task.uncancel()  # by `withdraw`
            raise Withdrawn() from None
        finally:
            self._unsent.pop(payment.id, None)

    async def _are_wanted(self, read: Sequence[Payment]) -> list[bool]:
        still = await wanted.read_wanted(self._db, [payment.id for payment in read])
        return [(payment.id, payment.attempt) in still for payment in read]

    async def _search(self, payment: Payment, calls: Calls) -> ChargeResult:
        """Search the provider's records for a payment; all that wait for a search share the next one."""
        found = await self._find[payment.provider](payment)
        if isinstance(found, ChargeResult):
            return found
        if isinstance(found, Unknown):
            return ChargeResult(payment_id=payment.id, status=ChargeStatus.UNKNOWN, calls=calls)
        if payment.cancel_requested and rules.is_over(calls):
            return ChargeResult(payment_id=payment.id, status=ChargeStatus.WITHDRAWN)
        if not payment.cancel_requested:
            async with self._db.begin() as tx:
                await payments.change_key(tx, payment)
        return ChargeResult(payment_id=payment.id, status=ChargeStatus.UNKNOWN, calls=calls)

    async def refund(self, refund: Refund, calls: Calls) -> RefundResult | None:
        """Make one call about a refund. Return its result; None if it goes on under a new key."""
        if (provider := self._providers.get(refund.provider)) is None:
            return RefundResult(
                refund_id=refund.id, payment_id=refund.payment_id, calls=calls, problem=PROVIDER_NOT_SET_UP
            )
        operation = next_refund_operation(refund, key_expired=calls.key_age > provider.key_lifetime)
        unknown = RefundResult(refund_id=refund.id, payment_id=refund.payment_id, calls=calls)
        if operation is not RefundOperation.FIND:
            result = await provider.refund(refund)
            if result.state is None:
                ended = result.has_ended or operation is not RefundOperation.CREATE
                return dataclasses.replace(result, calls=calls if ended else None)
            return result
        listed = await provider.list_refunds(refund.charge_reference)
        if isinstance(listed, Unknown):
            return unknown
        if made := next((one for one in listed if one.is_of(refund)), None):
            return made.result(refund)
        if rules.may_change_key(refund, calls):
            async with self._db.begin() as tx:
                await refunds.change_key(tx, refund)
            return None
        if refund.attempt < rules.REFUND_KEYS_MOST:
            return unknown
        return RefundResult(refund_id=refund.id, payment_id=refund.payment_id, calls=calls, problem=NOT_TAKEN)


async def _unconditionally() -> None:
    """The `Check` of a call that is made in any case."""


def _finder(
    provider: PaymentProvider,
) -> Callable[[Sequence[Payment]], Awaitable[list[Found]]]:
    async def find(wanted: Sequence[Payment]) -> list[Found]:
        found = await provider.find(wanted)
        return [found if isinstance(found, Unknown) else found.get(payment.id) for payment in wanted]

    return find
