"""Orders after their payment: shipped, delivered, refunded, cancelled; their log and their lists."""

import asyncio

import pytest

from tests.e2e.shop import Buyer, Shop, assert_books_add_up, money, states
from tests.support.rest import Json, new_id
from tests.support.waiting import eventually, until

PRICE = 1200
PENDING_REFUND = "pm_card_pendingRefund"


async def a_paid_order(shop: Shop, *goods: Json, quantity: int = 2) -> tuple[Buyer, Json]:
    buyer = await shop.a_buyer()
    order = (await buyer.buy(*goods, quantity=quantity)).expect().json
    assert order["state"] == "PAID"
    return buyer, order


async def refunded(shop: Shop, order: Json) -> int:
    """The amount of an order that the provider has refunded, in minor units."""
    (entry,) = await shop.sandbox.captured(order["id"])
    return int(entry["amount_refunded"])


async def log_of(rest: object, order: Json) -> list[Json]:
    entries: list[Json] = (await rest.get(f"/v1/orders/{order['id']}/log")).expect().json["entries"]  # type: ignore[attr-defined]
    return entries


async def test_an_order_is_sent_and_delivered_and_its_log_says_by_whom(shop: Shop) -> None:
    buyer, order = await a_paid_order(shop, await shop.a_product(price=PRICE))
    path = f"/v1/orders/{order['id']}"
    assert (await shop.staff.post(f"{path}:deliver")).refusal == (400, "WRONG_STATE")
    assert (await buyer.rest.post(f"{path}:ship")).refusal == (403, "PERMISSION_DENIED")

    parcel = {"carrier": "DHL", "trackingNumber": "00340434161094000000", "requestId": new_id()}
    assert (await shop.staff.post(f"{path}:ship", {**parcel, "etag": '"1"'})).refusal == (409, "STALE_ETAG")
    sent = (await shop.staff.post(f"{path}:ship", {**parcel, "etag": order["etag"]})).expect().json
    assert (sent["state"], sent["shipment"]["carrier"]) == ("SHIPPED", "DHL")
    assert (await shop.staff.post(f"{path}:ship", {**parcel, "etag": order["etag"]})).expect().json == sent
    other = {**parcel, "carrier": "UPS", "etag": order["etag"]}
    assert (await shop.staff.post(f"{path}:ship", other)).refusal == (400, "REQUEST_ID_REUSED")
    assert (await shop.staff.post(f"{path}:ship")).refusal == (400, "WRONG_STATE")
    assert (await buyer.cancel(order["id"])).refusal == (400, "WRONG_STATE")

    there = (await shop.staff.post(f"{path}:deliver")).expect().json
    assert there["state"] == "DELIVERED"
    assert there["shipment"]["deliverTime"] >= there["shipment"]["shipTime"]

    log = await log_of(shop.staff, order)
    assert states(log) == ["PENDING", "PAID", "SHIPPED", "DELIVERED"]
    assert [entry["actor"] for entry in log] == ["CUSTOMER", "SYSTEM", "STAFF", "STAFF"]
    assert [entry["cause"] for entry in log] == ["PlaceOrder", "paid", "ShipOrder", "DeliverOrder"]
    assert all(entry["requestId"] for entry in log)
    shown = await log_of(buyer.rest, order)
    assert states(shown) == states(log)
    assert not any(entry[hidden] for entry in shown for hidden in ("cause", "actorId", "note", "requestId"))
    assert (await (await shop.a_buyer()).rest.get(f"{path}/log")).refusal == (404, "ORDER_NOT_FOUND")


async def test_staff_cancel_a_paid_order_and_money_and_units_go_back(shop: Shop) -> None:
    sale = await shop.a_sale(units=5, price=PRICE, limit=2)
    buyer, order = await a_paid_order(shop, sale)
    assert await shop.counters(sale) == (3, 0, 2)

    body = {"requestId": new_id(), "reason": "wrong size"}
    answers = await asyncio.gather(*(shop.staff.post(f"/v1/orders/{order['id']}:cancel", body) for _ in range(4)))
    assert states([answer.expect().json for answer in answers]) == ["CANCELLED"] * 4

    cancelled = await buyer.order(order["id"])
    assert (cancelled["refunded"], cancelled["refunding"]) == (order["total"], False)
    assert cancelled["payment"]["state"] == "REFUNDED"
    assert await refunded(shop, order) == 2 * PRICE
    assert await shop.counters(sale) == (5, 0, 0)
    log = await log_of(shop.staff, order)
    assert states(log) == ["PENDING", "PAID", "PAID", "CANCELLED"]
    assert log[-1]["note"] == "wrong size"
    # The units count against nobody's limit any more.
    assert (await buyer.buy(sale, quantity=2)).expect().json["state"] == "PAID"
    await assert_books_add_up(shop, sale)


async def test_an_order_is_paid_back_in_parts_until_nothing_is_left(shop: Shop) -> None:
    product = await shop.a_product(price=PRICE, stock=10)
    buyer, order = await a_paid_order(shop, product, quantity=3)
    path = f"/v1/orders/{order['id']}:refund"
    part = {
        "requestId": new_id(), "amount": money(PRICE), "reason": "one is broken",
        "restockLines": [{"productId": product["id"], "quantity": 1}],
    }  # fmt: skip

    first = (await shop.staff.post(path, part)).expect().json
    assert (first["state"], first["refunded"]) == ("PARTIALLY_REFUNDED", money(PRICE))
    assert (await shop.staff.post(path, part)).expect().json == first
    assert await shop.stock(product) == (8, 0, 8)
    for said, reason in [
        ({"amount": money(2 * PRICE + 1)}, "REFUND_TOO_LARGE"),
        ({"amount": money(1, "EUR")}, "INVALID_FIELDS"),
        ({"amount": money(0)}, "INVALID_FIELDS"),
        ({"amount": money(1), "restockLines": [{"productId": new_id(), "quantity": 1}]}, "RETURN_TOO_LARGE"),
        (
            {"full": True, "restock": True, "restockLines": [{"productId": product["id"], "quantity": 1}]},
            "INVALID_FIELDS",
        ),
        ({"ammount": money(1)}, "INVALID_FIELDS"),
        ({"full": True, "amount": money(1)}, "INVALID_FIELDS"),
    ]:
        assert (await shop.staff.post(path, said)).refusal == (400, reason)
    # Goods that were not refunded are still sent, and the next refund counts from here.
    assert (await shop.staff.post(f"/v1/orders/{order['id']}:ship")).expect().json["state"] == "SHIPPED"
    second = (await shop.staff.post(path, {"amount": money(1)})).expect().json
    assert (second["state"], second["refunded"]) == ("PARTIALLY_REFUNDED", money(PRICE + 1))
    assert (await shop.staff.post(f"/v1/orders/{order['id']}:ship")).refusal == (400, "WRONG_STATE")

    rest = (await shop.staff.post(path, {"full": True, "restock": True})).expect().json
    assert (rest["state"], rest["refunded"]) == ("REFUNDED", money(3 * PRICE))
    assert await shop.stock(product) == (10, 0, 10)
    assert await refunded(shop, order) == 3 * PRICE
    assert (await shop.staff.post(path, {"full": True})).refusal == (400, "WRONG_STATE")
    amounts = [entry.get("refunded") for entry in await log_of(buyer.rest, order)]
    assert amounts[-1] == money(3 * PRICE)
    await assert_books_add_up(shop, product)


async def test_what_staff_pay_back_at_payments_shows_in_the_order_each_time(shop: Shop) -> None:
    _, order = await a_paid_order(shop, await shop.a_product(price=PRICE))
    for units, state in [(100, "PARTIALLY_REFUNDED"), (200, "PARTIALLY_REFUNDED"), (2 * PRICE - 300, "REFUNDED")]:
        refund = {"amount": money(units), "reason": "a present", "requestId": new_id()}
        before = (await shop.staff.get(f"/v1/orders/{order['id']}")).expect().json
        (await shop.staff.post(f"/v1/payments/{order['payment']['id']}:refund", refund)).expect()
        now = await eventually(
            lambda: _order(shop, order),
            lambda now, before=before: bool(now["etag"] != before["etag"]),  # type: ignore[misc]
        )
        assert now["state"] == state
    assert len(await log_of(shop.staff, order)) == 5


async def _order(shop: Shop, order: Json) -> Json:
    return (await shop.staff.get(f"/v1/orders/{order['id']}")).expect().json


async def test_a_refund_that_fails_later_moves_the_order_back(shop: Shop) -> None:
    product = await shop.a_product(price=PRICE, stock=5)
    buyer, order = await a_paid_order(shop, product)
    path = f"/v1/orders/{order['id']}:refund"
    body = {"full": True, "reason": "a present", "requestId": new_id()}
    assert (await shop.staff.post(path, body)).expect().json["state"] == "REFUNDED"
    (entry,) = await shop.sandbox.captured(order["id"])
    (refund,) = (await shop.sandbox.get(f"/v1/refunds?payment_intent={entry['id']}"))["data"]
    await shop.sandbox.fail_refund(refund["id"])

    back = await buyer.until(order["id"], "PAID")
    assert int(back.get("refunded", {}).get("minorUnits", 0)) == 0
    assert back["payment"]["state"] == "SUCCEEDED"
    body["requestId"] = new_id()
    assert (await shop.staff.post(path, body)).expect().json["state"] == "REFUNDED"
    await assert_books_add_up(shop, product)


async def test_a_refund_survives_a_provider_that_is_away_and_holds_other_moves_up(shop: Shop) -> None:
    product = await shop.a_product(price=PRICE, stock=2)
    _, order = await a_paid_order(shop, product)
    shop.mesh.keep_down("sandbox")
    await shop.mesh.kill("sandbox")
    path = f"/v1/orders/{order['id']}"
    try:
        begun = (await shop.staff.post(f"{path}:refund", {"full": True, "restock": True})).expect().json
        assert (begun["state"], begun["refunding"]) == ("PAID", True)
        for move, body in (("ship", {}), ("refund", {"full": True}), ("cancel", {})):
            assert (await shop.staff.post(f"{path}:{move}", body)).refusal == (400, "REFUND_IN_PROGRESS")
        saga = (await shop.staff.get(f"/v1/admin/sagas/{order['id']}")).expect().json
        assert (saga["kind"], saga["step"], saga["stuck"]) == ("REFUND", "refund", False)
        assert (await shop.staff.post(f"/v1/admin/sagas/{order['id']}:compensate")).refusal == (400, "WRONG_STATE")
        await shop.mesh.kill("orders")
    finally:
        await shop.mesh.restart("sandbox")
    await shop.all_parts_answer()
    ended = await eventually(lambda: _order(shop, order), lambda now: not now["refunding"], seconds=60)
    assert (ended["state"], ended["refunded"]) == ("REFUNDED", money(2 * PRICE))
    assert await refunded(shop, order) == 2 * PRICE
    assert await shop.stock(product) == (2, 0, 2)


async def test_an_operator_compensates_an_order_that_does_not_get_on(shop: Shop) -> None:
    sale, buyer = await shop.a_sale(units=3, price=PRICE), await shop.a_buyer()
    shop.mesh.keep_down("payments")
    await shop.mesh.kill("payments")
    try:
        order = (await buyer.buy(sale, wait=0)).expect().json
        path = f"/v1/admin/sagas/{order['id']}"
        waiting = await eventually(lambda: _saga(shop, path), lambda saga: bool(saga["cause"]))
        assert (waiting["phase"], waiting["step"]) == ("FORWARD", "charge")
        assert [s["orderId"] for s in (await shop.staff.get("/v1/admin/sagas?pageSize=200")).expect().json["sagas"]]
        assert (await buyer.rest.get(path)).refusal == (403, "PERMISSION_DENIED")
        turned = (await shop.staff.post(f"{path}:compensate", {"reason": "the provider is broken"})).expect().json
        assert (turned["phase"], turned["step"], turned["reason"]) == ("BACKWARD", "charge", "COMPENSATED")
    finally:
        await shop.mesh.restart("payments")
    await shop.all_parts_answer()
    resumed = (await shop.staff.post(f"{path}:resume")).json
    ended = await buyer.until(order["id"], "CANCELLED", seconds=30)
    assert ended["stateReason"] == "COMPENSATED", resumed
    assert (await shop.staff.get(path)).refusal == (404, "SAGA_NOT_FOUND")
    assert (await shop.staff.post(f"/v1/admin/sagas/{new_id()}:resume")).refusal == (404, "ORDER_NOT_FOUND")
    assert await shop.counters(sale) == (3, 0, 0)
    captured = await shop.sandbox.captured(order["id"])
    assert all(entry["amount"] == entry["amount_refunded"] for entry in captured)
    log = await log_of(shop.staff, order)
    assert (log[-1]["state"], log[-1]["actor"], log[-1]["note"]) == ("CANCELLED", "STAFF", "the provider is broken")


async def _saga(shop: Shop, path: str) -> Json:
    return (await shop.staff.get(path)).expect().json


@pytest.mark.parametrize("pages", [1, 2])
async def test_history_is_found_by_state_time_customer_and_product(shop: Shop, pages: int) -> None:
    tea, cup = await shop.a_product(price=100), await shop.a_product(price=200)
    buyer, other = await shop.a_buyer(), await shop.a_buyer()
    teas = [(await buyer.buy(tea)).expect().json for _ in range(3)]
    cups = [(await buyer.buy(cup, card="pm_card_chargeDeclined")).expect().json for _ in range(2)]
    both = (await other.buy(tea, cup)).expect().json
    size = 1 if pages > 1 else 50

    async def found(rest: object, path: str, query: str) -> list[str]:
        ids: list[str] = []
        token = ""
        while True:
            page = (await rest.get(f"{path}?{query}&pageSize={size}&pageToken={token}")).expect().json  # type: ignore[attr-defined]
            ids += [order["id"] for order in page["orders"]]
            if not (token := page["nextPageToken"]):
                return ids

    def ids(*orders: Json) -> list[str]:
        return [order["id"] for order in orders][::-1]

    mine = [*teas, *cups]
    assert await found(buyer.rest, "/v1/orders", "") == ids(*mine)
    assert await found(buyer.rest, "/v1/orders", "state=FAILED") == ids(*cups)
    assert await found(buyer.rest, "/v1/orders", f"productId={tea['id']}") == ids(*teas)
    assert await found(buyer.rest, "/v1/orders", f"fromTime={teas[1]['createTime']}") == ids(*mine[1:])
    assert await found(buyer.rest, "/v1/orders", f"toTime={teas[1]['createTime']}") == ids(teas[0])
    admin = "/v1/admin/orders"
    assert await found(shop.staff, admin, f"customerId={buyer.id}") == ids(*mine)
    assert await found(shop.staff, admin, f"productId={tea['id']}") == ids(*teas, both)
    assert await found(shop.staff, admin, f"productId={cup['id']}&state=PAID") == ids(both)
    assert await found(shop.staff, admin, f"productId={cup['id']}&customerId={buyer.id}") == ids(*cups)
    assert (await buyer.rest.get(admin)).refusal == (403, "PERMISSION_DENIED")
    assert (await shop.staff.get(f"{admin}?fromTime=yesterday")).status == 400
    page = (await shop.staff.get(f"{admin}?productId={tea['id']}&pageSize=1")).expect().json
    stolen = f"{admin}?productId={cup['id']}&pageSize=1&pageToken={page['nextPageToken']}"
    assert (await shop.staff.get(stolen)).refusal == (400, "INVALID_FIELDS")


@pytest.mark.parametrize("action", ["refund", "cancel"])
async def test_refund_that_is_pending_for_hours_is_neither_stuck_nor_an_audit_finding(shop: Shop, action: str) -> None:
    """As of money that goes back to a bank account. A provider that is silent about it is another thing."""
    product, buyer = await shop.a_product(price=PRICE), await shop.a_buyer()
    order = (await buyer.buy(product, card=PENDING_REFUND)).expect().json
    asked = {"requestId": new_id()} | ({"full": True} if action == "refund" else {})
    answer = (await shop.staff.post(f"/v1/orders/{order['id']}:{action}", asked)).expect().json
    assert (answer["state"], answer["refunding"]) == ("PAID", True)
    hours = "SET {0} = {0} - interval '5 hours' WHERE {1} RETURNING 1"
    await shop.rows("orders", "UPDATE sagas " + hours.format("progress_time", f"order_id = '{order['id']}'"))
    of_order = f"payment_id = '{order['payment']['id']}'"
    assert await shop.rows("payments", "UPDATE refunds " + hours.format("create_time", of_order)) == [(1,)]

    saga = (await shop.staff.get(f"/v1/admin/sagas/{order['id']}")).expect().json
    assert (saga["waitsForProvider"], saga.get("stuck", False)) == (True, False), saga
    await assert_books_add_up(shop, product)

    [intent] = await shop.sandbox.captured(order["id"])
    (refund,) = (await shop.sandbox.get(f"/v1/refunds?payment_intent={intent['id']}"))["data"]
    assert refund["status"] == "pending"
    await shop.sandbox.settle_refund(refund["id"])
    ended = await buyer.until(order["id"], "CANCELLED" if action == "cancel" else "REFUNDED", seconds=60)
    assert (ended["refunded"], ended["refunding"]) == (order["total"], False)
    await assert_books_add_up(shop, product)


async def test_a_disputed_order_is_not_shipped_until_the_dispute_is_won(shop: Shop) -> None:
    buyer, order = await a_paid_order(shop, await shop.a_product(price=PRICE))
    path, dispute = f"/v1/orders/{order['id']}", await shop.sandbox.dispute(order["id"])

    async def flagged() -> bool:
        return bool((await shop.staff.get(path)).expect().json["disputed"])

    async def not_flagged() -> bool:
        return not await flagged()

    await until(flagged)
    listed = (await shop.staff.get("/v1/admin/disputes", state="NEEDS_RESPONSE")).expect().json["disputes"]
    (mine,) = (each for each in listed if each["orderId"] == order["id"])
    assert (mine["id"], mine["reason"], mine["withdrawn"]["minorUnits"]) == (dispute, "FRAUDULENT", str(2 * PRICE))
    assert mine["evidenceDueTime"] > mine["createTime"]
    assert (await buyer.rest.get("/v1/admin/disputes")).refusal == (403, "PERMISSION_DENIED")
    assert (await shop.staff.post(f"{path}:ship")).refusal == (400, "ORDER_DISPUTED")
    refund = {"amount": money(100), "reason": "late", "requestId": new_id()}
    payment = f"/v1/payments/{order['payment']['id']}"
    assert (await shop.staff.post(f"{payment}:refund", refund)).refusal == (400, "PAYMENT_DISPUTED")

    await shop.sandbox.decide_dispute(dispute, won=True)
    await until(not_flagged)
    assert (await shop.staff.post(f"{path}:ship")).expect().json["state"] == "SHIPPED"
    causes = [entry["cause"] for entry in await log_of(shop.staff, order)]
    assert causes == ["PlaceOrder", "paid", "payment disputed", "dispute ended", "ShipOrder"]
