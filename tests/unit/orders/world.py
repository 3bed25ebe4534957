"""Inventory and payments in memory, as their contracts promise; and a saga table with the rules of `sql/sagas`."""

import contextlib
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from services.chassis import ids
from services.chassis.errors import Refused
from services.chassis.money import Money
from services.chassis.server import wire
from services.orders.domain import Payment, PaymentState, State
from services.orders.saga import plan
from services.orders.saga.plan import CANCELLED, COMPENSATED, HOLD_EXPIRED, RESERVATION_LOST, Progress, Saga
from services.orders.saga.steps import MeshSteps
from services.orders.saga.worker import Worker
from services.orders.sql.combined import Checkpoint
from stampede.inventory.v1.reservation_service_pb2 import Reservation


class Killed(BaseException):
    """The process died here."""


STRENGTH = ("", HOLD_EXPIRED, CANCELLED, COMPENSATED)
"""The reasons to turn back: a stronger one replaces a weaker one."""
CrashPoint = Callable[[str], Awaitable[None]]
"""Passed by each call before and after its effect; a test waits, counts or kills there."""


async def pass_by(_name: str) -> None: ...


@dataclass
class World:
    """Everything outside of one order's saga: its hold, its payment, its row."""

    method: str = "pm_card_visa"
    declines: bool = False
    slow: int = 0
    """How many times the provider answers that it is still processing."""
    units_left: bool = True
    """Whether an expired hold's units can be re-taken."""
    hold: str = "HELD"
    extensions: int = 0
    """How often the hold was asked to be extended."""
    extended_for_nobody: bool = False
    """Whether that was although nobody had begun to pay."""
    extended: bool = False
    """Whether inventory extended it."""
    begun: bool = False
    """Whether the customer has begun to pay in the browser."""
    payment: PaymentState | None = None
    charged: int = 0
    refunded: int = 0
    taken: int = 0
    """How often units were sold."""
    mishaps: int = 0
    """How often a worker failed, died, or lost its lease: each may repeat a call."""
    placed_time: datetime = field(default_factory=lambda: datetime.now(UTC))
    order_id: uuid.UUID = field(default_factory=ids.new)
    sagas: "SagaTable" = field(init=False)

    def __post_init__(self) -> None:
        self.sagas = SagaTable(self)

    @property
    def authenticating(self) -> bool:
        return self.begun and self.payment is PaymentState.AWAITING_CUSTOMER

    # --- inventory ---

    def confirm(self) -> None:
        if self.hold == "CONFIRMED":
            return
        if self.hold == "EXPIRED":
            raise refused("FAILED_PRECONDITION", "RESERVATION_EXPIRED")
        if self.hold != "HELD":
            raise refused("FAILED_PRECONDITION", "RESERVATION_LOST")
        self.hold = "CONFIRMED"
        self.taken += 1

    def retake(self) -> None:
        if self.hold == "EXPIRED":
            self.hold = "HELD" if self.units_left else "RELEASED"  # for good
        self.confirm()

    def release(self) -> None:
        if self.hold in ("CONFIRMED", "RETURNED"):
            raise refused("FAILED_PRECONDITION", "WRONG_STATE")
        self.hold = "RELEASED"  # also an expired one: a late confirmation must not retake its units

    def restock(self) -> None:
        assert self.hold in ("CONFIRMED", "RETURNED")
        self.hold, self.taken = "RETURNED", 0

    def extend(self) -> None:
        self.extensions += 1
        self.extended_for_nobody = self.extended_for_nobody or not (self.method or self.begun)
        self.extended = self.extended or self.hold == "HELD"

    @property
    def hold_expire_time(self) -> datetime:
        return self.placed_time + timedelta(minutes=20 if self.extended else 10)

    def hold_expires(self) -> None:
        """The hold expires, and orders receives the event."""
        if self.hold == "HELD":
            self.hold = "EXPIRED"
            self.sagas.request_cancel(HOLD_EXPIRED)

    # --- payments ---

    def charge(self) -> None:
        if self.payment is None:
            self.payment = PaymentState.PROCESSING if self.method else PaymentState.AWAITING_CUSTOMER
        self._provider_goes_on()

    def cancel(self) -> None:
        self._provider_goes_on()
        if self.payment in (None, PaymentState.AWAITING_CUSTOMER):
            self.payment = PaymentState.CANCELLED

    def reverse(self) -> None:
        self._provider_goes_on()
        if self.payment is PaymentState.SUCCEEDED:
            self.payment, self.refunded = PaymentState.REFUNDED, self.refunded + 1
        elif self.payment in (None, PaymentState.AWAITING_CUSTOMER):
            self.payment = PaymentState.CANCELLED

    def _provider_goes_on(self) -> None:
        if self.payment is PaymentState.PROCESSING:
            if self.slow:
                self.slow -= 1
            elif self.declines:
                self.payment = PaymentState.FAILED
            else:
                self._money_moves()

    def customer_begins(self) -> None:
        """The customer has given a card, and answers to the bank."""
        self.begun = True

    def customer_pays(self) -> None:
        self.begun = True
        if self.payment is PaymentState.AWAITING_CUSTOMER:
            self._money_moves()

    def _money_moves(self) -> None:
        self.payment, self.charged = PaymentState.SUCCEEDED, self.charged + 1

    # --- invariants ---

    def check_end(self) -> None:
        """Money and stock agree with the order's state, and no effect happened twice."""
        state, payment = self.sagas.state, self.payment
        assert state is not State.PENDING, "the saga never finishes"
        assert self.charged <= 1
        assert self.refunded <= 1
        assert not self.extended_for_nobody, "a hold was extended for nobody"
        assert self.extensions <= 1 + self.mishaps, "a hold was extended more than once"
        if state is State.PAID:
            assert (payment, self.hold, self.taken) == (PaymentState.SUCCEEDED, "CONFIRMED", 1)
        else:
            over = ("RELEASED", "EXPIRED", *(["RETURNED"] if self.sagas.promised else []))
            assert self.hold in over, f"{state}, but the hold is {self.hold}"
            assert payment in (PaymentState.FAILED, PaymentState.CANCELLED, PaymentState.REFUNDED), payment
            assert (self.charged - self.refunded, self.taken) == (0, 0)
            expected = {
                CANCELLED: State.CANCELLED, COMPENSATED: State.CANCELLED, HOLD_EXPIRED: State.EXPIRED,
                RESERVATION_LOST: State.EXPIRED,
            }  # fmt: skip
            assert state is expected.get(self.sagas.turned_for, State.FAILED)
        assert not self.sagas.promised or state is State.CANCELLED, "an accepted cancellation was forgotten"
        assert self.sagas.ends == 1


def refused(code: str, reason: str) -> Refused:
    return Refused(code=code, reason=reason, domain="inventory.stampede", message=reason, metadata={})


class Clients:
    """The clients of inventory and payments, as one worker has them."""

    def __init__(self, world: World, point: CrashPoint) -> None:
        self._world, self._point = world, point

    def __getattr__(self, name: str) -> Callable[[Any], Awaitable[Any]]:
        async def call(_item: Any) -> Any:
            if name == "products":
                return {}
            await self._point(f"before {name}")
            getattr(self._world, "charge" if name in ("charge_changed", "open") else name)()
            # As it was when the answer was written.
            answer, authenticating, until = (
                self._world.payment,
                self._world.authenticating,
                self._world.hold_expire_time,
            )
            await self._point(f"after {name}")
            if name in ("confirm", "retake", "release", "restock"):
                return None
            if name == "extend":
                return Reservation(expire_time=wire.timestamp(until))
            assert answer is not None
            reason = "CARD_DECLINED" if answer is PaymentState.FAILED else ""
            return Payment(uuid.UUID(int=7), "sandbox", answer, "secret", reason, authenticating)

        return call


@dataclass
class Row:
    progress: Progress
    hold_expire_time: datetime
    fencing_token: int = 1
    paused: bool = False
    due: bool = False
    attempts: int = 0
    payment: Payment | None = None
    hold_check: bool = False
    """Whether the time has come to check the hold."""
    hold_checks: bool = True
    """Whether it is still checked."""


class SagaTable:
    """One order and its saga, with the rules of `sql/sagas`: the fencing token decides which process may save."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.row: Row | None = Row(Progress(), world.hold_expire_time)
        self.state, self.turned_for = State.PENDING, ""
        self.ends = 0
        self.promised = False
        """Whether a cancellation was accepted."""

    def saga(self) -> Saga:
        assert self.row
        return Saga(
            order_id=self._world.order_id, customer_id=uuid.UUID(int=1), total=Money("USD", 999),
            payment_method=self._world.method, hold_expire_time=self.row.hold_expire_time,
            progress=self.row.progress, fencing_token=self.row.fencing_token, attempts=self.row.attempts,
        )  # fmt: skip

    def claim(self) -> Saga:
        assert self.row
        self.row.fencing_token, self.row.paused, self.row.due = self.row.fencing_token + 1, False, False
        saga = self.saga()
        saga.hold_check_due, self.row.hold_check = self.row.hold_check, False
        saga.payment = self.row.payment
        return saga

    def save(self, checkpoint: Checkpoint) -> bool:
        saga = checkpoint.saga
        if self.row is None or saga.fencing_token != self.row.fencing_token:
            return False
        requested, known = self.row.progress.cancel_reason, saga.progress.cancel_reason
        self.row.progress = replace(saga.progress, cancel_reason=requested)
        self.row.paused, self.row.attempts = checkpoint.paused, saga.attempts
        self.row.hold_expire_time, self.row.payment = saga.hold_expire_time, saga.payment
        self.row.hold_checks = self.row.hold_checks and not saga.hold_extended
        self.row.hold_check = self.row.hold_check and self.row.hold_checks
        self.row.due = checkpoint.paused and (requested != known or self.row.hold_check)
        return True

    def finish(self, saga: Saga) -> bool:
        if self.row is None or saga.fencing_token != self.row.fencing_token:
            return False
        self.row = None
        self.state, self.turned_for = plan.purchase_end(saga.progress)[0], saga.progress.turned_for
        self.ends += 1
        return True

    def request_cancel(self, reason: str) -> None:
        if self.row and STRENGTH.index(reason) > STRENGTH.index(self.row.progress.cancel_reason):
            self.row.progress = replace(self.row.progress, cancel_reason=reason)
            self.row.due = self.row.due or self.row.paused
            if reason != HOLD_EXPIRED:  # an accepted cancellation takes the lease over
                self.row.fencing_token, self.row.due, self.promised = self.row.fencing_token + 1, True, True

    def compensate(self) -> None:
        """An operator has it turn back; any process claims it at once."""
        self.request_cancel(COMPENSATED)

    def hold_is_about_to_end(self) -> None:
        if self.row and self.row.hold_checks:
            self.row.hold_check = True
            self.row.due = self.row.due or self.row.paused

    def note_payment(self) -> None:
        if self.row and self.row.paused:
            self.row.due = True


class _Ignored:
    def nudge(self, *_: Any) -> None: ...


def a_worker(world: World, point: CrashPoint = pass_by) -> Worker:
    """A real `Worker` with real steps in this world; `point` is passed before and after each of their calls."""
    clients: Any = Clients(world, point)
    ignored: Any = _Ignored()
    nothing: Any = None
    worker = Worker(nothing, MeshSteps(clients, clients, clients), ignored, ignored, at_once=1)

    async def save(checkpoint: Checkpoint) -> bool:
        await point("before save")
        saved = world.sagas.save(checkpoint)
        await point("after save")
        return saved

    async def finish(saga: Saga) -> bool:
        await point("before finish")
        finished = world.sagas.finish(saga)
        await point("after finish")
        return finished

    worker._save, worker._finish = save, finish  # type: ignore[assignment]
    return worker


async def carried(worker: Worker, saga: Saga) -> None:
    """Has a worker carry a saga until it pauses, finishes, or dies."""
    with contextlib.suppress(Killed):
        await worker.carry(saga)


async def to_the_end(world: World, point: CrashPoint = pass_by) -> None:
    """The saga is claimed until it has finished; after some turns the hold expires."""
    for turn in range(40):
        if world.sagas.row is None:
            return
        if turn > 6 and world.sagas.row.paused:
            world.sagas.request_cancel(HOLD_EXPIRED)
        await carried(a_worker(world, point), world.sagas.claim())
    raise AssertionError(f"the saga does not finish: {world}")
