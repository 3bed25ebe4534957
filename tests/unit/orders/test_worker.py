"""How many sagas a process takes on at once."""

from contextlib import ExitStack
from typing import Any

from services.orders.saga.worker import Worker
from services.orders.sql.sagas import LEASE_SECONDS


def a_worker(at_once: int) -> Worker:
    nothing: Any = None
    return Worker(nothing, nothing, nothing, nothing, at_once=at_once)


def test_concurrent_orders_are_promised_no_more_slots_than_there_are() -> None:
    worker = a_worker(8)

    with ExitStack() as writing:
        leases = [writing.enter_context(worker.slot()) for _ in range(20)]

    # A quarter is kept from provider-bound sagas.
    assert leases == [LEASE_SECONDS] * 6 + [0.0] * 14
    with worker.slot() as lease:
        assert lease == LEASE_SECONDS, "a promised slot that was not used is free again"
