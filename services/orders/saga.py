"""Paying for an order across services: reserve, charge, confirm; or take it all back. And paying it back later.

Read `PLANS` first: they are the whole plan. `Progress` says how far one has come, and its moves are pure; `worker`
carries it out. A crash between any two lines repeats a step under the same key, and changes nothing.
"""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from services.chassis.money import Money
from services.orders.domain import Payment, Refund, State

CANCELLED = "CANCELLED"
HOLD_EXPIRED = "HOLD_EXPIRED"
RESERVATION_LOST = "RESERVATION_LOST"
COMPENSATED = "COMPENSATED"


class StepRefused(Exception):
    """The other side said no, and changed nothing.

    Only this turns a saga back. A timeout or a broken connection says nothing about what happened, so the step is
    repeated, under the same key, until the other side gives an answer.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StepWaits(Exception):
    """The other side has not decided yet: it waits for the customer, or for the provider."""

    def __init__(self, *, for_customer: bool) -> None:
        super().__init__()
        self.for_customer = for_customer


class Kind(StrEnum):
    """What a saga is for."""

    PURCHASE = "PURCHASE"
    REFUND = "REFUND"


class Phase(StrEnum):
    """Which way a saga goes, or how it ended."""

    FORWARD = "FORWARD"
    BACKWARD = "BACKWARD"
    DONE = "DONE"
    UNDONE = "UNDONE"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a saga has come: the first `applied` steps of the plan have taken effect."""

    phase: Phase = Phase.FORWARD
    applied: int = 1
    """An order is only written once its stock is reserved, so a saga begins after the first step."""
    reason: str = ""
    """Why it turned back, or what was refused that it could do without."""
    asked: str = ""
    """Why somebody wants it to turn back: `CANCELLED` or `HOLD_EXPIRED`, for which it is too late once the money has
    moved; or `COMPENSATED`, for which it never is."""
    extended: bool = False
    """More time was asked for the hold, which is done once."""
    kind: Kind = Kind.PURCHASE

    @property
    def plan(self) -> "tuple[Step, ...]":
        return PLANS[self.kind]

    @property
    def step(self) -> str:
        """The name of the step that is taken, or taken back, next; empty where none is."""
        if self.finished:
            return ""
        return self.plan[self.applied if self.phase is Phase.FORWARD else self.applied - 1].name

    @property
    def finished(self) -> bool:
        return self.phase in (Phase.DONE, Phase.UNDONE)

    def succeeded(self) -> "Progress":
        """The next step, or the inverse of the last one, has taken effect."""
        if self.phase is Phase.FORWARD:
            applied = self.applied + 1
            return replace(self, applied=applied, phase=Phase.DONE if applied == len(self.plan) else self.phase)
        assert self.phase is Phase.BACKWARD, f"a saga that is {self.phase} takes no steps"
        applied = self.applied - 1
        return replace(self, applied=applied, phase=Phase.UNDONE if applied == 0 else self.phase)

    def refused(self, reason: str) -> "Progress":
        """The next step was refused: what was applied is taken back."""
        # A refused inverse is a bug in the plan: stop loudly, do not loop.
        assert self.phase is Phase.FORWARD, f"compensation refused: {reason}"
        return replace(self, phase=Phase.BACKWARD if self.applied else Phase.UNDONE, reason=reason)

    def skipped(self, reason: str) -> "Progress":
        """The next step was refused, and the plan goes on without it."""
        return replace(self.succeeded(), reason=reason)

    def compensated(self) -> "Progress":
        """An operator takes it back, with the step that may just be taking effect."""
        return replace(self, applied=self.applied + 1).refused(COMPENSATED)

    def stretched(self) -> "Progress":
        """More time was asked for the hold; the next step is still to be taken."""
        return replace(self, extended=True)


@dataclass(slots=True)
class Saga:
    """One order on its way to be paid."""

    order_id: uuid.UUID
    customer_id: uuid.UUID
    total: Money
    payment_method: str
    hold_expire_time: datetime
    progress: Progress
    fence: int
    """Rises whenever a process takes the saga over; a process with an older one can no longer save."""
    pools: tuple[uuid.UUID, ...] = ()
    """Of which its units are: flash sales, and products for ordinary stock."""
    attempts: int = 0
    payment: Payment | None = None
    """What the last answer of payments said."""
    hold_ends: bool = False
    """Whether the hold was about to end when the saga was taken up; by the database's clock."""
    woken: bool = False
    """Whether it was taken up because its payment has got on."""
    refund: Refund | None = None
    """What is to be paid back, for a `REFUND`."""
    refunded_minor: int = 0
    """What of the payment was paid back in all, as the last answer of payments said, in minor units."""
    cause: str = ""
    """What kept it from getting on the last time, for people to read."""

    @property
    def slow(self) -> bool:
        """Whether its next step may take as long as the provider likes. As the column `sagas.slow` says it."""
        first = 1 if self.progress.kind is Kind.PURCHASE else 0
        forward = self.progress.phase is Phase.FORWARD and self.progress.applied == first
        return forward and not self.progress.asked and not self.woken

    @property
    def needs_time(self) -> bool:
        """Whether the hold is about to end while money may be moving, and no more time was asked for yet."""
        if not self.hold_ends or self.progress.extended or self.progress.asked == HOLD_EXPIRED:
            return False
        # A charge without any answer may have arrived all the same.
        return self.payment.in_progress if self.payment else bool(self.payment_method)


class Services(Protocol):
    """What the steps need of the other services. Every call is idempotent by the order's id."""

    async def charge(self, saga: Saga) -> None: ...
    async def give_up(self, saga: Saga) -> None: ...
    async def refund(self, saga: Saga) -> None: ...
    async def confirm(self, saga: Saga) -> None: ...
    async def extend(self, saga: Saga) -> None: ...
    async def release(self, saga: Saga) -> None: ...
    async def pay_back(self, saga: Saga) -> None: ...
    async def restock(self, saga: Saga) -> None: ...


Call = Callable[[Services, Saga], Awaitable[None]]


async def _nothing(_services: Services, _saga: Saga) -> None:
    """For the step that was done before the saga began, and for those that nothing comes after."""


@dataclass(frozen=True, slots=True)
class Step:
    """One effect in another service, and its inverse."""

    name: str
    do: Call
    undo: Call = _nothing
    give_up: Call | None = None
    """What is done instead of `do` when the saga was asked to turn back. Returns where it is too late for that."""
    optional: bool = False
    """Whether the plan goes on where the step is refused."""
    stretch: Call | None = None
    """What is done, once, where the step has no outcome yet and the hold is about to end with money on its way."""


PLANS = {
    Kind.PURCHASE: (
        # Takes the units back whether they are held or, by a confirmation that nobody heard of, sold.
        Step("reserve", do=_nothing, undo=lambda services, saga: services.release(saga)),
        Step(
            "charge",
            do=lambda services, saga: services.charge(saga),
            undo=lambda services, saga: services.refund(saga),
            give_up=lambda services, saga: services.give_up(saga),
            stretch=lambda services, saga: services.extend(saga),
        ),
        Step("confirm", do=lambda services, saga: services.confirm(saga)),
    ),
    # Only its first step can turn it back, so nothing of it is ever taken back. Once the money has gone back it stays
    # there: what became of units that do not come back is for people to find out.
    Kind.REFUND: (
        Step("refund", do=lambda services, saga: services.pay_back(saga)),
        Step("restock", do=lambda services, saga: services.restock(saga), optional=True),
    ),
}


async def advance(services: Services, saga: Saga) -> Progress:
    """Takes the next step, and says how far the saga has come then. Raises `StepWaits`, or whatever a call raises."""
    progress = saga.progress
    if progress.phase is Phase.BACKWARD:
        await progress.plan[progress.applied - 1].undo(services, saga)
        return progress.succeeded()
    if progress.asked == COMPENSATED:
        return progress.compensated()
    step = progress.plan[progress.applied]
    try:
        await (step.give_up if progress.asked and step.give_up else step.do)(services, saga)
    except StepRefused as refusal:
        return progress.skipped(refusal.reason) if step.optional else progress.refused(refusal.reason)
    except Exception:
        if not (step.stretch and saga.needs_time):
            raise
        await step.stretch(services, saga)
        return progress.stretched()
    return progress.succeeded()


def end_state(progress: Progress) -> tuple[State, str]:
    """The order's state when its `PURCHASE` has finished, and why."""
    assert progress.finished, progress
    assert progress.kind is Kind.PURCHASE, progress
    if progress.phase is Phase.DONE:
        return State.PAID, ""
    if progress.reason == CANCELLED:
        return State.CANCELLED, ""
    if progress.reason == COMPENSATED:
        return State.CANCELLED, COMPENSATED
    if progress.reason in (HOLD_EXPIRED, RESERVATION_LOST):
        return State.EXPIRED, progress.reason
    return State.FAILED, progress.reason


_CAUSES = {
    CANCELLED: "CancelOrder",
    COMPENSATED: "CompensateSaga",
    HOLD_EXPIRED: "hold ended",
    RESERVATION_LOST: "units gone",
}


def end_cause(progress: Progress) -> str:
    """What set the end of a `PURCHASE` off, for the order's log."""
    return "paid" if progress.phase is Phase.DONE else _CAUSES.get(progress.reason, "charge refused")
