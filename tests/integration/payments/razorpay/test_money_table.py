"""The rows about money of "What went wrong in other systems" that touch a provider, at both providers."""

import asyncio
import uuid
from typing import Any

import pytest

from services.payments.domain import State
from stampede.payments.v1 import charge_service_pb2 as charge_pb
from tests.integration.payments.conftest import Payments, Sandbox, an_order, another_attempt
from tests.integration.payments.conftest import State as Status
from tests.integration.payments.razorpay.conftest import Razorpay

CURRENCIES = {"stripe": "USD", "razorpay": "INR"}


class Till:
    """One provider: how a customer pays there, and what its records have."""

    def __init__(self, provider: str, service: Payments, sandbox: Sandbox) -> None:
        self.tools = Razorpay(service, sandbox)
        service.providers.default = service.providers[provider]
        self.name, self.service, self.sandbox = provider, service, sandbox
        self.currency = CURRENCIES[provider]

    def an_order(self, **more: Any) -> charge_pb.Charge:
        return an_order("", **{"currency": self.currency, **more})

    async def begin(self, item: charge_pb.Charge) -> uuid.UUID:
        status = await self.service.charged(item)
        assert (status.provider, status.state) == (self.name, Status.AWAITING_CUSTOMER)
        return uuid.UUID(status.payment_id)

    async def pay(self, id_: uuid.UUID, *, declined: bool = False) -> None:
        """Pay in the browser, with a card that the bank may decline."""
        row = await self.service.payment(id_)
        if self.name == "razorpay":
            await self.tools.pay(row, "fail" if declined else "authorize")
            return
        (intent,) = await self.sandbox.intents(str(row.order_id))
        card = "pm_card_chargeDeclined" if declined else "pm_card_visa"
        assert await self.sandbox.confirm(intent, card) == (402 if declined else 200)

    async def kept(self, item: charge_pb.Charge, id_: uuid.UUID) -> int:
        """The money that the provider has for an order, in all its charges."""
        if self.name == "razorpay":
            tried = [
                one
                for order in (await self.tools.get(f"orders?receipt={id_}"))["items"]
                for one in (await self.tools.get(f"orders/{order['id']}/payments"))["items"]
            ]
            return sum(one["amount"] - one["amount_refunded"] for one in tried if one["captured"])
        intents = await self.sandbox.intents(item.order_id)
        refunds = [one for intent in intents for one in await self.sandbox.refunds(intent["id"])]
        back = sum(one["amount"] for one in refunds if one["status"] == "succeeded")
        return sum(intent["amount_received"] for intent in intents) - back

    async def settle(self) -> None:
        """Do what is due, without webhooks: the event walk, the inbox, the reconciler."""
        for _ in range(3):
            await self.service.walk_of(self.name).walk_once(pause=0)
            await self.tools.apply_due()
            await self.tools.reconcile()

    async def state(self, id_: uuid.UUID) -> State:
        return (await self.service.payment(id_)).state


@pytest.fixture(params=["stripe", "razorpay"])
def till(request: pytest.FixtureRequest, service: Payments, sandbox: Sandbox) -> Till:
    return Till(request.param, service, sandbox)


async def test_client_and_webhook_that_complete_at_once_capture_once(till: Till, sandbox: Sandbox) -> None:
    """Medusa #13301, Spree #13938: one completion owner."""
    service = till.service
    sandbox.receiver.forward, sandbox.receiver.forward_razorpay = service.webhook, service.razorpay_webhook
    service.start_loops()
    item = till.an_order()
    id_ = await till.begin(item)
    if till.name == "razorpay":
        answer = await till.tools.pay(await service.payment(id_))
        await asyncio.gather(*(till.tools.verify(answer) for _ in range(3)), service.charged(item))
    else:
        await asyncio.gather(till.pay(id_), service.charged(item))
    await service.reaches(str(id_), Status.SUCCEEDED)
    assert await till.kept(item, id_) == 1999
    assert await service.published(item.order_id) == ["succeeded"]


async def test_a_payment_after_its_order_was_given_up_goes_back(till: Till) -> None:
    """Vendure #3065: the slower buyer is charged, and the order is gone."""
    item = till.an_order()
    id_ = await till.begin(item)
    late = None
    if till.name == "razorpay":
        late = await till.tools.pay(await till.service.payment(id_), "begin")
    (status,) = await till.service.cancel(item)
    assert status.state == Status.CANCELLED
    if late:
        await till.tools.act(f"payments/{late['razorpay_payment_id']}/authorize")
    else:
        (intent,) = await till.sandbox.intents(item.order_id)
        assert await till.sandbox.confirm(intent, "pm_card_visa") == 400, "Stripe voids"
    await till.settle()
    assert await till.kept(item, id_) == 0
    assert await till.state(id_) is State.CANCELLED


async def test_a_hold_that_ends_while_the_card_is_charged_keeps_the_money_in_sight(till: Till) -> None:
    """woocommerce-gateway-stripe #5703: cancel; if refused, look up; then fulfil or refund."""
    item = till.an_order()
    id_ = await till.begin(item)
    await till.pay(id_)
    (status,) = await till.service.cancel(item)
    assert status.state == Status.SUCCEEDED, "the saga decides about money that is there"
    assert await till.service.published(item.order_id) == ["succeeded"]
    (status,) = await till.service.reverse(item)
    await till.settle()
    assert await till.state(id_) is State.REFUNDED
    assert await till.kept(item, id_) == 0


async def test_another_card_after_a_decline_is_another_try(till: Till) -> None:
    """alf.io #1254: the same key after a decline replays the decline."""
    item = till.an_order()
    id_ = await till.begin(item)
    await till.pay(id_, declined=True)
    await till.settle()
    assert await till.state(id_) is State.AWAITING_CUSTOMER
    await till.pay(id_)
    await till.settle()
    assert await till.state(id_) is State.SUCCEEDED
    assert await till.kept(item, id_) == 1999


@pytest.mark.parametrize("fault", ["drop_after_charge", "error_500", "rate_limit_429"])
async def test_a_lost_answer_is_repeated_under_the_same_key(till: Till, fault: str) -> None:
    """Measured: a new key after a lost response charges twice."""
    item = till.an_order()
    id_ = await till.begin(item)
    await till.sandbox.faults(**{fault: {"next": 3}})
    if till.name == "razorpay":
        await till.tools.pay(await till.service.payment(id_))
    else:
        await till.service.charged(another_attempt(item, 1, "pm_card_visa"))
    for _ in range(3):
        await till.settle()
    assert await till.state(id_) is State.SUCCEEDED
    assert await till.kept(item, id_) == 1999
    assert await till.service.published(item.order_id) == ["succeeded"]


async def test_an_event_before_the_row_is_kept_and_applied(till: Till) -> None:
    """polar #10728, lago #2972: the webhook is faster than the commit."""
    item = till.an_order()
    id_ = await till.begin(item)
    reference = (await till.service.payment(id_)).provider_reference
    await till.service.rows("UPDATE payments SET provider_reference = 'not yet' WHERE id = :id", id=id_)
    await till.pay(id_) if till.name == "stripe" else await till.tools.act(
        f"orders/{reference}/pay", outcome="authorize"
    )
    await till.tools.apply_due()
    await till.service.rows("UPDATE payments SET provider_reference = :ref WHERE id = :id", id=id_, ref=reference)
    await till.settle()
    assert await till.state(id_) is State.SUCCEEDED


@pytest.mark.parametrize(("currency", "minor"), [("JPY", 1999), ("KWD", 12_340), ("USD", 50), ("INR", 99_999_999)])
async def test_amounts_are_the_same_on_both_sides(till: Till, currency: str, minor: int) -> None:
    """Paymenter #1258: amounts in minor units, zero- and three-decimal currencies too."""
    item = till.an_order(currency=currency, minor=minor)
    id_ = await till.begin(item)
    await till.pay(id_)
    await till.settle()
    assert await till.state(id_) is State.SUCCEEDED
    assert await till.kept(item, id_) == minor


async def test_another_amount_at_the_provider_pays_nothing(till: Till) -> None:
    """InvoicePlane #1677: amount and currency are compared before anything moves."""
    item = till.an_order()
    id_ = await till.begin(item)
    await till.service.rows("UPDATE payments SET amount_minor = 5000 WHERE id = :id", id=id_)
    await till.pay(id_)
    await till.settle()
    assert await till.state(id_) is State.AWAITING_CUSTOMER


async def test_a_killed_process_leaves_nothing_undone(till: Till) -> None:
    """Killed after the commit and before the call: another process makes the call, and the customer can pay."""
    item = till.an_order()
    await till.tools.insert(item, provider=till.name)
    ((id_,),) = await till.service.rows("SELECT id FROM payments WHERE order_id = :id", id=uuid.UUID(item.order_id))
    await till.settle()
    assert await till.state(id_) is State.AWAITING_CUSTOMER
    await till.pay(id_)
    await till.settle()
    assert await till.state(id_) is State.SUCCEEDED
    assert await till.kept(item, id_) == 1999
