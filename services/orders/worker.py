"""Carries sagas to their end: those begun here, and those that another process left behind."""

import asyncio
import time
import uuid

import structlog
from prometheus_client import Counter, Gauge

from services.chassis import telemetry
from services.chassis.batcher import Batcher
from services.chassis.db import Database
from services.chassis.errors import AppError
from services.chassis.outbox import Relay
from services.chassis.watch import Watch
from services.orders import saga as plan
from services.orders import store
from services.orders.domain import Order
from services.orders.saga import Phase, Saga, Services, StepWaits
from services.orders.store import LEASE_SECONDS, Ending, Pause

log = structlog.get_logger()

_ENDED = Counter("stampede_sagas_ended_total", "Sagas that came to an end.", ["state"])
_TAKEN_OVER = Counter("stampede_sagas_claimed_total", "Sagas woken, or taken over from a process that died.")
_UNSETTLED = Gauge("stampede_sagas_unsettled", "Sagas under way, all processes together.")
_OLDEST = Gauge("stampede_sagas_oldest_seconds", "Age of the oldest saga that does not wait for its payment.")

_POLL_SECONDS = 0.25
_MEASURE_SECONDS = 5.0
_BACKOFF_FIRST_SECONDS = 0.5
_BACKOFF_MOST_SECONDS = 15.0
# A little after the hold's end, so that the saga finds it ended.
_AFTER_HOLD_SECONDS = 2.5


class Worker:
    """Runs sagas, a bounded number at once; the rest wait in the database."""

    def __init__(
        self, db: Database, steps: Services, relay: Relay, watch: Watch[uuid.UUID, Order], *, at_once: int
    ) -> None:
        self._db, self._steps, self._relay, self._watch, self._at_once = db, steps, relay, watch, at_once
        self._running: set[asyncio.Task[None]] = set()
        self._finish: Batcher[Ending, bool] = Batcher("finish", lambda endings: store.finish(db, endings))
        self._save: Batcher[Pause, bool] = Batcher("save", lambda pauses: store.save(db, pauses))

    @property
    def lease_seconds(self) -> float:
        """What a new saga's lease should be: none where this process has its hands full."""
        return LEASE_SECONDS if len(self._running) < self._at_once else 0.0

    def start(self, saga: Saga) -> asyncio.Task[None]:
        """Carries `saga`, on which this process has the lease, in the background."""
        task = asyncio.create_task(self.carry(saga))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def run(self) -> None:
        """Takes over sagas whose time has come. Runs until cancelled."""
        while True:
            free = self._at_once - len(self._running)
            claimed = await store.claim_due(self._db, free) if free > 0 else []
            _TAKEN_OVER.inc(len(claimed))
            for saga in claimed:
                self.start(saga)
            await asyncio.sleep(_POLL_SECONDS)

    async def measure(self) -> None:
        """Keeps the metrics of unsettled sagas up to date. Runs until cancelled."""
        while True:
            sagas, oldest = await store.unsettled(self._db)
            _UNSETTLED.set(sagas)
            _OLDEST.set(oldest)
            await asyncio.sleep(_MEASURE_SECONDS)

    async def drain(self, seconds: float) -> None:
        """Lets running sagas come to a rest, for at most `seconds`. What is left goes on when its lease ends."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=seconds)

    async def carry(self, saga: Saga) -> None:
        """Takes step after step until the saga ends or has to wait. Never raises; what fails is tried again later."""
        try:
            while not saga.progress.finished:
                direction = saga.progress.phase
                saga.progress = await plan.advance(self._steps, saga)
                turned = saga.progress.phase is Phase.BACKWARD and direction is Phase.FORWARD
                # Before money goes back, it must be certain that no other process takes the order forward.
                if turned and saga.progress.applied > 1 and not await self._save(Pause(saga, False, LEASE_SECONDS)):
                    return
            await self._end(saga)
        except StepWaits as wait:
            await self._pause(saga, for_customer=wait.for_customer)
        except AppError as error:
            log.info("a saga waits", order_id=saga.order_id, cause=str(error))
            await self._pause(saga, for_customer=False)
        except Exception:
            log.exception("a saga failed; it will be tried again", order_id=saga.order_id)
            await self._pause(saga, for_customer=False)

    async def _end(self, saga: Saga) -> None:
        state, reason = plan.end_state(saga.progress)
        if await self._finish(Ending(saga, state, reason)):
            _ENDED.labels(state).inc()
            telemetry.line("order settled", order_id=saga.order_id, state=state, reason=reason)
            self._relay.nudge()
        self._watch.nudge(saga.order_id)

    async def _pause(self, saga: Saga, *, for_customer: bool) -> None:
        if for_customer:
            # Events about the payment wake it earlier.
            seconds = max(saga.hold_expire_time.timestamp() - time.time(), 0.0) + _AFTER_HOLD_SECONDS
        else:
            seconds = min(_BACKOFF_FIRST_SECONDS * 2**saga.attempts, _BACKOFF_MOST_SECONDS)
            saga.attempts = min(saga.attempts + 1, 16)
        try:
            await self._save(Pause(saga, True, seconds))
        except Exception as error:  # the lease runs out, and somebody takes it from where it was saved last
            log.warning("a saga's progress is not saved", order_id=saga.order_id, cause=repr(error)[:200])
        self._watch.nudge(saga.order_id)
