"""A second provider needs an implementation of the port and a registration, and nothing else."""

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from services.chassis.data.db import Database
from services.chassis.money import Money
from services.payments.charges import Charges
from services.payments.dispatch.dispatcher import ChargeDispatcher
from services.payments.dispatch.reconciler import Reconciler
from services.payments.domain import BadSignature, Charge, Payment, Refund, RefundState, State
from services.payments.providers import Capabilities, Check, PaymentProvider, Providers
from services.payments.providers.events import ProviderEvent
from services.payments.providers.limits import ProviderLimits
from services.payments.providers.results import (
    ChargeRecord,
    ChargeResult,
    ChargeStatus,
    ProviderRefund,
    RefundResult,
    unknown_charge,
)
from services.payments.webhooks import inbox
from tests.integration.payments.conftest import Payments


class Coins:
    """A provider that loses its first answer, and remembers what it took and gave back."""

    name = "coins"
    can = Capabilities(
        charges_tokens=True, voids=True, charged_once=True, hosts_pages=False, signs_callbacks=False,
        authorises_for=timedelta(days=7),
    )  # fmt: skip
    vault = None
    limits = ProviderLimits("coins", calls_per_second=0, concurrency=1)
    key_lifetime = timedelta(hours=1)

    def __init__(self) -> None:
        self.taken, self.refunded, self.calls = set[uuid.UUID](), set[uuid.UUID](), Counter[str]()

    def _result(self, payment: Payment, status: ChargeStatus) -> ChargeResult:
        return ChargeResult(
            payment_id=payment.id, status=status, reference=f"coin_{payment.id}",
            amount_minor=payment.amount_minor, currency=payment.currency,
        )  # fmt: skip

    async def create(self, payment: Payment, check: Check, customer: str = "") -> ChargeResult:
        await check()
        self.calls["create"] += 1
        if not payment.payment_method:
            return self._result(payment, ChargeStatus.REQUIRES_ACTION)
        self.taken.add(payment.id)
        if self.calls["create"] == 1:
            return unknown_charge(payment)
        return self._result(payment, ChargeStatus.SUCCEEDED)

    async def confirm(self, payment: Payment, check: Check) -> ChargeResult:
        await check()
        return self._result(payment, ChargeStatus.SUCCEEDED)

    async def capture(self, payment: Payment, amount_minor: int, check: Check) -> ChargeResult:
        return self._result(payment, ChargeStatus.SUCCEEDED)

    async def void(self, payment: Payment) -> ChargeResult:
        return self._result(payment, ChargeStatus.CANCELLED)

    async def retrieve(self, payment: Payment) -> ChargeResult:
        return self._result(payment, ChargeStatus.SUCCEEDED if payment.id in self.taken else ChargeStatus.PENDING)

    async def look_up(self, payment: Payment, reference: str) -> ChargeRecord | None:
        return ChargeRecord(payment_id=payment.id, result=await self.retrieve(payment))

    async def find(self, payments: Sequence[Payment]) -> dict[uuid.UUID, ChargeResult]:
        return {}

    async def refund(self, refund: Refund) -> RefundResult:
        self.refunded.add(refund.payment_id)
        return RefundResult(refund_id=refund.id, payment_id=refund.payment_id, state=RefundState.SUCCEEDED)

    async def list_refunds(self, charge_reference: str) -> list[ProviderRefund]:
        return []

    async def list_events(self, since: datetime, until: datetime) -> list[ProviderEvent]:
        return []

    def verify_webhook(self, body: bytes, headers: Mapping[str, Any]) -> ProviderEvent | None:
        raise BadSignature()

    def verify_callback(self, fields: Mapping[str, str]) -> str:
        raise BadSignature()

    async def aclose(self) -> None:
        pass


def a_charge(method: str = "coin") -> Charge:
    order_id, customer_id = uuid.uuid4(), uuid.uuid4()
    return Charge(order_id=order_id, customer_id=customer_id, amount=Money("USD", 1999), payment_method=method)


async def test_a_second_provider_charges_reverses_and_sends_events(db: Database, service: Payments) -> None:
    coins: PaymentProvider = Coins()
    assert isinstance(coins, Coins)
    providers = Providers(service.provider, coins, default=coins.name)
    dispatcher = ChargeDispatcher(db, providers, service.relay.nudge)
    charges = Charges(db, dispatcher, service.relay.nudge, providers)

    charge = a_charge()
    (unknown,) = await charges.charge([charge])
    assert isinstance(unknown, Payment)
    assert (unknown.state, unknown.provider) == (State.PROCESSING, "coins")
    await service.rows("UPDATE payments SET next_check_time = now()")
    await Reconciler(db, dispatcher, service.relay).reconcile_once()
    await dispatcher.wait([unknown], seconds=10)
    (paid,) = await charges.charge([charge])
    assert isinstance(paid, Payment)
    assert (paid.state, coins.taken, coins.calls["create"]) == (State.SUCCEEDED, {paid.id}, 2)

    (reversed_,) = await charges.reverse([charge])
    assert (reversed_.state, coins.refunded) == (State.REFUNDED, {paid.id})

    (waiting,) = await charges.charge([a_charge("")])
    assert isinstance(waiting, Payment)
    event = ProviderEvent(
        provider="coins", id="1", type="paid", reference=f"coin_{waiting.id}", payment_id=None,
        amount_minor=1999, currency="usd", charge_status=ChargeStatus.SUCCEEDED,
    )  # fmt: skip
    await inbox.Inbox(db, lambda: None).put(event)
    coins.taken.add(waiting.id)
    await inbox.apply_events(db, dispatcher)
    assert (await charges.get(waiting.id)).state is State.SUCCEEDED
    await dispatcher.drain(seconds=5)
