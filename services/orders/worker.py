"""Carries sagas to their end: those begun here, and those that another process left behind."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import structlog
from prometheus_client import Counter

from services.chassis import telemetry
from services.chassis.batcher import Batcher
from services.chassis.data.db import Database
from services.chassis.errors import AppError
from services.chassis.events.outbox import Relay
from services.chassis.server.watch import Watch
from services.orders import journal, refunds
from services.orders import saga as plan
from services.orders.domain import Order, State
from services.orders.journal import LEASE_SECONDS, Ending, Pause
from services.orders.saga import Kind, Phase, Saga, Services, StepWaits

log = structlog.get_logger()

_FINISHED = Counter("stampede_sagas_finished_total", "Sagas that came to an end here.", ["kind", "state"])
_COMPENSATED = Counter("stampede_sagas_compensated_total", "Sagas that took back what they had done.", ["kind"])
_TAKEN_OVER = Counter("stampede_sagas_claimed_total", "Sagas woken, or taken over from a process that died.")

_POLL_SECONDS = 0.25
_CAUSE_MOST = 200
_BACKOFF_FIRST_SECONDS = 0.5
_BACKOFF_MOST_SECONDS = 15.0
# A little after the hold's end, so that the saga finds it ended.
_AFTER_HOLD_SECONDS = 2.5


class Worker:
    """Runs sagas, a bounded number at once; the rest wait in the database.

    A quarter of the places is kept from sagas whose next step is up to the provider, so that a slow one holds nobody up
    who has paid, cancels, or goes back.
    """

    def __init__(
        self, db: Database, steps: Services, relay: Relay, watch: Watch[uuid.UUID, Order], *, at_once: int
    ) -> None:
        self._db, self._steps, self._relay, self._watch, self._at_once = db, steps, relay, watch, at_once
        self._slow_at_once = at_once - at_once // 4
        self._running: set[asyncio.Task[None]] = set()
        self._slow: set[asyncio.Task[None]] = set()
        self._promised = 0
        self._due = 0
        self._finish: Batcher[Ending, bool] = Batcher("finish", lambda endings: journal.finish(db, endings))
        self._finish_refund: Callable[[Saga], Awaitable[State | None]] = lambda saga: refunds.finish(db, saga)
        self._save: Batcher[Pause, bool] = Batcher("save", lambda pauses: journal.save(db, pauses))

    @contextmanager
    def place(self) -> Iterator[float]:
        """Keeps a place for a new saga while it is written, to `start` before the block ends; what its lease should be.

        None, and no lease, where this process has its hands full. However many are placed at once, no more than fit are
        promised a place.
        """
        promised = bool(self._room()[1])
        self._promised += promised
        try:
            yield LEASE_SECONDS if promised else 0.0
        finally:
            self._promised -= promised

    def _room(self) -> tuple[int, int]:
        """How many more sagas may run, and how many of them may be slow."""
        room = max(self._at_once - len(self._running) - self._promised, 0)
        return room, min(max(self._slow_at_once - len(self._slow) - self._promised, 0), room)

    @property
    def backlog(self) -> int:
        """How many sagas run here or are due in the table; of these, at most 20,000 are counted."""
        return len(self._running) + self._due

    def start(self, saga: Saga) -> asyncio.Task[None]:
        """Carries `saga`, on which this process has the lease, in the background."""
        task = asyncio.create_task(self.carry(saga))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        if saga.slow:
            self._slow.add(task)
            task.add_done_callback(self._slow.discard)
        return task

    async def run(self) -> None:
        """Takes over sagas whose time has come. Runs until cancelled."""
        while True:
            room, slow = self._room()
            claimed = await journal.claim_due(self._db, room, slow=slow) if room else []
            # Sagas that wait for the provider have fewer slots, and may be the only ones left behind.
            behind = self._at_once > 0 and len(claimed) >= slow
            self._due = await journal.due(self._db) if behind else 0
            _TAKEN_OVER.inc(len(claimed))
            for saga in claimed:
                self.start(saga)
            await asyncio.sleep(_POLL_SECONDS)

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
            saga.cause = "" if wait.for_customer else f"{saga.progress.step}: the provider has not answered yet"
            await self._pause(saga, for_customer=wait.for_customer)
        except AppError as error:
            log.info("a saga waits", order_id=saga.order_id, cause=str(error))
            saga.cause = f"{saga.progress.step}: {error}"[:_CAUSE_MOST]
            await self._pause(saga, for_customer=False)
        except Exception as error:
            log.exception("a saga failed; it will be tried again", order_id=saga.order_id)
            # The name alone: what an unforeseen error says may quote anything.
            saga.cause = f"{saga.progress.step}: {type(error).__name__}"
            await self._pause(saga, for_customer=False)

    async def _end(self, saga: Saga) -> None:
        state: State | None
        if saga.progress.kind is Kind.PURCHASE:
            state, reason = plan.end_state(saga.progress)
            if not await self._finish(Ending(saga, state, reason)):
                state = None
        else:
            state, reason = await self._finish_refund(saga), saga.progress.reason
        if state:
            _FINISHED.labels(saga.progress.kind, state).inc()
            if saga.progress.phase is Phase.UNDONE:
                _COMPENSATED.labels(saga.progress.kind).inc()
            telemetry.log_info("order settled", order_id=saga.order_id, state=state, reason=reason)
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
