"""Two processes of orders on one mesh: each begins and ends sagas, and either takes up what the other leaves."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from stampede.orders.v1 import order_service_pb2 as pb
from tests.e2e.clock import leases_are_over, time_passes
from tests.e2e.replica import Replica
from tests.e2e.shop import ENDS, VISA, Buyer, Shop, assert_books_add_up
from tests.support.rest import Json, new_id
from tests.support.waiting import eventually

PRICE = 700
WATCHED, _ONE_BY_ONE = 15, 3
# Longer than a lease.
_ENDS_SECONDS = 40


@pytest.fixture(scope="module")
async def _one_replica(shop: Shop) -> AsyncIterator[Replica]:
    replica = Replica(shop.mesh.site)
    yield replica
    await replica.close()


@pytest.fixture
async def second(_one_replica: Replica) -> Replica:
    """The second process, which is started again where a test has killed it."""
    if not _one_replica.runs:
        await _one_replica.start()
    return _one_replica


@pytest.fixture
async def onlooker(shop: Shop) -> AsyncIterator[Replica]:
    """A second process that carries no saga: whatever becomes of an order is the first one's doing.

    Its tests come first: later ones leave `second` running, which carries sagas.
    """
    replica = Replica(shop.mesh.site, SAGAS_AT_ONCE="0")
    try:
        await replica.start()
        yield replica
    finally:
        await replica.close()


async def orders_of(shop: Shop, *order_ids: str) -> dict[str, tuple[Any, ...]]:
    """State and version of each, by id."""
    ids = "', '".join(order_ids)
    rows = await shop.rows("orders", f"SELECT id::text, state, version FROM orders WHERE id IN ('{ids}')")
    return {row[0]: row[1:] for row in rows}


async def check(shop: Shop, sale: Json, placed: list[str], paid: set[str]) -> None:
    """Each order ended once; these were paid, once."""
    captured = await shop.sandbox.captured(*placed)
    kept = [entry["metadata"]["order_id"] for entry in captured if not entry["amount_refunded"]]
    assert Counter(kept) == Counter(paid)
    assert len(captured) == len(kept)
    ids = "', '".join(placed)
    ends = await shop.rows(
        "orders", f"SELECT order_id::text FROM order_log WHERE order_id IN ('{ids}') AND state IN {ENDS!r}"
    )
    assert Counter(order_id for (order_id,) in ends) == Counter(placed)
    await eventually(lambda: shop.counters(sale), lambda found: found == (sale["allocation"] - len(paid), 0, len(paid)))
    await assert_books_add_up(shop, sale)


async def latest(buyer: Buyer, sale: Json) -> str:
    """The id of the buyer's order in this sale, once there is one."""

    async def look() -> str:
        orders = (await buyer.rest.get("/v1/orders", pageSize=5)).expect().json.get("orders", [])
        return next((order["id"] for order in orders if order["lines"][0].get("flashSaleId") == sale["id"]), "")

    return await eventually(look, bool)


async def under_way(shop: Shop, order_ids: list[str]) -> None:
    """Returns once payments has been asked to charge for all of them."""
    ids = "', '".join(order_ids)
    query = f"SELECT count(*) FROM payments WHERE order_id IN ('{ids}')"
    await eventually(lambda: shop.rows("payments", query), lambda rows: rows[0][0] == len(order_ids))


async def test_watcher_at_one_process_sees_states_made_by_the_other(shop: Shop, onlooker: Replica) -> None:
    """Events bring them: the first orders are watched to their ends within half the time between two safety looks."""
    crowd, sale = await shop.a_crowd(10), await shop.a_sale(units=WATCHED, price=PRICE)
    buyers = [crowd[number % len(crowd)] for number in range(WATCHED)]
    orders: list[Json] = await asyncio.gather(*(buyer.buy_unpaid(sale) for buyer in buyers))
    seen: list[list[pb.Order]] = [[] for _ in orders]

    async def follow(buyer: Buyer, order: Json, into: list[pb.Order]) -> None:
        async for state in onlooker.watch(buyer, order["id"]):
            into.append(state)

    before = await orders_read(shop)
    async with asyncio.TaskGroup() as watching:
        for buyer, order, into in zip(buyers, orders, seen, strict=True):
            watching.create_task(follow(buyer, order, into))
        await eventually(lambda: _lengths(seen), lambda lengths: min(lengths) == 1)
        # Each is looked up when its watcher comes, and once more when the process receives all events.
        await eventually(lambda: orders_read(shop), lambda rows: rows >= before + 2 * WATCHED)

        for number, (buyer, order) in enumerate(zip(buyers, orders, strict=True)):
            match number % 3:
                case 0:
                    await shop.sandbox.pay_in_browser(order["payment"]["clientSecret"])
                case 1:
                    (await buyer.cancel(order["id"])).expect()
                case 2:
                    await time_passes(shop, order["id"])
            if number < _ONE_BY_ONE:
                await eventually(lambda states=seen[number]: _last_state(states), lambda state: state != "PENDING")

    ends = ["PAID", "CANCELLED", "EXPIRED"]
    for number, (buyer, order, states) in enumerate(zip(buyers, orders, seen, strict=True)):
        versions = [int(one.etag.strip('"')) for one in states]
        assert versions == sorted(set(versions))
        now = await buyer.order(order["id"])
        assert (states[-1].etag, now["state"]) == (now["etag"], ends[number % 3])
        shown = [await _last_state([one]) for one in states]
        assert list(dict.fromkeys(shown)) == ["PENDING", now["state"]]
    assert await onlooker.ends() == 0
    await check(shop, sale, [order["id"] for order in orders], {order["id"] for order in orders[::3]})


async def test_both_place_orders_and_bring_them_to_their_end(shop: Shop, second: Replica) -> None:
    crowd, sale = await shop.a_crowd(10), await shop.a_sale(units=20, price=PRICE)
    ended_before = await second.ends()
    here = await asyncio.gather(*(buyer.buy(sale, wait=0) for buyer in crowd))
    there = await asyncio.gather(*(second.buy(buyer, sale) for buyer in crowd))
    placed = [*(answer.expect().json["id"] for answer in here), *there]

    for order_id, buyer in zip(placed, [*crowd, *crowd], strict=True):
        await buyer.until(order_id, "PAID", seconds=_ENDS_SECONDS)

    assert len(set(placed)) == 20
    assert await second.ends() > ended_before
    await check(shop, sale, placed, set(placed))


async def test_one_request_sent_to_both_at_once_is_one_order(shop: Shop, second: Replica) -> None:
    # The gate counts a repeat that comes at the same moment twice, for a second: there are units for all.
    crowd, sale = await shop.a_crowd(10), await shop.a_sale(units=20, price=PRICE)
    request_ids = [new_id() for _ in crowd]

    answers = await asyncio.gather(
        *(
            both
            for buyer, request_id in zip(crowd, request_ids, strict=True)
            for both in (buy_here(buyer, sale, request_id), second.buy(buyer, sale, request_id=request_id))
        )
    )

    assert answers[::2] == answers[1::2]
    assert len(set(answers)) == 10
    for order_id, buyer in zip(answers[::2], crowd, strict=True):
        await buyer.until(order_id, "PAID", seconds=_ENDS_SECONDS)
    await check(shop, sale, answers[::2], set(answers))


async def buy_here(buyer: Buyer, sale: Json, request_id: str) -> str:
    return str((await buyer.buy(sale, wait=0, request_id=request_id)).expect().json["id"])


async def test_what_one_leaves_that_is_killed_the_other_ends_when_the_lease_is_over(
    shop: Shop, second: Replica
) -> None:
    await shop.sandbox.faults(latency_ms={"fixed": 1500, "jitter": 500})
    crowd, sale = await shop.a_crowd(8), await shop.a_sale(units=8, price=PRICE)
    placed = list(await asyncio.gather(*(second.buy(buyer, sale) for buyer in crowd)))
    await under_way(shop, placed)

    second.signal(signal.SIGKILL)

    states = await orders_of(shop, *placed)
    assert {state for state, _ in states.values()} == {"PENDING"}, "nothing was left to take over"
    for order_id, buyer in zip(placed, crowd, strict=True):
        await buyer.until(order_id, "PAID", seconds=_ENDS_SECONDS)
    await check(shop, sale, placed, set(placed))


@pytest.mark.parametrize("amid", [False, True], ids=["after the end", "in the middle"])
async def test_who_stood_still_beyond_the_lease_changes_nothing_when_it_goes_on(
    shop: Shop, second: Replica, amid: bool
) -> None:
    """Some orders are paid by the other, some cancelled: each is what the first process makes of it."""
    await shop.sandbox.faults(latency_ms={"fixed": 1500, "jitter": 500})
    crowd, sale = await shop.a_crowd(8), await shop.a_sale(units=9, price=PRICE)
    cards = [VISA] * 4 + [None] * 4
    # Those without a card wait for the provider's answer too, to know how they can be paid.
    placing = [
        asyncio.create_task(second.buy(buyer, sale, card=card)) for buyer, card in zip(crowd, cards, strict=True)
    ]
    placed = [await latest(buyer, sale) for buyer in crowd]
    await under_way(shop, placed)
    second.signal(signal.SIGSTOP)
    try:
        states = await orders_of(shop, *placed)
        assert {state for state, _ in states.values()} == {"PENDING"}, "nothing was left to take over"
        await leases_are_over(shop)
        await taken_over(shop, placed)
        if amid:
            second.signal(signal.SIGCONT)
        cancelling = [buyer.cancel(order_id) for order_id, buyer in zip(placed[4:], crowd[4:], strict=True)]
        assert {answer.status for answer in await asyncio.gather(*cancelling)} == {200}
        for order_id, buyer in zip(placed, crowd, strict=True):
            await buyer.until(order_id, "PAID", "CANCELLED", seconds=_ENDS_SECONDS)
        ended = await orders_of(shop, *placed)
    finally:
        second.signal(signal.SIGCONT)
    assert [ended[order_id][0] for order_id in placed] == ["PAID"] * 4 + ["CANCELLED"] * 4

    await asyncio.gather(*placing)
    await shop.sandbox.no_faults()
    later = await second.buy(crowd[0], sale)  # it lives, and has had all the time that it needs
    await crowd[0].until(later, "PAID", seconds=_ENDS_SECONDS)

    assert await orders_of(shop, *placed) == ended
    await check(shop, sale, [*placed, later], {*placed[:4], later})


async def taken_over(shop: Shop, order_ids: list[str]) -> None:
    """Returns once each saga is another process's than the one that began it, or over."""
    ids = "', '".join(order_ids)
    query = f"SELECT count(*) FROM sagas WHERE order_id IN ('{ids}') AND fencing_token = 1"
    await eventually(lambda: shop.rows("orders", query), lambda rows: rows == [(0,)])


async def _last_state(states: list[pb.Order]) -> str:
    return str(pb.Order.State.Name(states[-1].state))


async def _lengths(lists: list[list[pb.Order]]) -> list[int]:
    return [len(each) for each in lists]


async def orders_read(shop: Shop) -> int:
    """How many rows of orders all processes have read, as far as they have reported it to the server."""
    query = "SELECT idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'orders'"
    return int((await shop.rows("orders", query))[0][0])
