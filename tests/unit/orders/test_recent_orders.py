"""The ids of the latest orders."""

import uuid

import pytest

from services.orders.placing import recent_orders
from services.orders.placing.recent_orders import RecentOrders


def test_oldest_orders_are_forgotten_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_orders, "RECENT_MOST", 3)
    recent, orders = RecentOrders(), [uuid.UUID(int=n) for n in range(5)]
    recent.add(orders)
    assert [order in recent for order in orders] == [False, False, True, True, True]
