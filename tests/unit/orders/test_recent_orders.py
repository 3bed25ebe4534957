"""The ids of the latest orders."""

import uuid

from services.orders.placing.recent_orders import RecentOrders


def test_oldest_orders_are_forgotten_beyond_the_bound() -> None:
    recent, orders = RecentOrders(3), [uuid.UUID(int=n) for n in range(5)]
    recent.add(orders)
    assert [order in recent for order in orders] == [False, False, True, True, True]
