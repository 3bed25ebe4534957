"""What a process knows of the sagas it has no room for, and what it says of those it carries."""

import asyncio
from typing import Any

from services.chassis.data.db import Database
from services.chassis.events.outbox import Relay
from services.orders import actions, store
from services.orders.saga import Saga, StepWaits
from services.orders.worker import Worker
from tests.integration.orders.conftest import an_order, until


class SlowProvider:
    """Its charges end with the test."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()

    async def charge(self, saga: Saga) -> None:
        await self.answers.wait()
        raise StepWaits(for_customer=False)


async def test_orders_that_wait_for_a_slow_provider_are_a_backlog(db: Database) -> None:
    """Places that are kept for others stay free; the queue of the largest rushes must open all the same."""
    await store.insert(db, [an_order(lease_seconds=0.0) for _ in range(20)])
    provider: Any = SlowProvider()
    worker = Worker(db, provider, Relay(db), actions.order_watch(db), at_once=8)
    task = asyncio.create_task(worker.run())

    async def all_counted() -> bool:
        return worker.backlog == 20

    try:
        await until(all_counted, seconds=3)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        provider.answers.set()
        await worker.drain(5)
