"""Manual capture: an order is paid with money that is set aside, and shipped once staff have taken it."""

import uuid
from collections.abc import AsyncIterator

import pytest

from tests.e2e.shop import Buyer, Shop, assert_books_add_up
from tests.support.rest import Answer, Json, new_id
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
async def manual(shop: Shop) -> AsyncIterator[Shop]:
    """The shop, while new payments wait for staff."""
    before = shop.mesh.alter("payments")
    shop.mesh.alter("payments", environment={**before.environment, "CAPTURE": "manual"})
    try:
        await shop.mesh.restart("payments", timeout=120)
        await shop.all_parts_answer()
        yield shop
    finally:
        shop.mesh.alter("payments", environment=before.environment)
        await shop.mesh.restart("payments", timeout=120)
        await shop.all_parts_answer()


async def uncaptured(shop: Shop) -> tuple[Buyer, Json, Json]:
    """A buyer with an order whose money is set aside, and the order's product."""
    product, buyer = await shop.a_product(stock=5), await shop.a_buyer()
    placed = (await buyer.insist(product)).expect().json
    order = await buyer.until(placed["id"], "PAID", seconds=60)
    assert order["payment"]["state"] == "AUTHORIZED"
    assert await shop.sandbox.captured(order["id"]) == []
    return buyer, order, product


async def decide(shop: Shop, order: Json, verb: str, **body: object) -> Answer:
    return await shop.staff.post(f"/v1/payments/{order['payment']['id']}:{verb}", body)


async def act(shop: Shop, order: Json, verb: str, **body: object) -> Answer:
    return await shop.staff.post(f"/v1/orders/{order['id']}:{verb}", {"requestId": new_id(), **body})


async def its_units_are_back(shop: Shop, product: Json) -> None:
    await eventually(lambda: shop.stock(product), lambda stock: stock == (5, 0, 5), seconds=60)


async def test_order_is_shipped_once_staff_have_captured_its_payment(manual: Shop) -> None:
    buyer, order, _ = await uncaptured(manual)
    for verb, body in (("ship", {}), ("refund", {"amount": order["total"]})):
        refused = await act(manual, order, verb, **body)
        assert refused.refusal == (400, "PAYMENT_NOT_CAPTURED")

    captured = (await decide(manual, order, "capture")).expect().json

    assert captured["state"] == "SUCCEEDED"
    assert (await act(manual, order, "ship")).expect().json["payment"]["state"] == "SUCCEEDED"
    assert len(await manual.sandbox.captured(order["id"])) == 1
    assert (await decide(manual, order, "void")).refusal == (400, "WRONG_STATE")
    assert (await act(manual, order, "refund", amount=order["total"])).expect().json["state"] == "REFUNDED"
    await buyer.until(order["id"], "REFUNDED")


@pytest.mark.parametrize("by", ["void", "cancel", "lapse"])
async def test_money_that_is_given_back_cancels_the_order(manual: Shop, by: str) -> None:
    """Staff void the payment or cancel the order, or the authorisation lapses at the provider."""
    buyer, order, product = await uncaptured(manual)
    if by == "void":
        assert (await decide(manual, order, "void")).expect().json["state"] == "CANCELLED"
    elif by == "cancel":
        (await act(manual, order, "cancel")).expect()
    else:
        intent = (await manual.payment(order))["providerReference"]
        (await manual.sandbox.rest.post(f"/_sandbox/payment_intents/{intent}/expire", {})).expect()

    ended = await buyer.until(order["id"], "CANCELLED", seconds=60)

    assert not ended.get("refunded")
    payment = await manual.payment(order)
    reason, refusal = ("AUTHORIZATION_ENDED", "AUTHORIZATION_ENDED") if by == "lapse" else ("", "WRONG_STATE")
    assert (payment["state"], payment.get("failureReason", "")) == ("CANCELLED", reason)
    await its_units_are_back(manual, product)
    assert (await decide(manual, order, "capture")).refusal == (400, refusal)
    await eventually(
        lambda: buyer.order(order["id"]), lambda now: now["payment"]["state"] == "CANCELLED", seconds=60
    )  # fmt: skip


async def test_only_staff_capture_and_void(manual: Shop) -> None:
    buyer, order, _ = await uncaptured(manual)
    payment_id = order["payment"]["id"]
    for verb in ("capture", "void"):
        mine = await buyer.rest.post(f"/v1/payments/{payment_id}:{verb}", {})
        assert mine.refusal == (403, "PERMISSION_DENIED")
        nobodys = await manual.staff.post(f"/v1/payments/{uuid.uuid4()}:{verb}", {})
        assert nobodys.refusal == (404, "PAYMENT_NOT_FOUND")
    assert (await manual.payment(order))["state"] == "AUTHORIZED"
    listed = (await manual.staff.get("/v1/admin/payments?state=AUTHORIZED&pageSize=200")).expect().json
    assert payment_id in {payment["id"] for payment in listed["payments"]}


async def test_records_add_up_while_money_is_set_aside(manual: Shop) -> None:
    _, _, product = await uncaptured(manual)
    await assert_books_add_up(manual, product)
