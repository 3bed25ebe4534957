"""Batches to inventory and payments in which one order occurs twice, because its saga was taken over in its process."""

import asyncio
import uuid
from collections import Counter
from typing import Any

from services.chassis import ids
from services.orders.clients import Hold, Payments
from services.orders.domain import PaymentState, Refund, State
from services.orders.saga import plan
from services.orders.saga.plan import Saga
from stampede.payments.v1 import charge_service_pb2 as payments_pb
from tests.integration.orders.conftest import Shop, an_order


def a_saga(order_id: uuid.UUID | None = None) -> Saga:
    return plan.begin(an_order(id=order_id or ids.new()))


async def test_order_twice_in_a_batch_is_charged_and_reversed_once(shop: Shop) -> None:
    payments, first, neighbour = Payments(shop.targets[2]), a_saga(), a_saga()
    batch = (first, neighbour, a_saga(first.order_id))

    charged = await asyncio.gather(*map(payments.charge, batch))
    reversed_ = await asyncio.gather(*map(payments.reverse, batch))

    assert [payment.state for payment in charged] == [PaymentState.SUCCEEDED] * 3
    assert [payment.state for payment in reversed_] == [PaymentState.REFUNDED] * 3
    assert charged[0] == charged[2] != charged[1]
    assert shop.payments.calls == {"BatchCharge": 1, "BatchReverse": 1}


async def test_refund_twice_in_a_batch_turns_no_refund_back(shop: Shop) -> None:
    """Payments refuses such a batch as a whole, and each refund saga in it would end as refused."""
    payments, first, neighbour = Payments(shop.targets[2]), a_saga(), a_saga()
    for saga in (first, neighbour):
        saga.refund = Refund(ids.new(), None, State.REFUNDED)
    await asyncio.gather(*map(payments.charge, (first, neighbour)))

    made = await asyncio.gather(*map(payments.refund, (first, neighbour, first)))

    assert [status.refund_id for status in made] == [str(s.refund.id) for s in (first, neighbour, first) if s.refund]
    assert {status.state for status in made} == {payments_pb.RefundStatus.SUCCEEDED}


async def test_hold_twice_in_a_batch_is_settled_once(shop: Shop, monkeypatch: Any) -> None:
    """Inventory's gate would count its units as given back twice."""
    asked: Counter[str] = Counter()

    def settle(id_: str, state: Any) -> Any:
        asked[id_] += 1
        return type(shop.inventory)._settle(shop.inventory, id_, state)

    monkeypatch.setattr(shop.inventory, "_settle", settle)
    hold = Hold(ids.new())

    outcomes = await asyncio.gather(*[shop.inventory_client.release(hold) for _ in range(2)], return_exceptions=True)

    assert [getattr(outcome, "reason", "") for outcome in outcomes] == ["RESERVATION_NOT_FOUND"] * 2
    assert asked == {str(hold.order_id): 1}
