"""Orders without a card: the provider hears of one only when somebody asks how to pay it."""

import asyncio
import uuid
from contextlib import ExitStack
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from services.chassis import ids
from services.chassis.server import watch
from services.orders.saga import operators
from services.orders.saga.plan import SECRETS_UNASKED_MOST
from services.orders.saga.slots import OPENING_EACH_MOST
from services.orders.sql import sagas
from stampede.orders.v1 import order_service_pb2 as pb
from tests.integration.orders.conftest import Shop, run_sql, the_order
from tests.integration.orders.test_placing import State, stocked, wanting
from tests.support import tokens
from tests.support.waiting import until


async def _unpaid(shop: Shop, product: uuid.UUID, **fields: Any) -> pb.Order:
    return await shop.place(wanting((product, 1, None), payment_method="", **fields))


async def _unasked(shop: Shop, product: uuid.UUID) -> pb.Order:
    """An order beyond those that get their secret with the answer; its saga has paused."""
    for _ in range(SECRETS_UNASKED_MOST):
        assert (await _unpaid(shop, product)).payment.client_secret
    order = await _unpaid(shop, product)
    assert not order.HasField("payment")
    await shop.worker.drain(5)
    shop.payments.calls.clear()
    return order


async def _get(shop: Shop, order: pb.Order, metadata: Any = None) -> pb.Order:
    found: pb.Order = await shop.orders.GetOrder(
        pb.GetOrderRequest(order_id=order.id), metadata=metadata or tokens.as_user(shop.customer)
    )
    return found


async def test_unpaid_orders_that_nobody_asks_about_make_no_payment(shop: Shop) -> None:
    """Placed one by one and at once: more than a few of one customer's cost the provider nothing."""
    product = stocked(shop, units=100)
    await _unasked(shop, product)
    for order in await asyncio.gather(*(_unpaid(shop, product) for _ in range(40))):
        assert order.state == State.PENDING
        assert not order.HasField("payment")
    shop.carry_on()
    await shop.worker.drain(5)
    assert shop.payments.calls == {}
    assert len(shop.payments.payments) == SECRETS_UNASKED_MOST


async def test_orders_placed_at_once_get_few_secrets_unasked(shop: Shop) -> None:
    """One batch writes them, so that none of them sees the others in the table."""
    product = stocked(shop, units=100)
    placed = await asyncio.gather(*(_unpaid(shop, product) for _ in range(40)))
    assert sum(order.HasField("payment") for order in placed) == SECRETS_UNASKED_MOST
    await shop.worker.drain(5)
    assert len(shop.payments.payments) == SECRETS_UNASKED_MOST


async def test_another_customer_gets_the_secret_with_the_answer(shop: Shop) -> None:
    product = stocked(shop, units=100)
    await _unasked(shop, product)
    other = await shop.place(wanting((product, 1, None), payment_method=""), customer=ids.new())
    assert other.payment.client_secret == "a secret"


async def test_its_customer_gets_the_secret_by_asking_for_the_order(shop: Shop) -> None:
    order = await _unasked(shop, stocked(shop))
    for staff in (tokens.as_staff(),):
        assert not (await _get(shop, order, staff)).HasField("payment")
    assert shop.payments.calls == {}
    assert (await _get(shop, order)).payment.client_secret == "a secret"
    assert (await _get(shop, order)).payment.client_secret == "a secret"
    assert shop.payments.calls == {"BatchCharge": 1}


async def test_the_list_and_the_log_of_orders_ask_for_no_secret(shop: Shop) -> None:
    order, mine = await _unasked(shop, stocked(shop)), tokens.as_user(shop.customer)
    await shop.orders.ListOrders(pb.ListOrdersRequest(), metadata=mine)
    await shop.orders.ListOrderLog(pb.ListOrderLogRequest(order_id=order.id), metadata=mine)
    assert shop.payments.calls == {}


async def test_a_watch_of_the_order_brings_the_secret(shop: Shop) -> None:
    order = await _unasked(shop, stocked(shop))
    seen = shop.orders.WatchOrder(pb.WatchOrderRequest(order_id=order.id), metadata=tokens.as_user(shop.customer))
    async with asyncio.timeout(10):
        async for now in seen:
            if now.payment.client_secret:
                break
    seen.cancel()
    assert shop.payments.calls == {"BatchCharge": 1}


async def test_a_quiet_watch_repeats_the_order(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its buyer may be at the bank for minutes, and a proxy cuts a stream that is silent for one."""
    order = await _unpaid(shop, stocked(shop))
    monkeypatch.setattr(watch, "_QUIET_SECONDS", 0.01)
    seen = shop.orders.WatchOrder(pb.WatchOrderRequest(order_id=order.id), metadata=tokens.as_user(shop.customer))
    async with asyncio.timeout(10):
        assert [(await seen.read()).id for _ in range(3)] == [order.id] * 3
    seen.cancel()


async def test_prefer_wait_asks_for_the_secret(shop: Shop) -> None:
    product = stocked(shop)
    await _unasked(shop, product)
    wait = Duration(nanos=50_000_000)
    request_id = str(uuid.uuid4())
    plain = await _unpaid(shop, product, request_id=request_id)
    assert not plain.HasField("payment")
    assert (await _unpaid(shop, product, prefer_wait=wait)).payment.client_secret == "a secret"
    repeat = await _unpaid(shop, product, request_id=request_id, prefer_wait=Duration(seconds=1))
    assert (repeat.id, repeat.payment.client_secret) == (plain.id, "a secret")


async def test_an_order_that_was_paid_makes_room_for_another(shop: Shop) -> None:
    product = stocked(shop)
    for _ in range(SECRETS_UNASKED_MOST + 2):
        order = await _unpaid(shop, product)
        assert order.payment.client_secret
        shop.payments.set_state(order.id, "SUCCEEDED")
        async with shop.db.begin() as tx:
            await sagas.note_payments(tx, [uuid.UUID(order.id)])
        shop.carry_on()
        assert (await shop.ended(order.id)).state == State.PAID


async def test_an_order_that_nobody_asked_about_waits_for_its_customer(shop: Shop) -> None:
    """It is not stuck, is cancelled at once, and expires with its hold; the provider never hears of it."""
    product = stocked(shop, units=100)
    order, second = await _unasked(shop, product), await _unpaid(shop, product)
    await shop.worker.drain(5)
    await run_sql(shop.db, "UPDATE sagas SET progress_time = now() - interval '1 hour'")
    assert await operators.list_sagas(shop.db, stuck=True, after=None, most=10) == []
    cancelled = await shop.orders.CancelOrder(
        pb.CancelOrderRequest(order_id=order.id), metadata=tokens.as_user(shop.customer)
    )
    assert cancelled.state == State.CANCELLED

    await run_sql(shop.db, "UPDATE orders SET hold_expire_time = now() - interval '1 minute'")
    await run_sql(shop.db, "UPDATE sagas SET next_time = now()")
    shop.carry_on()

    async def expired() -> bool:
        return (await the_order(shop.db, second.id)).state == "EXPIRED"

    await until(expired)
    assert shop.payments.calls["BatchCharge"] == 0


async def test_a_process_that_dies_while_asking_leaves_the_secret_to_another(shop: Shop) -> None:
    order = await _unasked(shop, stocked(shop))
    shop.payments.unavailable = True
    shown = await _get(shop, order)
    assert not shown.HasField("payment")
    shop.payments.unavailable = False
    await run_sql(shop.db, "UPDATE sagas SET next_time = now()")
    shop.carry_on()

    async def there() -> bool:
        return bool((await _get(shop, order)).payment.client_secret)

    await until(there)


async def test_customer_who_asks_for_many_secrets_gets_the_further_ones_later(shop: Shop) -> None:
    """They wait in the table. A call for each would take the slots, and the provider, from everybody."""
    product = stocked(shop, units=100)
    await _unasked(shop, product)
    unpaid = [await _unpaid(shop, product) for _ in range(2 * OPENING_EACH_MOST)]
    await shop.worker.drain(5)
    with ExitStack() as others:
        for _ in range(OPENING_EACH_MOST):
            others.enter_context(shop.worker.slots.taken(opening=True, customer_id=shop.customer))
        assert not await _all_have_secrets(shop, unpaid)
        assert shop.payments.calls == {}
    shop.carry_on()
    await until(lambda: _all_have_secrets(shop, unpaid))


async def _all_have_secrets(shop: Shop, unpaid: list[pb.Order]) -> bool:
    return all([bool((await _get(shop, order)).payment.client_secret) for order in unpaid])


async def test_secret_that_is_asked_for_while_its_order_is_placed_comes(shop: Shop) -> None:
    """Its first saga does not know yet that it is wanted, and must not pause it until the hold ends."""
    order = await _unasked(shop, stocked(shop))
    with ExitStack() as others:
        for _ in range(OPENING_EACH_MOST):
            others.enter_context(shop.worker.slots.taken(opening=True, customer_id=shop.customer))
        await run_sql(shop.db, "UPDATE sagas SET paused = false, next_time = now() + interval '1 hour'")
        assert not (await _get(shop, order)).HasField("payment")
    shop.carry_on()
    await until(lambda: _all_have_secrets(shop, [order]))
