"""The backlog of a process."""

import asyncio
from typing import Any

from services.chassis.data.db import Database
from services.chassis.events.outbox import Relay
from services.orders import actions
from services.orders.saga.plan import Saga, StepPending
from services.orders.saga.worker import Worker
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
