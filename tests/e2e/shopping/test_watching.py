"""Pages that follow an order or a sale, by server-sent events."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp

from tests.e2e.shop import VISA, Shop
from tests.support.rest import Json, new_id
from tests.support.waiting import eventually

_SECONDS = 10


async def collect(messages: AsyncIterator[Json]) -> list[Json]:
    """All messages until the stream ends by itself."""
    async with asyncio.timeout(_SECONDS):
        return [message async for message in messages]


async def first(messages: AsyncIterator[Json]) -> Json:
    async with asyncio.timeout(_SECONDS):
        return await anext(messages)


async def watchers(shop: Shop, service: str) -> int:
    """Calls that the gateway has open at a service."""
    name = f"cluster.{service}.upstream_rq_active"
    url = f"http://127.0.0.1:{shop.mesh.site.ports.admin}/stats?filter=^{name}$&format=json"
    async with shop.rest.http.get(url) as answer:
        return sum(stat["value"] for stat in (await answer.json())["stats"] if stat.get("name") == name)


async def test_an_order_is_followed_until_it_is_paid(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    order = await buyer.buy_unpaid(product)

    async with buyer.rest.watching(f"/v1/orders/{order['id']}:watch") as messages:
        assert await first(messages) == order
        await shop.sandbox.pay_in_browser(order["payment"]["clientSecret"], VISA)
        rest = await collect(messages)

    assert rest[-1]["state"] == "PAID"
    assert rest[-1] == await buyer.order(order["id"])
    assert [message["state"] for message in rest].count("PAID") == 1


async def test_an_order_that_has_ended_is_told_once(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    order = (await buyer.buy(product)).expect().json

    async with buyer.rest.watching(f"/v1/orders/{order['id']}:watch") as messages:
        assert await collect(messages) == [order]


async def test_a_sale_is_seen_to_shrink(shop: Shop) -> None:
    sale, buyer = await shop.a_sale(units=3), await shop.a_buyer()
    seen: list[Json] = []

    async def follow(messages: AsyncIterator[Json]) -> None:
        async for message in messages:
            seen.append(message)
            if message["sold"] == 3:
                return

    async with shop.rest.watching(f"/v1/flash-sales/{sale['id']}:watch") as messages:
        assert (await first(messages))["remaining"] == 3
        following = asyncio.create_task(follow(messages))
        for _ in range(3):
            (await buyer.buy(sale)).expect()
        await asyncio.wait_for(following, _SECONDS)

    remaining = [message["remaining"] for message in seen]
    assert remaining == sorted(remaining, reverse=True)
    assert (seen[-1]["remaining"], seen[-1]["held"], seen[-1]["state"]) == (0, 0, "SOLD_OUT")


async def test_those_who_hang_up_leave_no_watcher_behind(shop: Shop) -> None:
    sale, product, buyer = await shop.a_sale(units=3), await shop.a_product(), await shop.a_buyer()
    order = (await buyer.buy(product, card=None, wait=0)).expect().json

    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            for path in (f"/v1/flash-sales/{sale['id']}:watch", f"/v1/orders/{order['id']}:watch"):
                await first(await stack.enter_async_context(buyer.rest.watching(path)))
        assert await watchers(shop, "inventory") >= 20
        assert await watchers(shop, "orders") >= 20

    for service in ("inventory", "orders"):
        await eventually(lambda service=service: watchers(shop, service), lambda open_: open_ == 0)
    (await buyer.buy(sale)).expect()
    (await buyer.cancel(order["id"])).expect()


async def test_one_address_cannot_take_all_streams(shop: Shop) -> None:
    """Only the gateway knows the address of a client: 200 streams stay, and the oldest one ends."""
    sale = await shop.a_sale()
    path = f"/v1/flash-sales/{sale['id']}:watch"
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        anonymous = replace(shop.rest, http=session)
        oldest = await stack.enter_async_context(anonymous.watching(path))
        await first(oldest)
        for _ in range(200):
            await stack.enter_async_context(anonymous.watching(path))
        assert await collect(oldest) == []
        assert await watchers(shop, "inventory") == 200


async def test_what_is_not_there_cannot_be_watched(shop: Shop) -> None:
    buyer = await shop.a_buyer()

    assert (await buyer.rest.get(f"/v1/orders/{new_id()}:watch")).refusal == (404, "ORDER_NOT_FOUND")
    assert (await buyer.rest.get(f"/v1/flash-sales/{new_id()}:watch")).refusal == (404, "FLASH_SALE_NOT_FOUND")
    assert (await shop.rest.get(f"/v1/orders/{new_id()}:watch")).refusal == (401, "UNAUTHENTICATED")
