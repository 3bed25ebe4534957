"""Inventory and payments as their contracts promise, in memory; and a journal that keeps to the rules of `store`."""

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
from services.orders.journal import Ending, Pause
from services.orders.partners import Steps
from services.orders.saga import COMPENSATED, HOLD_EXPIRED, Progress, Saga
from services.orders.worker import Worker
from stampede.inventory.v1.reservation_service_pb2 import Reservation


class Killed(BaseException):
    """The process died here."""


Door = Callable[[str], Awaitable[None]]
"""What a call passes twice, before and after its effect; a test waits, counts or kills there."""


async def open_door(_name: str) -> None: ...


@dataclass
class World:
    """Everything outside of one order's saga: its hold, its payment, its journal."""

    method: str = "pm_card_visa"
    declines: bool = False
    slow: int = 0
    """How many times the provider says that it is still at work."""
    units_left: bool = True
    """Whether an expired hold's units can be re-taken."""
    hold: str = "HELD"
    asked_longer: int = 0
    """How often more time was asked for the hold."""
    asked_for_nobody: bool = False
    """Whether it was asked for although nobody had begun to pay."""
    longer: bool = False
    """Whether the hold was given it."""
    begun: bool = False
    """Whether the customer has begun to pay in the browser."""
    payment: PaymentState | None = None
    charged: int = 0
    refunded: int = 0
    taken: int = 0
    """How often units were made sold ones."""
    mishaps: int = 0
    """How often a worker failed, died, or was overtaken: each may leave something that is done again."""
    placed_time: datetime = field(default_factory=lambda: datetime.now(UTC))
    order_id: uuid.UUID = field(default_factory=ids.new)
    journal: "Journal" = field(init=False)

    def __post_init__(self) -> None:
        self.journal = Journal(self)

    @property
    def authenticating(self) -> bool:
        return self.begun and self.payment is PaymentState.AWAITING_CUSTOMER

    # --- inventory ---

    def confirm(self) -> None:
        if self.hold == "CONFIRMED":
            return
        if self.hold == "HELD" or (self.hold == "EXPIRED" and self.units_left):
            self.hold = "CONFIRMED"
            self.taken += 1
            return
        self.hold = "RELEASED"  # a verdict for good
        raise refused("FAILED_PRECONDITION", "RESERVATION_LOST")

    def release(self) -> None:
        if self.hold in ("CONFIRMED", "RETURNED"):
            raise refused("FAILED_PRECONDITION", "WRONG_STATE")
        if self.hold == "HELD":
            self.hold = "RELEASED"

    def restock(self) -> None:
        assert self.hold in ("CONFIRMED", "RETURNED")
        self.hold, self.taken = "RETURNED", 0

    def extend(self) -> None:
        self.asked_longer += 1
        self.asked_for_nobody = self.asked_for_nobody or not (self.method or self.begun)
        self.longer = self.longer or self.hold == "HELD"

    @property
    def hold_expire_time(self) -> datetime:
        return self.placed_time + timedelta(minutes=20 if self.longer else 10)

    def hold_expires(self) -> None:
        """The hold's time is up, and orders hears of it."""
        if self.hold == "HELD":
            self.hold = "EXPIRED"
            self.journal.ask(HOLD_EXPIRED)

    # --- payments ---

    def charge(self) -> None:
        if self.payment is None:
            self.payment = PaymentState.PROCESSING if self.method else PaymentState.AWAITING_CUSTOMER
        self._provider_goes_on()

    def cancel(self) -> None:
        self._provider_goes_on()
        if self.payment in (None, PaymentState.AWAITING_CUSTOMER):
            self.payment = PaymentState.CANCELLED

    def refund(self) -> None:
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

    # --- what must be true in the end ---

    def check_end(self) -> None:
        """Money and stock agree with the order's state, and nothing was done twice."""
        state, payment = self.journal.state, self.payment
        assert state is not State.PENDING, "the order never ends"
        assert self.charged <= 1
        assert self.refunded <= 1
        assert not self.asked_for_nobody, "stock was kept for somebody who did not pay"
        assert self.asked_longer <= 1 + self.mishaps, "more time was asked for more than once"
        if state is State.PAID:
            assert (payment, self.hold, self.taken) == (PaymentState.SUCCEEDED, "CONFIRMED", 1)
        else:
            assert self.hold in ("RELEASED", "EXPIRED"), f"{state}, but the hold is {self.hold}"
            assert payment in (PaymentState.FAILED, PaymentState.CANCELLED, PaymentState.REFUNDED), payment
            assert (self.charged - self.refunded, self.taken) == (0, 0)
            expected = {"CANCELLED": State.CANCELLED, "HOLD_EXPIRED": State.EXPIRED, "RESERVATION_LOST": State.EXPIRED}
            assert state is expected.get(self.journal.turned_for, State.FAILED)
        assert self.journal.ends == 1


def refused(code: str, reason: str) -> Refused:
    return Refused(code=code, reason=reason, domain="inventory.stampede", message=reason, metadata={})


class Partner:
    """One worker's view of inventory and of payments."""

    def __init__(self, world: World, door: Door) -> None:
        self._world, self._door = world, door

    def __getattr__(self, name: str) -> Callable[[Any], Awaitable[Any]]:
        async def call(_item: Any) -> Payment | Reservation | None:
            await self._door(f"before {name}")
            getattr(self._world, name)()
            # As it was when the answer was written.
            answer, authenticating, until = (
                self._world.payment,
                self._world.authenticating,
                self._world.hold_expire_time,
            )
            await self._door(f"after {name}")
            if name in ("confirm", "release", "restock"):
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
    fence: int = 1
    waiting: bool = False
    due: bool = False
    attempts: int = 0
    payment: Payment | None = None
    look: bool = False
    """Whether the time has come to look at the hold."""


class Journal:
    """One order and its saga, as `store` keeps them: the fence decides who may write."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.row: Row | None = Row(Progress(), world.hold_expire_time)
        self.state, self.turned_for = State.PENDING, ""
        self.ends = 0

    def saga(self) -> Saga:
        assert self.row
        return Saga(
            order_id=self._world.order_id, customer_id=uuid.UUID(int=1), total=Money("USD", 999),
            payment_method=self._world.method, hold_expire_time=self.row.hold_expire_time,
            progress=self.row.progress, fence=self.row.fence, attempts=self.row.attempts,
        )  # fmt: skip

    def claim(self) -> Saga:
        assert self.row
        self.row.fence, self.row.waiting, self.row.due = self.row.fence + 1, False, False
        saga = self.saga()
        saga.hold_ends, self.row.look = self.row.look, False
        saga.payment = self.row.payment
        return saga

    def save(self, pause: Pause) -> bool:
        if self.row is None or pause.saga.fence != self.row.fence:
            return False
        asked = self.row.progress.asked
        known = pause.saga.progress.asked
        self.row.progress = replace(pause.saga.progress, asked=asked)
        self.row.waiting, self.row.attempts = pause.waiting, pause.saga.attempts
        self.row.hold_expire_time, self.row.payment = pause.saga.hold_expire_time, pause.saga.payment
        self.row.look = self.row.look and not self.row.progress.extended
        self.row.due = pause.waiting and (asked != known or self.row.look)
        return True

    def finish(self, ending: Ending) -> bool:
        if self.row is None or ending.saga.fence != self.row.fence:
            return False
        self.row = None
        self.state, self.turned_for = ending.state, ending.saga.progress.reason
        self.ends += 1
        return True

    def ask(self, why: str) -> None:
        if self.row and not self.row.progress.asked:
            self.row.progress = replace(self.row.progress, asked=why)
            self.row.due = self.row.due or self.row.waiting

    def compensate(self) -> None:
        """An operator wants it taken back; whoever has time looks after it at once."""
        if self.row:
            self.row.progress = replace(self.row.progress, asked=COMPENSATED)
            self.row.due = True

    def hold_is_about_to_end(self) -> None:
        if self.row and not self.row.progress.extended:
            self.row.look = True
            self.row.due = self.row.due or self.row.waiting

    def wake(self) -> None:
        if self.row and self.row.waiting:
            self.row.due = True


class _Deaf:
    def nudge(self, *_: Any) -> None: ...


def a_worker(world: World, door: Door = open_door) -> Worker:
    """A real `Worker` and real `Steps` in this world; `door` stands before and after all that they do to it."""
    partner: Any = Partner(world, door)
    deaf: Any = _Deaf()
    nothing: Any = None
    worker = Worker(nothing, Steps(partner, partner), deaf, deaf, at_once=1)

    async def save(pause: Pause) -> bool:
        await door("before save")
        saved = world.journal.save(pause)
        await door("after save")
        return saved

    async def finish(ending: Ending) -> bool:
        await door("before finish")
        finished = world.journal.finish(ending)
        await door("after finish")
        return finished

    worker._save, worker._finish = save, finish  # type: ignore[assignment]
    return worker


async def carried(worker: Worker, saga: Saga) -> None:
    """Lets a worker carry a saga until it rests or dies."""
    with contextlib.suppress(Killed):
        await worker.carry(saga)


async def to_the_end(world: World, door: Door = open_door) -> None:
    """Whatever is left over is taken over, as often as it takes; in the end the hold's timer rings."""
    for turn in range(40):
        if world.journal.row is None:
            return
        if turn > 6 and world.journal.row.waiting:
            world.journal.ask(HOLD_EXPIRED)
        await carried(a_worker(world, door), world.journal.claim())
    raise AssertionError(f"the saga does not come to an end: {world}")
