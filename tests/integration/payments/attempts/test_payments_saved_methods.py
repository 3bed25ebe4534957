"""Cards that customers have agreed to save: kept by the provider, listed, charged, and removed."""

import asyncio
import uuid
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2

from stampede.payments.v1 import charge_service_pb2 as charge_pb
from stampede.payments.v1 import payment_service_pb2 as pb
from tests.integration.payments.conftest import KEY, Payments, Sandbox, State, an_order, another_attempt
from tests.support import tokens
from tests.support.serving import refusal
from tests.support.waiting import until

SECURE = "pm_card_authenticationRequired"


class Customer:
    """A customer whom the provider has never seen."""

    def __init__(self, service: Payments) -> None:
        self.id = uuid.uuid4()
        self._service, self._metadata = service, tokens.as_user(self.id)

    def order(self) -> charge_pb.Charge:
        return an_order("", customer_id=str(self.id))

    async def page(self, size: int = 0, token: str = "") -> pb.ListPaymentMethodsResponse:
        request = pb.ListPaymentMethodsRequest(page_size=size, page_token=token)
        answer: pb.ListPaymentMethodsResponse = await self._service.payments.ListPaymentMethods(
            request, metadata=self._metadata
        )
        return answer

    async def methods(self) -> list[pb.PaymentMethod]:
        return list((await self.page()).payment_methods)

    async def remove(self, method_id: str) -> empty_pb2.Empty:
        request = pb.DeletePaymentMethodRequest(method_id=method_id)
        answer: empty_pb2.Empty = await self._service.payments.DeletePaymentMethod(request, metadata=self._metadata)
        return answer

    async def saved(self, card: str = "pm_card_visa") -> pb.PaymentMethod:
        """A saved card, after a payment whose customer agreed to it."""
        paid = await self._service.charged(another_attempt(self.order(), 1, card, save_method=True))
        assert paid.state == State.SUCCEEDED
        return (await self.methods())[0]

    async def at_provider(self, sandbox: Sandbox) -> list[dict[str, Any]]:
        """The provider's records of this customer."""
        headers = {"Authorization": f"Bearer {KEY}"}
        async with sandbox.http.get(f"{sandbox.url}/v1/customers?limit=100", headers=headers) as answer:
            return [one for one in (await answer.json())["data"] if one["metadata"].get("customer_id") == str(self.id)]


@pytest.fixture
def customer(service: Payments) -> Customer:
    return Customer(service)


async def test_only_what_a_customer_agreed_to_is_saved(service: Payments, customer: Customer, sandbox: Sandbox) -> None:
    item = customer.order()
    await service.charged(another_attempt(item, 1, "pm_card_visa"))
    assert await customer.methods() == []

    method = await customer.saved()

    assert (method.provider, method.brand, method.last4) == ("stripe", "visa", "4242")
    assert 1 <= method.expire_month <= 12
    assert [one.id for one in await customer.methods()] == [method.id]
    assert await Customer(service).methods() == [], "another customer's list has none of it"
    stored = str(await service.rows("SELECT * FROM saved_methods")) + str(await service.rows("SELECT * FROM payments"))
    assert "424242" not in stored


async def test_saved_card_pays_in_one_step(service: Payments, customer: Customer, sandbox: Sandbox) -> None:
    method, item = await customer.saved(), customer.order()
    await service.charged(item)

    paid = await service.charged(another_attempt(item, 1, saved_method_id=method.id))

    assert paid.state == State.SUCCEEDED
    assert sorted(intent["status"] for intent in await sandbox.intents(item.order_id)) == ["canceled", "succeeded"]
    assert len(await customer.methods()) == 1, "paying with it saves no other one"


async def test_customer_is_made_once_at_the_provider(service: Payments, customer: Customer, sandbox: Sandbox) -> None:
    items = [another_attempt(customer.order(), 1, "pm_card_visa", save_method=True) for _ in range(4)]
    outcomes = await asyncio.gather(*(service.charged(item) for item in items))
    assert {one.state for one in outcomes} == {State.SUCCEEDED}
    assert len(await customer.at_provider(sandbox)) == 1
    assert await service.rows("SELECT count(*) FROM provider_customers") == [(1,)]


async def test_charge_that_saves_is_not_used_without_consent(
    service: Payments, customer: Customer, sandbox: Sandbox
) -> None:
    """The second card would be saved with the first one's consent."""
    item = customer.order()
    await service.charged(another_attempt(item, 1, "pm_card_chargeDeclined", save_method=True))
    assert (await service.charged(another_attempt(item, 2, "pm_card_visa"))).state == State.SUCCEEDED
    assert await customer.methods() == []
    assert sorted(intent["status"] for intent in await sandbox.intents(item.order_id)) == ["canceled", "succeeded"]


async def test_bank_that_asks_leaves_the_payment_to_its_customer(
    running: Payments, customer: Customer, sandbox: Sandbox
) -> None:
    """A saved card that needs authentication is no decline: its customer is there."""
    item = customer.order()
    waits = await running.charged(another_attempt(item, 1, SECURE, save_method=True))
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.control("POST", f"payment_intents/{intent['id']}/authenticate", {"outcome": "succeed"})
    await running.reaches(waits.payment_id, State.SUCCEEDED)
    (method,) = await customer.methods()

    again = customer.order()
    asks = await running.charged(another_attempt(again, 1, saved_method_id=method.id))

    assert (asks.state, asks.authenticating, bool(asks.client_secret)) == (State.AWAITING_CUSTOMER, True, True)
    (intent,) = await sandbox.intents(again.order_id)
    await sandbox.control("POST", f"payment_intents/{intent['id']}/authenticate", {"outcome": "succeed"})
    await running.reaches(asks.payment_id, State.SUCCEEDED)


async def test_card_of_another_customer_is_not_found(service: Payments, customer: Customer) -> None:
    method = await customer.saved()
    for one, method_id in ((Customer(service), method.id), (customer, str(uuid.uuid4()))):
        terms = charge_pb.AttemptTerms(saved_method_id=method_id)
        request = charge_pb.CheckTermsRequest(customer_id=str(one.id), terms=terms)
        refused = await refusal(service.charges.CheckTerms(request, metadata=tokens.as_service("orders")))
        assert (refused.code, refused.reason) == ("NOT_FOUND", "PAYMENT_METHOD_NOT_FOUND")
        assert (await refusal(one.remove(method_id))).reason == "PAYMENT_METHOD_NOT_FOUND"
    assert [one.id for one in await customer.methods()] == [method.id]


async def test_removed_card_charges_nothing_any_more(service: Payments, customer: Customer, sandbox: Sandbox) -> None:
    method, item = await customer.saved(), customer.order()
    await customer.remove(method.id)
    await customer.remove(method.id)  # a repeat
    assert await customer.methods() == []

    waits = await service.charged(another_attempt(item, 1, saved_method_id=method.id))

    assert (waits.state, waits.failure_reason) == (State.AWAITING_CUSTOMER, "PAYMENT_METHOD_NOT_FOUND")
    assert waits.client_secret, "the customer can pay in another way"
    assert [intent["status"] for intent in await sandbox.intents(item.order_id)] == ["requires_payment_method"]


async def test_card_removed_at_the_provider_meanwhile_leaves_a_secret(
    service: Payments, customer: Customer, sandbox: Sandbox
) -> None:
    """In the dashboard, after the list was shown."""
    method, item = await customer.saved(), customer.order()
    ((reference,),) = await service.rows("SELECT reference FROM saved_methods")
    headers = {"Authorization": f"Bearer {KEY}"}
    async with sandbox.http.post(f"{sandbox.url}/v1/payment_methods/{reference}/detach", headers=headers) as answer:
        assert answer.status == 200

    waits = await service.charged(another_attempt(item, 1, saved_method_id=method.id))

    assert (waits.state, waits.failure_reason) == (State.AWAITING_CUSTOMER, "INVALID_PAYMENT_METHOD")
    assert waits.client_secret
    assert await customer.methods() == [], "the next list knows"


async def test_provider_hears_of_a_removal_once_it_answers(
    service: Payments, customer: Customer, sandbox: Sandbox
) -> None:
    method = await customer.saved()
    await sandbox.faults(error_500=True, error_500_on="POST payment_methods/*/detach")
    await customer.remove(method.id)
    assert await customer.methods() == [], "although the provider still has it"
    assert await service.rows("SELECT detach_time FROM saved_methods") == [(None,)]

    await sandbox.control("DELETE", "faults")
    detaching = asyncio.create_task(service.saved.detach_pending())

    async def detached() -> bool:
        return await service.rows("SELECT count(*) FROM saved_methods WHERE detach_time IS NULL") == [(0,)]

    await until(detached)
    detaching.cancel()
    assert await customer.methods() == []


async def test_list_is_as_it_was_while_the_provider_is_silent(
    service: Payments, customer: Customer, sandbox: Sandbox
) -> None:
    method = await customer.saved()
    await sandbox.faults(error_500=True)
    assert [one.id for one in await customer.methods()] == [method.id]


async def test_list_has_pages(service: Payments, customer: Customer) -> None:
    for card in ("pm_card_visa", "pm_card_mastercard", "pm_card_amex"):
        await customer.saved(card)
    brands = [one.brand for one in await customer.methods()]
    assert brands == ["amex", "mastercard", "visa"]
    found, token = list[str](), ""
    while True:
        page = await customer.page(2, token)
        found += [one.brand for one in page.payment_methods]
        if not (token := page.next_page_token):
            break
    assert found == brands


@pytest.mark.parametrize("call", ["ListPaymentMethods", "DeletePaymentMethod"])
async def test_only_customers_have_saved_cards(service: Payments, call: str) -> None:
    request = pb.ListPaymentMethodsRequest() if call.startswith("List") else pb.DeletePaymentMethodRequest(
        method_id=str(uuid.uuid4())
    )  # fmt: skip
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(service.payments, call)(request)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
