"""Carries sagas to their end: those that began in this process, and those that another process left."""

import asyncio
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import structlog
from prometheus_client import Counter

from services.chassis import telemetry
from services.chassis.batcher import Batcher
from services.chassis.data.db import Database
from services.chassis.errors import AppError
from services.chassis.events.outbox import Relay
from services.chassis.server.watch import Watch
from services.chassis.telemetry.heartbeats import beat
from services.orders.domain import Order, State
from services.orders.saga import plan
from services.orders.saga.plan import Kind, Phase, Saga, SagaSteps, StepPending, Withdrawn
from services.orders.saga.slots import OPENING_EACH_MOST, Slots
from services.orders.sql import combined, sagas
from services.orders.sql.combined import Checkpoint
from services.orders.sql.sagas import LEASE_SECONDS

log = structlog.get_logger()

STARTED = Counter("stampede_sagas_started_total", "Sagas that began in this process.", ["kind"])
_FINISHED = Counter("stampede_sagas_finished_total", "Sagas that finished in this process.", ["kind", "state"])
_COMPENSATED = Counter("stampede_sagas_compensated_total", "Sagas that reversed their steps.", ["kind"])
_CLAIMED = Counter("stampede_sagas_claimed_total", "Sagas claimed: paused until now, or left by a process that died.")

_POLL_SECONDS = 0.25
_CAUSE_MOST = 200
_DUE_MOST = 20_000


class Worker:
    """Runs sagas, a bounded number at once; the others wait in the table."""

    def __init__(
        self,
        db: Database,
        steps: SagaSteps,
        relay: Relay,
        watch: Watch[uuid.UUID, Order],
        *,
        at_once: int,
        holder: str = "",
    ) -> None:
        """`holder` names this process in leases; a later process of the same name is its successor."""
        self.holder = holder
        self._db, self._steps, self._relay, self._watch = db, steps, relay, watch
        self.slots = Slots(at_once)
        self._running: set[asyncio.Task[None]] = set()
        self._carried: dict[uuid.UUID, Saga] = {}
        self._due = 0
        self._finish: Batcher[Saga, bool] = Batcher("finish", self._finish_batch)
        self._save: Batcher[Checkpoint, bool] = Batcher("save", self._save_batch)

    async def take_over(self) -> None:
        """Makes the sagas due that an earlier process of this name left; call it before this one has any.

        Their leases need not expire. Should that process still be alive, the fencing tokens keep it from saving.
        """
        if left := await sagas.make_leased_due(self._db, self.holder):
            log.info("sagas of an earlier process are taken over", sagas=left)

    @contextmanager
    def slot(self, *, opening: bool = False, customer_id: uuid.UUID | None = None) -> Iterator[float]:
        """Keeps a slot for a new saga while its order is written; yields the seconds of its lease.

        Yields 0 if no slot is free: then any process may claim the saga. However many orders are placed at once, no
        more slots are promised than there are. Call `start` before the block ends. `opening`: of an order that no card
        is charged for; with `customer_id`, further payments of one customer are refused a slot.
        """
        promised = self.slots.can_open(customer_id) if opening else self.slots.can_charge()
        if not promised:
            yield 0.0
            return
        with self.slots.taken(opening=opening, customer_id=customer_id):
            yield LEASE_SECONDS

    @property
    def backlog(self) -> int:
        """How many sagas run here or were due in the table a moment ago; of these, at most 20,000 are counted."""
        return len(self._running) + self._due

    def start(self, saga: Saga) -> asyncio.Task[None]:
        """Carries `saga`, whose lease this process has, in the background."""
        self.withdraw(saga.order_id)  # as it was before this takeover
        self._carried[saga.order_id] = saga
        slot = ExitStack()
        slot.enter_context(self.slots.taken_by(saga))
        task = asyncio.create_task(self.carry(saga))
        self._running.add(task)
        task.add_done_callback(lambda task: self._stopped(task, saga, slot))
        return task

    def _stopped(self, task: asyncio.Task[None], saga: Saga, slot: ExitStack) -> None:
        slot.close()
        self._running.discard(task)
        if self._carried.get(saga.order_id) is saga:
            del self._carried[saga.order_id]

    def withdraw(self, order_id: uuid.UUID) -> None:
        """Keeps this process from beginning a charge of an order whose cancellation is accepted, or about to be.

        If the cancellation fails after all, the saga pauses and is claimed again.
        """
        if carried := self._carried.get(order_id):
            carried.withdrawn = True

    async def run(self) -> None:
        """Claims due sagas and carries them. Runs until cancelled."""
        while beat():
            free, crowded = self.slots.free, self.slots.crowded
            claimed = await sagas.claim_due(self._db, free, crowded=crowded, holder=self.holder) if free.all else []
            # Provider-bound sagas have fewer slots, and may be the only ones left behind.
            behind = self.slots.most > 0 and len(claimed) >= min(free.opening, OPENING_EACH_MOST)
            self._due = await sagas.count_due(self._db, _DUE_MOST) if behind else 0
            _CLAIMED.inc(len(claimed))
            for saga in claimed:
                self.start(saga)
            await asyncio.sleep(_POLL_SECONDS)

    async def drain(self, seconds: float) -> None:
        """Waits at most `seconds` until running sagas pause or finish. The rest continues when its leases expire."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=seconds)

    async def carry(self, saga: Saga) -> None:
        """Takes step after step until the saga finishes or pauses. Never raises; a failed step is retried later."""
        try:
            while not saga.progress.finished:
                phase = saga.progress.phase
                saga.progress = await plan.advance(self._steps, saga)
                turned = saga.progress.phase is Phase.BACKWARD and phase is not Phase.BACKWARD
                # Before money is reversed, it must be certain that no other process takes the order forward.
                if turned and saga.progress.steps_done > 1 and not await self._save(Checkpoint(saga)):
                    return
            await self._end(saga)
        except StepPending as pending:
            saga.cause = "" if pending.for_customer else f"{saga.progress.step}: {_cause(pending)}"
            saga.waits_for_provider = pending.for_provider
            await self._pause(saga, for_customer=pending.for_customer)
        except Withdrawn:
            saga.cause = f"{saga.progress.step}: the order is being cancelled"
            await self._pause(saga, for_customer=False)
        except AppError as error:
            log.info("a saga pauses", order_id=saga.order_id, cause=str(error))
            saga.cause = f"{saga.progress.step}: {error}"[:_CAUSE_MOST]
            await self._pause(saga, for_customer=False)
        except Exception as error:
            log.exception("a step of a saga failed and will be retried", order_id=saga.order_id)
            # The name alone: the text of an unforeseen error may quote anything.
            saga.cause = f"{saga.progress.step}: {type(error).__name__}"
            await self._pause(saga, for_customer=False)

    async def _end(self, saga: Saga) -> None:
        state: State | None
        if saga.progress.kind is Kind.PURCHASE:
            state, reason, _ = plan.purchase_end(saga.progress)
            if not await self._finish(saga):
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
        seconds = plan.pause_seconds(saga, for_customer=for_customer, now=time.time())
        saga.attempts = plan.attempts_after_pause(saga, for_customer=for_customer)
        try:
            await self._save(Checkpoint(saga, paused=True, seconds=seconds))
        except Exception as error:  # the lease expires, and a process continues from the last checkpoint
            log.warning("the progress of a saga is not saved", order_id=saga.order_id, cause=error)
        self._watch.nudge(saga.order_id)

    async def _finish_batch(self, finished: Sequence[Saga]) -> list[bool]:
        async with self._db.begin() as tx:
            return await combined.finish(tx, finished)

    async def _finish_refund(self, saga: Saga) -> State | None:
        async with self._db.begin() as tx:
            return await combined.finish_refund(tx, saga)

    async def _save_batch(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        async with self._db.begin() as tx:
            return await combined.save(tx, checkpoints)


def _cause(pending: StepPending) -> str:
    return "the provider is moving the money" if pending.for_provider else "the provider has not answered yet"
