"""Razorpay's protocol, called by Razorpay's own SDK."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
import razorpay
import requests
from aiohttp import web

from sandbox.settings import Settings, Target
from tests.sandbox.conftest import Provider

SECRET = "secret_of_webhooks"
KEY = ("rzp_test_sandbox", "secret_of_the_sandbox")


class Shop:
    """A shop with Razorpay's SDK, and its customers."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.client = razorpay.Client(auth=KEY, base_url=f"{provider.url}/razorpay")

    async def call(self, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return await asyncio.to_thread(method, *arguments, **named)

    async def order(self, **more: Any) -> Any:
        wanted = {"amount": 2500, "currency": "INR", "receipt": "r-1", "payment": {"capture": "manual"}, **more}
        return await self.call(self.client.order.create, wanted)

    async def pay(self, order: Any, outcome: str = "authorize", **more: Any) -> Any:
        return await self.act(f"orders/{order['id']}/pay", outcome=outcome, **more)

    async def act(self, path: str, **body: Any) -> Any:
        return await self.provider.control("POST", f"razorpay/{path}", body)

    async def capture(self, payment_id: str, amount: int = 2500) -> Any:
        return await self.call(self.client.payment.capture, payment_id, amount, {"currency": "INR"})

    async def refund(self, payment_id: str, key: str, **wanted: Any) -> Any:
        headers = {"headers": {"X-Refund-Idempotency": key}}
        return await self.call(self.client.payment.refund, payment_id, wanted, **headers)

    async def payments(self, order: Any) -> Any:
        return (await self.call(self.client.order.payments, order["id"], {}))["items"]


@pytest.fixture
async def shop(provider: Provider) -> Shop:
    return Shop(provider)


async def test_an_order_is_paid_in_two_steps(shop: Shop) -> None:
    order = await shop.order(notes={"payment_id": "p-1"})
    assert (order["status"], order["amount_due"], order["notes"]) == ("created", 2500, {"payment_id": "p-1"})
    answer = await shop.pay(order)
    assert await shop.call(
        shop.client.utility.verify_payment_signature,
        {name: answer[name] for name in ("razorpay_order_id", "razorpay_payment_id", "razorpay_signature")},
    )
    (payment,) = await shop.payments(order)
    assert (payment["id"], payment["status"], payment["captured"]) == (
        answer["razorpay_payment_id"], "authorized", False
    )  # fmt: skip

    captured = await shop.capture(payment["id"])
    assert (captured["status"], captured["captured"]) == ("captured", True)
    assert (await shop.call(shop.client.order.fetch, order["id"], {}))["status"] == "paid"
    assert (await shop.provider.control("GET", "razorpay/ledger"))["INR"]["captured"] == 2500
    with pytest.raises(razorpay.errors.BadRequestError, match="already been captured"):
        await shop.capture(payment["id"])


async def test_an_order_has_several_payments(shop: Shop) -> None:
    """A failed one, then two that banks authorise; only one of these can be captured by the shop."""
    order = await shop.order()
    failed = await shop.pay(order, "fail", reason="insufficient_funds")
    assert failed["payment"]["error_reason"] == "insufficient_funds"
    first, second = [await shop.pay(order, "begin") for _ in range(2)]
    for begun in (first, second):
        await shop.act(f"payments/{begun['razorpay_payment_id']}/authorize")
    await shop.capture(first["razorpay_payment_id"])
    with pytest.raises(razorpay.errors.BadRequestError, match="already done"):
        await shop.capture(second["razorpay_payment_id"])
    with pytest.raises(AssertionError, match="already done"):
        await shop.pay(order)
    expired = await shop.act(f"payments/{second['razorpay_payment_id']}/expire")
    assert (expired["payment"]["status"], expired["payment"]["captured"]) == ("refunded", False)
    assert [p["status"] for p in await shop.payments(order)] == ["refunded", "captured", "failed"]
    assert (await shop.provider.control("GET", "razorpay/ledger"))["INR"]["refunded"] == 0, "it was never captured"


async def test_razorpay_may_capture_a_second_payment_by_itself(shop: Shop) -> None:
    order = await shop.order()
    begun = [(await shop.pay(order, "begin"))["razorpay_payment_id"] for _ in range(2)]
    for payment in begun:
        await shop.act(f"payments/{payment}/authorize", capture=True)
    assert [p["status"] for p in await shop.payments(order)] == ["captured", "captured"]
    assert (await shop.provider.control("GET", "razorpay/ledger"))["INR"]["captured"] == 5000


async def test_an_automatic_order_is_captured_at_once(shop: Shop) -> None:
    order = await shop.order(payment={"capture": "automatic"})
    assert (await shop.pay(order))["payment"]["status"] == "captured"


async def test_a_refund_happens_once_for_each_key(shop: Shop) -> None:
    payment = (await shop.pay(await shop.order(), "capture"))["razorpay_payment_id"]
    first = await shop.refund(payment, "key-0000001", amount=1000, notes={"refund_id": "x"})
    assert (first["status"], first["payment_id"], first["notes"]) == ("processed", payment, {"refund_id": "x"})
    assert await shop.refund(payment, "key-0000001", amount=1000, notes={"refund_id": "x"}) == first
    with pytest.raises(razorpay.errors.BadRequestError, match="Different request body"):
        await shop.refund(payment, "key-0000001", amount=900)
    with pytest.raises(razorpay.errors.BadRequestError, match="10 characters"):
        await shop.refund(payment, "short", amount=1)
    with pytest.raises(razorpay.errors.BadRequestError, match="greater than amount captured"):
        await shop.refund(payment, "key-0000002", amount=1501)
    await shop.refund(payment, "key-0000003")
    with pytest.raises(razorpay.errors.BadRequestError, match="fully refunded"):
        await shop.refund(payment, "key-0000004")
    listed = await shop.call(shop.client.payment.fetch_multiple_refund, payment, {})
    assert [refund["amount"] for refund in listed["items"]] == [1500, 1000]
    assert (await shop.call(shop.client.payment.fetch, payment, {}))["refund_status"] == "full"


async def test_a_refund_can_wait_and_fail(shop: Shop) -> None:
    payment = (await shop.pay(await shop.order(), "capture"))["razorpay_payment_id"]
    await shop.provider.control("POST", "faults", {"pending_refunds": {"next": 1}})
    waiting = await shop.refund(payment, "key-0000001", amount=2500)
    assert waiting["status"] == "pending"
    assert (await shop.act(f"refunds/{waiting['id']}/process"))["status"] == "processed"
    assert (await shop.act(f"refunds/{waiting['id']}/fail"))["status"] == "failed"
    assert (await shop.call(shop.client.payment.fetch, payment, {}))["amount_refunded"] == 0


async def test_only_a_captured_payment_is_refunded(shop: Shop) -> None:
    payment = (await shop.pay(await shop.order()))["razorpay_payment_id"]
    with pytest.raises(razorpay.errors.BadRequestError, match="should be captured"):
        await shop.refund(payment, "key-0000001")


async def test_lists_are_paged_and_filtered(shop: Shop) -> None:
    made = [(await shop.order(receipt=f"r-{number % 2}"))["id"] for number in range(5)]
    page = await shop.call(shop.client.order.all, {"count": 2, "skip": 1})
    assert [order["id"] for order in page["items"]] == [made[3], made[2]]
    found = await shop.call(shop.client.order.all, {"receipt": "r-1"})
    assert [order["id"] for order in found["items"]] == [made[3], made[1]], "a receipt need not be unique"
    assert (await shop.call(shop.client.order.all, {"to": 1}))["count"] == 0
    with pytest.raises(razorpay.errors.BadRequestError, match="count"):
        await shop.call(shop.client.order.all, {"count": 101})


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": 0}, {"amount": "x"}, {"amount": 1.5}, {"amount": True}, {"currency": "inr"}, {"currency": None},
        {"receipt": "r" * 41}, {"notes": {str(n): "x" for n in range(16)}}, {"notes": "x"}, {"unknown": 1},
        {"payment": {"capture": "never"}}, {"payment": {"capture_options": {"manual_expiry_period": 11}}},
        {"payment": []},
    ],
)  # fmt: skip
async def test_an_order_with_an_odd_parameter_is_refused(shop: Shop, changes: dict[str, Any]) -> None:
    if changes == {"payment": []}:
        assert await shop.order(**changes), "an empty list stands for an empty object, as PHP writes it"
        return
    with pytest.raises(razorpay.errors.BadRequestError):
        await shop.order(**changes)


async def test_keys_of_others_are_refused(shop: Shop) -> None:
    for auth in (("rzp_test_sandbox", "wrong"), ("rzp_live_sandbox", KEY[1]), ("", "")):
        answer = await asyncio.to_thread(requests.get, f"{shop.provider.url}/razorpay/v1/orders", auth=auth, timeout=5)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "BAD_REQUEST_ERROR")
    with pytest.raises(razorpay.errors.BadRequestError, match="does not exist"):
        await shop.call(shop.client.payment.fetch, "pay_unknown", {})


async def test_everything_survives_a_restart(shop: Shop) -> None:
    order = await shop.order()
    payment = (await shop.pay(order, "capture"))["razorpay_payment_id"]
    refund = await shop.refund(payment, "key-0000001", amount=100)
    dispute = await shop.act(f"payments/{payment}/dispute")
    await shop.provider.restart()
    again = Shop(shop.provider)
    assert (await again.call(again.client.order.fetch, order["id"], {}))["status"] == "paid"
    assert (await again.call(again.client.dispute.fetch, dispute["id"], {}))["status"] == "open"
    assert await again.refund(payment, "key-0000001", amount=100) == refund, "the key is known"
    ledger = (await again.provider.control("GET", "razorpay/ledger"))["INR"]
    assert ledger == {"captured": 2500, "refunded": 100, "payments": 1, "refunds": 1}


@pytest.mark.parametrize(
    ("fault", "call"),
    [
        ("drop_after_order", lambda shop, _: shop.order()),
        ("drop_after_charge", lambda shop, payment: shop.capture(payment)),
        ("drop_after_refund", lambda shop, payment: shop.refund(payment, "key-0000001")),
        ("error_500", lambda shop, payment: shop.refund(payment, "key-0000001")),
        ("rate_limit_429", lambda shop, _: shop.order()),
    ],
)
async def test_faults_hide_answers(shop: Shop, fault: str, call: Callable[[Shop, str], Any]) -> None:
    outcome = "authorize" if fault == "drop_after_charge" else "capture"
    payment = (await shop.pay(await shop.order(), outcome))["razorpay_payment_id"]
    await shop.provider.control("POST", "faults", {fault: {"next": 1}})
    with pytest.raises(
        (requests.exceptions.ConnectionError, razorpay.errors.ServerError, razorpay.errors.BadRequestError)
    ):
        await call(shop, payment)
    ledger = (await shop.provider.control("GET", "razorpay/ledger"))["INR"]
    assert ledger["captured"] == 2500, "the money has moved"
    assert ledger["refunded"] == (2500 if fault == "drop_after_refund" else 0)


class Hooks:
    """A receiver of webhooks."""

    def __init__(self) -> None:
        self.seen: asyncio.Queue[tuple[dict[str, Any], str]] = asyncio.Queue()

    async def take(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        right = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        assert request.headers["X-Razorpay-Signature"] == right
        self.seen.put_nowait((json.loads(body), request.headers["x-razorpay-event-id"]))
        return web.Response()

    async def next(self, number: int) -> list[tuple[dict[str, Any], str]]:
        async with asyncio.timeout(60):
            return [await self.seen.get() for _ in range(number)]


@pytest.fixture
async def notified(settings: Settings) -> AsyncIterator[tuple[Shop, Hooks]]:
    hooks = Hooks()
    runner = web.ServerRunner(web.Server(hooks.take))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    target = Target(url=f"http://{host}:{port}/", secret=SECRET)
    provider = Provider(replace(settings, webhooks={"razorpay": target}))
    await provider.start()
    yield Shop(provider), hooks
    await provider.stop()
    await provider.http.close()
    await runner.cleanup()


async def test_webhooks_report_each_change(notified: tuple[Shop, Hooks]) -> None:
    shop, hooks = notified
    order = await shop.order()
    payment = (await shop.pay(order))["razorpay_payment_id"]
    await shop.capture(payment)
    await shop.refund(payment, "key-0000001", amount=500)
    dispute = await shop.act(f"payments/{payment}/dispute")
    await shop.act(f"disputes/{dispute['id']}/decide", outcome="lost")
    events = await hooks.next(7)
    assert {event["event"] for event, _ in events} == {
        "payment.authorized", "payment.captured", "order.paid", "refund.created", "refund.processed",
        "payment.dispute.created", "payment.dispute.lost",
    }  # fmt: skip
    assert len({identifier for _, identifier in events}) == 7
    for event, _ in events:
        reported = event["payload"]["payment"]["entity"]
        assert (reported["id"], reported["order_id"], event["account_id"]) == (payment, order["id"], "acc_sandbox")
    refunded = next(event for event, _ in events if event["event"] == "refund.processed")
    assert refunded["payload"]["refund"]["entity"]["amount"] == 500
    assert refunded["payload"]["payment"]["entity"]["amount_refunded"] == 500


async def test_the_page_of_another_protocol_is_not_touched(provider: Provider) -> None:
    async with aiohttp.ClientSession() as http, http.get(f"{provider.url}/v1/orders") as answer:
        assert answer.status == 401, "Stripe's, which asks for its own key"


async def test_old_orders_leave_memory_and_stay_in_the_totals(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what has ended is dropped, and only whole orders."""
    monkeypatch.setattr("sandbox.state.store.PAYMENTS_KEPT", 10)
    book = shop.provider.sandbox.razorpay
    unpaid, disputed = await shop.order(receipt="unpaid"), await shop.order(receipt="disputed")
    await shop.act(f"payments/{(await shop.pay(disputed, 'capture'))['razorpay_payment_id']}/dispute")
    paid = []
    for number in range(20):
        paid.append(await shop.order(receipt=f"paid {(number + 1) // 2}"))
        payment = (await shop.pay(paid[-1], "capture"))["razorpay_payment_id"]
    await shop.refund(payment, "key-0000001", amount=100)
    assert (len(book.orders), len(book.payments), len(book.refunds)) == (10, 9, 1)
    assert {unpaid["id"], disputed["id"], paid[-1]["id"]} <= book.orders.rows.keys()
    assert (await shop.provider.control("GET", "razorpay/ledger"))["INR"]["payments"] == 21
    assert set(book.by_receipt) == {order.receipt for order in book.orders.rows.values()}
    listed = await shop.call(shop.client.order.all, {"receipt": "paid 6"})
    assert [order["id"] for order in listed["items"]] == [paid[12]["id"]]
