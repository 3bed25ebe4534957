"""Paying for an order across services: reserve, charge, confirm; or take it all back.

Read `PLAN` first: it is the whole plan. `Progress` says how far it has come, and its moves are pure; `worker` carries
it out. A crash between any two lines repeats a step under the same key, and changes nothing.
"""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from services.chassis.money import Money
from services.orders.domain import Payment, State

CANCELLED = "CANCELLED"
HOLD_EXPIRED = "HOLD_EXPIRED"
RESERVATION_LOST = "RESERVATION_LOST"


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
    """Why it turned back."""
    asked: str = ""
    """Why somebody wants it to turn back: `CANCELLED` or `HOLD_EXPIRED`. Too late once the money has moved."""
    extended: bool = False
    """More time was asked for the hold, which is done once."""

    @property
    def finished(self) -> bool:
        return self.phase in (Phase.DONE, Phase.UNDONE)

    def succeeded(self) -> "Progress":
        """The next step, or the inverse of the last one, has taken effect."""
        if self.phase is Phase.FORWARD:
            applied = self.applied + 1
            return replace(self, applied=applied, phase=Phase.DONE if applied == len(PLAN) else self.phase)
        assert self.phase is Phase.BACKWARD, f"a saga that is {self.phase} takes no steps"
        applied = self.applied - 1
        return replace(self, applied=applied, phase=Phase.UNDONE if applied == 0 else self.phase)

    def refused(self, reason: str) -> "Progress":
        """The next step was refused: what was applied is taken back."""
        # A refused inverse is a bug in the plan: stop loudly, do not loop.
        assert self.phase is Phase.FORWARD, f"compensation refused: {reason}"
        return replace(self, phase=Phase.BACKWARD if self.applied else Phase.UNDONE, reason=reason)

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
    attempts: int = 0
    payment: Payment | None = None
    """What the last answer of payments said."""
    hold_ends: bool = False
    """Whether the hold was about to end when the saga was taken up; by the database's clock."""

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


Call = Callable[[Services, Saga], Awaitable[None]]


async def _nothing(_services: Services, _saga: Saga) -> None:
    """For the step that was done before the saga began, and the one that nothing comes after."""


@dataclass(frozen=True, slots=True)
class Step:
    """One effect in another service, and its inverse."""

    name: str
    do: Call
    undo: Call
    give_up: Call | None = None
    """What is done instead of `do` when the saga was asked to turn back. Returns where it is too late for that."""
    stretch: Call | None = None
    """What is done, once, where the step has no outcome yet and the hold is about to end with money on its way."""


PLAN = (
    Step("reserve", do=_nothing, undo=lambda services, saga: services.release(saga)),
    Step(
        "charge",
        do=lambda services, saga: services.charge(saga),
        undo=lambda services, saga: services.refund(saga),
        give_up=lambda services, saga: services.give_up(saga),
        stretch=lambda services, saga: services.extend(saga),
    ),
    Step("confirm", do=lambda services, saga: services.confirm(saga), undo=_nothing),
)


async def advance(services: Services, saga: Saga) -> Progress:
    """Takes the next step, and says how far the saga has come then. Raises `StepWaits`, or whatever a call raises."""
    progress = saga.progress
    if progress.phase is Phase.BACKWARD:
        await PLAN[progress.applied - 1].undo(services, saga)
        return progress.succeeded()
    step = PLAN[progress.applied]
    try:
        await (step.give_up if progress.asked and step.give_up else step.do)(services, saga)
    except StepRefused as refusal:
        return progress.refused(refusal.reason)
    except Exception:
        if not (step.stretch and saga.needs_time):
            raise
        await step.stretch(services, saga)
        return progress.stretched()
    return progress.succeeded()


def end_state(progress: Progress) -> tuple[State, str]:
    """The order's state when its saga has finished, and why."""
    assert progress.finished, progress
    if progress.phase is Phase.DONE:
        return State.PAID, ""
    if progress.reason == CANCELLED:
        return State.CANCELLED, ""
    if progress.reason in (HOLD_EXPIRED, RESERVATION_LOST):
        return State.EXPIRED, progress.reason
    return State.FAILED, progress.reason
