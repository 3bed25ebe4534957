"""The buyer pays the price that they were shown, or hears of the new one."""

from tests.e2e.shop import Shop, assert_books_add_up, line, money
from tests.support.rest import new_id


async def test_a_changed_price_is_refused_until_the_buyer_accepts_it(shop: Shop) -> None:
    product, sale, buyer = await shop.a_product(price=1000, stock=5), await shop.a_sale(price=500), await shop.a_buyer()
    (await buyer.buy(product)).expect()
    path = f"/v1/products/{product['id']}"
    (await shop.staff.patch(path, {"price": money(1500)})).expect()
    body = {"requestId": new_id(), "lines": [line(product, 2), line(sale)], "preferWait": "10s"}
    body["paymentMethod"] = "pm_card_visa"

    refused = await buyer.rest.post("/v1/orders", {**body, "expectedTotal": money(2500)})

    assert refused.refusal == (400, "PRICE_CHANGED")
    assert refused.json["details"][0]["metadata"] == {"currencyCode": "USD", "minorUnits": "3500"}
    assert await shop.stock(product) == (4, 0, 4)
    assert await shop.counters(sale) == (sale["allocation"], 0, 0)
    order = (await buyer.rest.post("/v1/orders", {**body, "expectedTotal": money(3500)})).expect().json
    assert (order["state"], order["total"], order["subtotal"]) == ("PAID", money(3500), money(3500))
    await assert_books_add_up(shop, product)
