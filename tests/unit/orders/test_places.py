"""How many sagas a process takes on at once."""

from contextlib import ExitStack
from typing import Any

from services.orders.journal import LEASE_SECONDS
from services.orders.worker import Worker


def a_worker(at_once: int) -> Worker:
    nothing: Any = None
    return Worker(nothing, nothing, nothing, nothing, at_once=at_once)


def test_orders_that_are_written_at_the_same_time_are_promised_no_more_places_than_there_are() -> None:
    worker = a_worker(8)

    with ExitStack() as writing:
        leases = [writing.enter_context(worker.place()) for _ in range(20)]

    # A quarter is kept from those that the provider may be slow for.
    assert leases == [LEASE_SECONDS] * 6 + [0.0] * 14
    with worker.place() as lease:
        assert lease == LEASE_SECONDS, "what was promised came to nothing, and is free again"
