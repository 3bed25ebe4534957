"""Money that moves after the hold has expired buys by the rules of a new order, else it goes back."""

import uuid

import pytest

from services.orders import clients
from services.orders.sql import sagas
from stampede.inventory.v1 import reservation_service_pb2 as inventory_pb
from stampede.orders.v1 import order_service_pb2 as pb
from tests.integration.orders.conftest import Shop
from tests.integration.orders.test_placing import stocked, wanting

Reservation = inventory_pb.Reservation


@pytest.mark.parametrize("active", [True, False])
async def test_late_money_retakes_units_only_of_products_on_sale(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, active: bool
) -> None:
    monkeypatch.setattr(clients, "_PRODUCT_SECONDS", 0.0)
    product = stocked(shop)
    order = await shop.place(wanting((product, 1, None), payment_method="pm_slow"))
    await shop.worker.drain(10)
    shop.inventory.held[order.id].state = Reservation.EXPIRED
    shop.catalog.products[str(product)].active = active

    shop.payments.set_state(order.id, "SUCCEEDED")
    async with shop.db.begin() as tx:
        await sagas.note_payments(tx, [uuid.UUID(order.id)])
    shop.carry_on()
    ended = await shop.ended(order.id)

    if active:
        assert (ended.state, shop.inventory.retakes) == (pb.Order.PAID, 1)
        return
    assert (ended.state, ended.state_reason) == (pb.Order.EXPIRED, "RESERVATION_LOST")
    assert (shop.payments.state(order.id), shop.inventory.retakes) == ("REFUNDED", 0)
