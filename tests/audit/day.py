"""A day in a shop: one order for each way in which an order can go."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from deploy.client import Json, new_id
from deploy.client.shop import money
from tests.e2e.shop import DECLINED, Buyer, Shop

_HOUR = timedelta(hours=1)


async def spend(shop: Shop) -> dict[str, str]:
    """Lets people sell, buy, cancel, ship and refund; returns the ids of what they made, by name."""
    day = Day(
        shop=shop,
        clock=await shop.a_product(stock=50, price=1999),
        sale=await shop.a_sale(units=10, price=999, limit=3, product=await shop.a_product(stock=30, price=2999)),
        brief=await shop.a_sale(units=5, price=500, hold="1s"),
    )
    stories = {
        "paid": day.paid, "mixed": day.mixed, "pending": day.pending, "failed": day.failed,
        "abandoned": day.abandoned, "expired": day.expired, "cancelled": day.cancelled, "partly": day.partly,
        "refunded": day.refunded, "repaid": day.repaid, "shipped": day.shipped, "delivered": day.delivered,
        "free": day.free,
    }  # fmt: skip
    buyers = await shop.a_crowd(len(stories))
    acted = zip(stories.values(), buyers, strict=True)
    orders = dict(zip(stories, await asyncio.gather(*(story(buyer) for story, buyer in acted)), strict=True))
    return {
        "clock": day.clock["id"], "bell": day.sale["productId"], "sale": day.sale["id"], "brief": day.brief["id"],
        **{name: order["id"] for name, order in orders.items()},
        **{f"{name}_buyer": buyer.id for name, buyer in zip(stories, buyers, strict=True)},
        **await _sales_that_are_not_live(shop),
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Day:
    """The stories of buyers and staff; each returns its order."""

    shop: Shop
    clock: Json
    """A product in ordinary stock."""
    sale: Json
    brief: Json
    """A sale whose holds last a second."""

    async def paid(self, buyer: Buyer) -> Json:
        return await _bought(buyer, self.sale, quantity=2)

    async def mixed(self, buyer: Buyer) -> Json:
        return await _bought(buyer, self.sale, self.clock)

    async def pending(self, buyer: Buyer) -> Json:
        order = (await buyer.buy(self.sale, self.clock, card=None, wait=0)).expect().json
        return await buyer.until_payable(order["id"])

    async def failed(self, buyer: Buyer) -> Json:
        order = (await buyer.buy(self.clock, card=DECLINED, wait=0)).expect().json
        return await buyer.until(order["id"], "FAILED")

    async def abandoned(self, buyer: Buyer) -> Json:
        order = (await buyer.buy(self.clock, card=None, wait=0)).expect().json
        await buyer.until_payable(order["id"])
        (await buyer.cancel(order["id"])).expect()
        return await buyer.until(order["id"], "CANCELLED")

    async def expired(self, buyer: Buyer) -> Json:
        order = (await buyer.buy(self.brief, card=None, wait=0)).expect().json
        return await buyer.until(order["id"], "EXPIRED")

    async def cancelled(self, buyer: Buyer) -> Json:
        order = await self.mixed(buyer)
        await self._staff(order, "cancel")
        return await buyer.until(order["id"], "CANCELLED")

    async def partly(self, buyer: Buyer) -> Json:
        order = await _bought(buyer, self.clock, quantity=3)
        back = [{"productId": self.clock["id"], "quantity": 1}]
        await self._staff(order, "refund", amount=money(1999), restockLines=back)
        return await buyer.until(order["id"], "PARTIALLY_REFUNDED")

    async def refunded(self, buyer: Buyer) -> Json:
        order = await self.mixed(buyer)
        await self._staff(order, "refund", amount=order["total"], restock=True)
        return await buyer.until(order["id"], "REFUNDED")

    async def repaid(self, buyer: Buyer) -> Json:
        """Staff refund a part at payments."""
        order = await _bought(buyer, self.clock, quantity=2)
        refund = {"amount": money(500), "reason": "a present", "requestId": new_id()}
        (await self.shop.staff.post(f"/v1/payments/{order['payment']['id']}:refund", refund)).expect()
        return await buyer.until(order["id"], "PARTIALLY_REFUNDED")

    async def shipped(self, buyer: Buyer) -> Json:
        order = await _bought(buyer, self.clock)
        await self._staff(order, "ship")
        return order

    async def free(self, buyer: Buyer) -> Json:
        """An order that comes to nothing is paid without a provider."""
        return await _bought(buyer, await self.shop.a_product(stock=5, price=0))

    async def delivered(self, buyer: Buyer) -> Json:
        order = await self.shipped(buyer)
        await self._staff(order, "deliver")
        return order

    async def _staff(self, order: Json, action: str, **body: object) -> None:
        (await self.shop.staff.post(f"/v1/orders/{order['id']}:{action}", {"requestId": new_id(), **body})).expect()


async def _bought(buyer: Buyer, *goods: Json, quantity: int = 1) -> Json:
    """The order, once it is paid."""
    order = (await buyer.buy(*goods, quantity=quantity, wait=0)).expect().json
    return await buyer.until(order["id"], "PAID")


async def _sales_that_are_not_live(shop: Shop) -> dict[str, str]:
    closed, drum = await shop.a_sale(units=4), await shop.a_product(stock=10)
    (await shop.staff.post(f"/v1/flash-sales/{closed['id']}:cancel", {"requestId": new_id()})).expect()
    opens = datetime.now(UTC) + _HOUR
    later = {
        "productId": drum["id"], "title": "Later", "salePrice": money(100), "allocation": 3, "perCustomerLimit": 0,
        "requestId": new_id(),
        "startTime": opens.isoformat(), "endTime": (opens + _HOUR).isoformat(),
    }  # fmt: skip
    scheduled = (await shop.staff.post("/v1/flash-sales", later)).expect().json
    return {"closed": closed["id"], "scheduled": scheduled["id"], "drum": drum["id"]}
