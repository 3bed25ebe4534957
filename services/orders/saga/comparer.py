"""The background jobs that compare settled orders with payments.

Events about refunds are hints, so they only request a check. A walk over recent orders finds what no event reported.
"""

import asyncio
import uuid
from collections.abc import Callable, Sequence

import structlog
from prometheus_client import Counter

from services.chassis import ids
from services.chassis.data.db import Database
from services.chassis.errors import AppError
from services.chassis.telemetry.heartbeats import beat
from services.orders.clients import Payments
from services.orders.domain import Actor, Refund, State
from services.orders.saga.comparison import Comparison, Problem, compare, repairs
from services.orders.sql import combined, orders, payment_checks

log = structlog.get_logger()

_REPAIRED = Counter("stampede_orders_repaired_total", "Settled orders that were corrected by what payments knows.")
_PROBLEMS = Counter("stampede_orders_payment_problems_total", "Settled orders that payments contradicts.", ["problem"])
for _problem in Problem:
    _PROBLEMS.labels(_problem)

MOST = 200
_TICK_SECONDS = 0.5
# A million orders in seven hours, at two short statements and a call each five seconds.
_PAGE_SECONDS = 5.0
_ROUND_SECONDS = 60.0


class Comparer:
    """Compares settled orders with payments, and repairs or raises what differs."""

    def __init__(self, db: Database, payments: Payments, changed: Callable[[uuid.UUID], None]) -> None:
        """`changed` is called after an order was corrected."""
        self._db, self._payments, self._changed = db, payments, changed

    async def run_checks(self) -> None:
        """Carries out requested checks. Runs until cancelled."""
        while beat():
            try:
                more = await self.check_requested() == MOST
            except AppError as error:  # the checks are due again later
                log.info("payments cannot be compared", cause=str(error))
                more = False
            if not more:
                await asyncio.sleep(_TICK_SECONDS)

    async def check_requested(self) -> int:
        """Carries out the checks that are due, at most `MOST`; returns how many."""
        due = await payment_checks.claim_due(self._db, MOST)
        if due:
            done = await self.compare([check.order_id for check in due])
            await payment_checks.finish(self._db, [check for check in due if check.order_id in done])
        return len(due)

    async def walk(self) -> None:
        """Compares all orders of the last weeks, newest first, again and again. Runs until cancelled."""
        after = None
        while beat():
            try:
                page = await payment_checks.page(self._db, after=after, most=MOST)
                if page:
                    await self.compare([position.order_id for position in page])
                after = page[-1] if len(page) == MOST else None
            except AppError as error:
                log.info("payments cannot be compared", cause=str(error))
            await _sleep(_PAGE_SECONDS if after else _ROUND_SECONDS)

    async def compare(self, order_ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Compares those of these orders that are settled; returns the ids that need no further check.

        Payments is asked after the order was read. An order whose version is the same under the lock has therefore
        heard nothing newer.
        """
        known = await orders.get_many(self._db, order_ids)
        settled = [order for order in known.values() if order.settled]
        done = {order_id for order_id in order_ids if order_id not in known}
        found = await self._payments.read([order.id for order in settled]) if settled else {}
        for order in settled:
            difference = compare(order, found.get(order.id))
            if difference is None or await self._apply(order.id, order.version, difference):
                done.add(order.id)
        return done

    async def _apply(self, order_id: uuid.UUID, version: int, found: Comparison) -> bool:
        """Repairs or raises a difference. Returns False if the order has changed meanwhile."""
        async with self._db.begin() as tx:
            order = await orders.read(tx, order_id, lock=True)
            if order.version != version:
                return False
            repaired = repairs(order, found) and not found.cancels
            if found.cancels:
                voided = Refund(ids.new(), None, State.CANCELLED, restock=True)
                await combined.begin_refund(tx, order, voided, Actor("payments"))
            if repaired:
                await orders.apply_payment(tx, order, found)
        if found.cancels:
            log.info("an order is cancelled: its payment was voided, or has lapsed", order_id=order_id)
            self._changed(order_id)
        if repaired:
            _REPAIRED.inc()
            log.info("an order is corrected", order_id=order_id, state=found.state, refunded=found.refunded_minor)
            self._changed(order_id)
        if found.problem:
            _PROBLEMS.labels(found.problem).inc()
            log.error("an order and its payment contradict each other", order_id=order_id, problem=found.problem)
        return True


async def _sleep(seconds: float) -> None:
    for _ in range(int(seconds)):
        beat()
        await asyncio.sleep(1)
