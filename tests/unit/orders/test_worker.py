"""How many sagas a process takes on at once."""

import uuid
from contextlib import ExitStack
from typing import Any

from services.orders.saga.slots import OPENING_EACH_MOST
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


def test_payments_that_nobody_pays_yet_leave_slots_for_charges() -> None:
    worker = a_worker(16)

    with ExitStack() as writing:
        opening = [writing.enter_context(worker.slot(opening=True)) for _ in range(20)]
        charging = [writing.enter_context(worker.slot()) for _ in range(20)]

    assert opening == [LEASE_SECONDS] * 4 + [0.0] * 16
    assert charging == [LEASE_SECONDS] * 8 + [0.0] * 12
    with worker.slot(opening=True) as lease:
        assert lease == LEASE_SECONDS


def test_one_customer_does_not_fill_the_slots_of_others() -> None:
    worker, many, one = a_worker(512), uuid.uuid4(), uuid.uuid4()

    with ExitStack() as writing:
        leases = [writing.enter_context(worker.slot(opening=True, customer_id=many)) for _ in range(40)]
        assert worker.slots.crowded == [many]
        assert writing.enter_context(worker.slot(opening=True, customer_id=one)) == LEASE_SECONDS
        assert worker.slots.crowded == [many]

    assert leases == [LEASE_SECONDS] * OPENING_EACH_MOST + [0.0] * (40 - OPENING_EACH_MOST)
    assert worker.slots.crowded == []
    assert worker.slots.free == (512, 384, 128)
