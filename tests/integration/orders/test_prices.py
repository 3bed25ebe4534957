"""Placing at the price that the buyer was shown, and orders that come to nothing; over gRPC, with small neighbours."""

import uuid
from typing import Any

import pytest

from services.chassis.money import Money
from stampede.inventory.v1 import reservation_service_pb2 as inventory_pb
from stampede.orders.v1 import order_service_pb2 as pb
from stampede.type.v1 import money_pb2
from tests.integration.orders.conftest import Shop, an_order, place, rows_of, run_sql
from tests.integration.orders.test_placing import on_sale, orders_written, stocked, wanting
from tests.support import tokens
from tests.support.serving import refusal

State = pb.Order.State


def dollars(minor_units: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="USD", minor_units=minor_units)


async def changed_to(shop: Shop, total: int, request: pb.PlaceOrderRequest) -> None:
    refused = await refusal(shop.place(request))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "PRICE_CHANGED")
    assert refused.metadata == {"currencyCode": "USD", "minorUnits": str(total)}
    assert await orders_written(shop) == 0


async def test_changed_price_is_refused_at_once_and_nothing_is_held(shop: Shop) -> None:
    """The cache of products still has the old price."""
    product = stocked(shop)
    await shop.place(wanting((product, 1, None)), customer=uuid.uuid4())
    shop.catalog.add(Money("USD", 1500), product_id=product)
    held = dict(shop.inventory.held)
    request = wanting((product, 2, None), expected_total=dollars(1998))

    refused = await refusal(shop.place(request))

    assert (refused.reason, refused.metadata["minorUnits"]) == ("PRICE_CHANGED", "3000")
    assert shop.inventory.held == held
    request.expected_total.minor_units = 3000
    assert (await shop.place(request)).total == dollars(3000)


async def test_price_of_a_sale_is_compared_before_a_hold_and_read_once(shop: Shop) -> None:
    flash, sale = on_sale(shop)
    shop.inventory.product_of[str(sale)] = str(flash)

    for _ in range(3):
        await changed_to(shop, 200, wanting((flash, 2, sale), expected_total=dollars(1998)))

    assert not shop.inventory.held
    assert shop.inventory.calls == {"GetFlashSale": 1}
    assert (await shop.place(wanting((flash, 2, sale), expected_total=dollars(200)))).total == dollars(200)


async def test_price_of_a_sale_that_opens_meanwhile_is_compared_after_the_hold(shop: Shop) -> None:
    flash, sale = on_sale(shop)
    shop.inventory.product_of[str(sale)], shop.inventory.not_live[str(sale)] = str(flash), "SCHEDULED"
    reserve = shop.inventory._reserve

    def opens(hold: Any) -> Any:
        shop.inventory.not_live.clear()
        return reserve(hold)

    shop.inventory._reserve = opens  # type: ignore[method-assign]
    await changed_to(shop, 100, wanting((flash, 1, sale), expected_total=dollars(999)))
    assert [r.state for r in shop.inventory.held.values()] == [inventory_pb.Reservation.RELEASED]


@pytest.mark.parametrize("change", ["price", "withdrawn"])
async def test_repeat_finds_its_order_whatever_became_of_the_product(shop: Shop, change: str) -> None:
    product = stocked(shop)
    request = wanting((product, 1, None), expected_total=dollars(999))
    first = await shop.place(request)
    shop.catalog.add(Money("USD", 1500), product_id=product, active=change == "price")
    shop.recent.discard(uuid.UUID(first.id))  # another process answers

    assert (await shop.place(request)).id == first.id


@pytest.mark.parametrize("card", ["pm_card_visa", "", "pm_declined"])
async def test_free_order_is_confirmed_without_a_payment(shop: Shop, card: str) -> None:
    product = stocked(shop, price=Money("USD", 0))

    placed = await shop.place(wanting((product, 2, None), payment_method=card))
    order = await shop.ended(placed.id)

    assert (order.state, order.total, order.HasField("payment")) == (State.PAID, dollars(0), False)
    assert shop.inventory.state(order.id) == "CONFIRMED"
    assert not shop.payments.calls


async def test_free_order_is_refunded_and_cancelled_like_others(shop: Shop) -> None:
    product, staff = stocked(shop, price=Money("USD", 0)), tokens.as_user(uuid.uuid4(), "staff")
    refunded, cancelled = [await shop.ended((await shop.place(wanting((product, 2, None)))).id) for _ in range(2)]

    refund = pb.RefundOrderRequest(order_id=refunded.id, full=True, restock=True)
    refunded = await shop.orders.RefundOrder(refund, metadata=staff)
    cancelled = await shop.orders.CancelOrder(pb.CancelOrderRequest(order_id=cancelled.id), metadata=staff)

    assert (refunded.state, cancelled.state) == (State.REFUNDED, State.CANCELLED)
    assert [order.lines[0].returned_quantity for order in (refunded, cancelled)] == [2, 2]
    assert shop.inventory.calls["BatchCreateReturns"] == 2
    assert not shop.payments.calls


@pytest.mark.parametrize(("why", "state"), [("cancelled", State.CANCELLED), ("hold ended", State.EXPIRED)])
async def test_free_order_turns_back_without_a_call_of_payments(shop: Shop, why: str, state: int) -> None:
    """Its process died before it was confirmed. Payments knows of no such order, and takes none without an amount."""
    order = an_order(total=Money("USD", 0), customer_id=shop.customer)
    shop.inventory.held[str(order.id)] = inventory_pb.Reservation(id=str(order.id), state=inventory_pb.Reservation.HELD)
    await place(shop.db, order, lease_seconds=0)
    if why == "cancelled":
        request = pb.CancelOrderRequest(order_id=str(order.id))
        await shop.orders.CancelOrder(request, metadata=tokens.as_user(shop.customer))
    else:
        await run_sql(shop.db, "UPDATE orders SET hold_expire_time = now() - interval '1 minute'")
        shop.carry_on()

    ended = await shop.ended(str(order.id))

    assert (ended.state, shop.inventory.state(order.id)) == (state, "RELEASED")
    assert not shop.payments.calls


async def test_returns_are_counted_by_line_and_bounded_by_units_still_out(shop: Shop) -> None:
    tee, cap = stocked(shop), stocked(shop)
    order = await shop.ended((await shop.place(wanting((tee, 3, None), (cap, 1, None)))).id)
    staff = tokens.as_user(uuid.uuid4(), "staff")

    def refund(units: int, **fields: Any) -> Any:
        lines = [pb.RestockLine(product_id=str(tee), quantity=units)]
        request = pb.RefundOrderRequest(order_id=order.id, amount=dollars(10), restock_lines=lines, **fields)
        return shop.orders.RefundOrder(request, metadata=staff)

    assert [line.returned_quantity for line in (await refund(2)).lines] == [2, 0]
    refused = await refusal(refund(2))
    assert (refused.reason, refused.metadata) == ("RETURN_TOO_LARGE", {"productId": str(tee), "quantity": "1"})
    assert shop.payments.calls["BatchCreateRefunds"] == 1
    assert [line.returned_quantity for line in (await refund(1)).lines] == [3, 0]
    assert await rows_of(shop.db, "SELECT refunded_minor FROM orders") == [(20,)]
    whole = pb.RefundOrderRequest(order_id=order.id, full=True, restock=True)
    ended = await shop.orders.RefundOrder(whole, metadata=staff)
    assert [line.returned_quantity for line in ended.lines] == [3, 1]
    assert (ended.subtotal, ended.refunded) == (order.total, order.total)
