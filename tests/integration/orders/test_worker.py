"""The backlog of a process."""

import asyncio
from typing import Any

from services.chassis.data.db import Database
from services.chassis.events.outbox import Relay
from services.orders import actions
from services.orders.saga.plan import Saga, StepPending
from services.orders.saga.worker import Worker
from services.orders.sql import combined
from tests.integration.orders.conftest import an_order, place
from tests.support.waiting import until


class SlowProvider:
    """Its charges end with the test."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()

    async def charge(self, saga: Saga) -> None:
        await self.answers.wait()
        raise StepPending(for_customer=False)


async def test_orders_that_wait_for_a_slow_provider_are_a_backlog(db: Database) -> None:
    """Although the slots that are kept from them stay free."""
    await place(db, *(an_order() for _ in range(20)), lease_seconds=0.0)
    provider: Any = SlowProvider()
    worker = Worker(db, provider, Relay(db), actions.order_watch(db), at_once=8)
    task = asyncio.create_task(worker.run())

    async def all_counted() -> bool:
        return worker.backlog == 20

    try:
        await until(all_counted)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        provider.answers.set()
        await worker.drain(5)


async def test_next_process_of_a_name_carries_on_what_the_last_one_left(db: Database) -> None:
    """At once: the leases of the one that died last for another minute."""
    await combined.place(db, [(an_order(), 60.0) for _ in range(3)], holder="orders-1")
    await combined.place(db, [(an_order(), 60.0)], holder="orders-2")
    provider: Any = SlowProvider()
    worker = Worker(db, provider, Relay(db), actions.order_watch(db), at_once=8, holder="orders-1")
    await worker.take_over()
    task = asyncio.create_task(worker.run())
    try:
        await until(lambda: asyncio.sleep(0, worker.backlog == 3))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        provider.answers.set()
        await worker.drain(5)
