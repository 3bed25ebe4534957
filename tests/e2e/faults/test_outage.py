"""Orders that are placed while the provider is unavailable for minutes, and what follows once it is back."""

import asyncio
import re
from itertools import cycle, islice

from tests.bench.measure.statements import metrics
from tests.e2e.clock import hold_is_checked, time_passes
from tests.e2e.shop import Shop, assert_books_add_up
from tests.support.waiting import eventually

PRICE = 1100
_ORDERS, _CALLED_OFF = 30, 3
# More than the orders that are called off, which are searched for after the others.
_MANY = 8
_WALKS = re.compile(r'^stampede_batch_size_count\{batcher="stripe.find"\} (\S+)$', re.MULTILINE)
_WALKS_FOR_FEW = re.compile(
    rf'^stampede_batch_size_bucket\{{batcher="stripe.find",le="{_MANY}.0"\}} (\S+)$', re.MULTILINE
)


async def walks_for_many(shop: Shop) -> int:
    """How many walks through the provider's list payments has made that searched for more than `_MANY` payments."""
    text = await metrics(shop.mesh.site, "payments")
    every, for_few = (sum(int(float(n)) for n in found.findall(text)) for found in (_WALKS, _WALKS_FOR_FEW))
    return every - for_few


async def test_orders_of_an_outage_are_settled_by_shared_walks_and_end_in_time(shop: Shop) -> None:
    """The search for a charge walks through the provider's list: once for all that wait, not once for each."""
    sale, crowd = await shop.a_sale(units=100, price=PRICE), [await shop.a_buyer() for _ in range(3)]
    shop.mesh.keep_down("sandbox")
    await shop.mesh.kill("sandbox")
    buyers = list(islice(cycle(crowd), _ORDERS))
    ids = [(await buyer.insist(sale, wait=0)).expect().json["id"] for buyer in buyers]
    listed = "', '".join(ids)
    # As after minutes without an answer: the next call of each payment is a search.
    searched = f"UPDATE payments SET checks = 6 WHERE order_id IN ('{listed}') AND checks < 6 RETURNING 1"

    async def all_wait_for_a_search() -> bool:
        await shop.rows("payments", searched)
        (row,) = await shop.rows("payments", f"SELECT count(*) FROM payments WHERE order_id IN ('{listed}')")
        return row == (len(ids),)

    await eventually(all_wait_for_a_search, bool, seconds=60)
    called_off = ids[:_CALLED_OFF]
    for order_id in called_off:
        await the_hold_is_extended_and_ends(shop, order_id)
    before = await walks_for_many(shop)
    shop.mesh.keep_up("sandbox")
    await shop.mesh.ready("sandbox", timeout=60)

    await asyncio.gather(
        *(
            buyer.until(order_id, "EXPIRED" if order_id in called_off else "PAID", seconds=120)
            for buyer, order_id in zip(buyers, ids, strict=True)
        )
    )

    assert await walks_for_many(shop) > before
    assert len(await shop.sandbox.captured(*ids)) == _ORDERS - _CALLED_OFF
    assert await shop.counters(sale) == (100 - _ORDERS + _CALLED_OFF, 0, _ORDERS - _CALLED_OFF)
    await assert_books_add_up(shop, sale)


async def the_hold_is_extended_and_ends(shop: Shop, order_id: str) -> None:
    """Moves the order beyond its first end, which is put off, and then beyond the second one, which is not."""
    hold = f"SELECT hold_expire_time FROM orders WHERE id = '{order_id}'"
    ((first,),) = await shop.rows("orders", hold)
    await hold_is_checked(shop, order_id)
    await eventually(lambda: shop.rows("orders", hold), lambda rows: rows[0][0] > first, seconds=60)
    ((second,),) = await shop.rows("orders", hold)
    await hold_is_checked(shop, order_id)
    await time_passes(shop, order_id)
    await time_passes(shop, order_id)
    ended = f"SELECT cancel_reason FROM sagas WHERE order_id = '{order_id}'"
    await eventually(lambda: shop.rows("orders", ended), lambda rows: rows == [("HOLD_EXPIRED",)], seconds=60)
    ((now,),) = await shop.rows("orders", hold)
    assert now < second, "the hold was extended twice"
