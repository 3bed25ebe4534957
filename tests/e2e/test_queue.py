"""The largest rushes: an order is answered after its hold alone, and nothing that was answered is lost."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from tests.e2e.shop import DECLINED, ENDS, Shop, assert_books_add_up, eventually, states
from tests.support.rest import Json, new_id

PRICE = 500


@pytest.fixture
async def rush(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shop]:
    """The shop, while every flash order is one too many, and nobody writes those that are queued."""
    monkeypatch.setenv("QUEUE_ABOVE", "0")
    # Before the process begins: one that writes would go on for a second.
    await nobody_writes(shop, for_seconds=3600)
    await shop.mesh.restart("orders")
    await shop.all_parts_answer()
    yield shop
    monkeypatch.undo()
    await nobody_writes(shop, for_seconds=0)
    await shop.mesh.restart("orders")
    await shop.all_parts_answer()


async def nobody_writes(shop: Shop, *, for_seconds: int) -> None:
    """Takes the lease on writing queued orders away from whoever has it."""
    await shop.rows(
        "orders",
        "INSERT INTO leases (name, holder, term, expire_time)"
        f" VALUES ('queue', 'nobody', 1, now() + interval '{for_seconds} seconds') ON CONFLICT (name) DO UPDATE"
        " SET holder = excluded.holder, term = leases.term + 1, expire_time = excluded.expire_time RETURNING term",
    )


async def kept(shop: Shop) -> int:
    return int((await shop.rows("inventory", "SELECT count(*) FROM tickets"))[0][0])


async def test_an_order_that_waits_to_be_written_can_be_seen_repeated_watched_and_cancelled(rush: Shop) -> None:
    sale, buyer, stranger = await rush.a_sale(units=4, price=PRICE), await rush.a_buyer(), await rush.a_buyer()
    request_id = new_id()

    order = (await buyer.buy(sale, request_id=request_id, wait=0)).expect().json

    assert order["state"] == "PENDING"
    assert order["total"]["minorUnits"] == str(PRICE)
    assert await rush.rows("orders", f"SELECT 1 FROM orders WHERE id = '{order['id']}'") == []
    assert await kept(rush) == 1
    assert await buyer.order(order["id"]) == order
    assert (await stranger.rest.get(f"/v1/orders/{order['id']}")).refusal == (404, "ORDER_NOT_FOUND")
    assert (await stranger.cancel(order["id"])).refusal == (404, "ORDER_NOT_FOUND")
    repeats = await asyncio.gather(*(buyer.buy(sale, request_id=request_id, wait=0) for _ in range(5)))
    assert [repeat.expect().json for repeat in repeats] == [order] * 5
    other = await buyer.buy(sale, request_id=request_id, card=DECLINED, wait=0)
    assert other.refusal == (400, "REQUEST_ID_REUSED")
    # What is sealed there is nobody else's to read.
    ((ticket,),) = await rush.rows("inventory", "SELECT ticket FROM tickets")
    assert b"pm_card" not in bytes(ticket)

    assert (await buyer.cancel(order["id"])).expect().json["state"] == "CANCELLED"
    assert await kept(rush) == 0
    assert await rush.counters(sale) == (4, 0, 0)
    assert (await buyer.buy(sale, request_id=request_id, wait=0)).expect().json["state"] == "CANCELLED"

    waits = (await buyer.buy(sale, wait=0)).expect().json
    await nobody_writes(rush, for_seconds=0)
    ended = await buyer.until(waits["id"], *ENDS)
    assert (ended["state"], ended["createTime"]) == ("PAID", waits["createTime"])
    await assert_books_add_up(rush, sale)


async def test_nothing_that_was_answered_is_lost_when_everything_is_killed(rush: Shop) -> None:
    crowd, sale = await rush.a_crowd(60), await rush.a_sale(units=50, price=PRICE)

    answers = await asyncio.gather(*(buyer.buy(sale, wait=0) for buyer in crowd))
    for part in ("orders", "inventory", "payments", "valkey", "nats", "postgres"):
        await rush.mesh.kill(part)
    await rush.all_parts_answer()
    await nobody_writes(rush, for_seconds=0)

    assert Counter(answer.status for answer in answers) == {200: 50, 400: 10}
    placed = [(buyer, answer.json) for buyer, answer in zip(crowd, answers, strict=True) if answer.status == 200]
    ended: list[Json] = await asyncio.gather(*(buyer.until(o["id"], *ENDS, seconds=60) for buyer, o in placed))
    assert Counter(states(ended)) == {"PAID": 50}
    assert await rush.counters(sale) == (0, 0, 50)
    assert await kept(rush) == 0
    await assert_books_add_up(rush, sale)


async def test_an_order_whose_hold_ends_before_it_is_written_is_expired_and_not_forgotten(rush: Shop) -> None:
    sale, buyer = await rush.a_sale(units=1, price=PRICE, hold="10s"), await rush.a_buyer()
    order = (await buyer.buy(sale, wait=0)).expect().json
    await rush.rows(
        "inventory",
        f"UPDATE reservations SET expire_time = now() - interval '3 seconds' WHERE id = '{order['id']}' RETURNING id",
    )
    await eventually(lambda: rush.counters(sale), lambda counters: counters == (1, 0, 0))
    assert (await buyer.order(order["id"]))["state"] == "PENDING"

    await nobody_writes(rush, for_seconds=0)

    assert (await buyer.until(order["id"], *ENDS))["state"] == "EXPIRED"
    assert await rush.sandbox.captured(order["id"]) == []
    await assert_books_add_up(rush, sale)
