"""Calls and transactions of a paid order when many are placed at once: counts are the same on a slow machine."""

from collections.abc import AsyncIterator

import pytest

from deploy.local import Mesh
from tests.bench.measure import order_costs
from tests.bench.measure.jobs import load
from tests.bench.measure.order_costs import OrderCosts
from tests.bench.shop import Shop as Bench

ORDERS, AT_ONCE = 200, 64


@pytest.fixture(scope="module")
async def used(mesh: Mesh) -> AsyncIterator[OrderCosts]:
    """The costs of `ORDERS` paid orders, in the second of two loads: the first fills caches and opens connections."""
    async with Bench.open(mesh.site) as bench:
        earlier, tokens = await bench.unsettled(), await bench.tokens(AT_ONCE)
        for _ in range(2):
            sale = await bench.sale()
            job = bench.job(sale, tokens=tokens, connections=AT_ONCE, requests=ORDERS)
            before = await order_costs.read(mesh.site)
            assert (await load(job)).answers == {"200": ORDERS}
            await bench.settled(but=earlier)
            used = await order_costs.read(mesh.site) - before
        assert (await bench.look(sale))["sold"] == ORDERS
        yield used


def test_a_paid_order_takes_at_most_three_transactions(used: OrderCosts) -> None:
    """Three for each order alone: it is placed, it is paid, its events are published."""
    assert 0 < used.transactions["orders"] / ORDERS <= 3, used


def test_orders_are_held_charged_and_confirmed_in_batches(used: OrderCosts) -> None:
    for method in ("inventory.v1.ReservationService/BatchReserve", "inventory.v1.ReservationService/BatchConfirm"):
        assert 0 < used.calls[f"/stampede.{method}"] / ORDERS <= 0.5, used
    assert 0 < used.calls["/stampede.payments.v1.ChargeService/BatchCharge"] / ORDERS <= 0.5, used


def test_an_order_causes_no_other_call_than_its_webhook(used: OrderCosts) -> None:
    """One call places it and one reports its payment; only batches grow with orders beside them."""
    each = used.calls.total() / ORDERS
    assert used.calls["/stampede.orders.v1.OrderService/PlaceOrder"] == ORDERS
    assert used.calls["/stampede.payments.v1.PaymentService/ReceiveStripeWebhook"] <= ORDERS * 1.1
    assert each <= 4, used
