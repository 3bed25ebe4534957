"""The plans of sagas: reserve, charge, confirm, or reverse all of it; and the refund of a paid order.

Read `PLANS` first. `Progress` holds how far a saga has come and its moves are pure; `worker` takes the steps. A crash
between any two lines repeats a step under the same key and changes nothing.
"""

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from services.chassis.money import Money
from services.orders import domain
from services.orders.domain import Order, Payment, PaymentState, Refund, State
from services.orders.saga.attempts import PaymentTerms

CANCELLED = "CANCELLED"
HOLD_EXPIRED = "HOLD_EXPIRED"
RESERVATION_LOST = "RESERVATION_LOST"
COMPENSATED = "COMPENSATED"

SECRETS_UNASKED_MOST = 3
"""So many unpaid orders of a customer get their client secret with the answer; further ones when somebody asks."""

_BACKOFF_FIRST_SECONDS = 0.5
_BACKOFF_MOST_SECONDS = 15.0
_ATTEMPTS_MOST = 16
# A little after the hold's end, for a clock that is ahead of the database's. Inventory keeps the units meanwhile.
_AFTER_HOLD_SECONDS = 0.1


class StepRefused(Exception):
    """The other service refused the step and changed nothing.

    Only this turns a saga back. A timeout or a broken connection does not show what happened, so the step is repeated
    under the same key until the other service answers.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Withdrawn(Exception):
    """The order was cancelled, or another process has the lease: this one must not begin a charge."""


class StepPending(Exception):
    """The step has no outcome yet: the payment waits for the customer, for the provider, or for its answer."""

    def __init__(self, *, for_customer: bool = False, for_provider: bool = False) -> None:
        """`for_provider`: the provider has answered that it is moving the money. By default it gave no answer."""
        super().__init__()
        self.for_customer, self.for_provider = for_customer, for_provider


class Kind(StrEnum):
    """The purpose of a saga."""

    PURCHASE = "PURCHASE"
    REFUND = "REFUND"


class Phase(StrEnum):
    """The direction of a saga, or how it ended."""

    FORWARD = "FORWARD"
    BACKWARD = "BACKWARD"
    DONE = "DONE"
    UNDONE = "UNDONE"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a saga has come: the first `steps_done` steps of its plan have taken effect."""

    phase: Phase = Phase.FORWARD
    steps_done: int = 1
    """An order is written after its stock is reserved, so a purchase begins after the first step."""
    reason: str = ""
    """Why it turned back, or the refusal of an optional step."""
    cancel_reason: str = ""
    """Why it shall turn back: `CANCELLED` or `COMPENSATED`, which are promises; or `HOLD_EXPIRED`, which comes too late
    once the money has moved."""
    kind: Kind = Kind.PURCHASE

    @property
    def plan(self) -> "tuple[Step, ...]":
        return PLANS[self.kind]

    @property
    def step(self) -> str:
        """The name of the step to take or reverse next; empty if it has finished."""
        if self.finished:
            return ""
        return self.plan[self.steps_done if self.phase is Phase.FORWARD else self.steps_done - 1].name

    @property
    def finished(self) -> bool:
        # A purchase that is done and not written to its order yet can still be cancelled.
        return self.phase is Phase.UNDONE or (self.phase is Phase.DONE and not self.must_turn_back)

    @property
    def must_turn_back(self) -> bool:
        """Whether it was promised that the order is cancelled: money that has moved is reversed."""
        return self.cancel_reason in (CANCELLED, COMPENSATED)

    @property
    def turned_for(self) -> str:
        """Why it turned back. An accepted cancellation decides, also if the saga had turned back before."""
        return self.cancel_reason if self.must_turn_back else self.reason

    def succeeded(self) -> "Progress":
        """The progress after the next step, or the reversal of the last one, has taken effect."""
        if self.phase is Phase.FORWARD:
            steps_done = self.steps_done + 1
            return replace(
                self, steps_done=steps_done, phase=Phase.DONE if steps_done == len(self.plan) else self.phase
            )
        assert self.phase is Phase.BACKWARD, f"a saga that is {self.phase} takes no steps"
        steps_done = self.steps_done - 1
        return replace(self, steps_done=steps_done, phase=Phase.UNDONE if steps_done == 0 else self.phase)

    def refused(self, reason: str) -> "Progress":
        """The progress after the next step was refused: it turns back."""
        # A refused reversal is a bug in the plan: fail loudly, do not loop.
        assert self.phase is Phase.FORWARD, f"compensation refused: {reason}"
        return replace(self, phase=Phase.BACKWARD if self.steps_done else Phase.UNDONE, reason=reason)

    def skipped(self, reason: str) -> "Progress":
        """The progress after an optional step was refused: the plan continues."""
        return replace(self.succeeded(), reason=reason)

    def cancelled(self) -> "Progress":
        """The progress after a cancellation was promised: a step that may be taking effect now is reversed too."""
        steps_done = min(self.steps_done + 1, len(self.plan))
        return replace(self, phase=Phase.BACKWARD, steps_done=steps_done, reason=self.cancel_reason)


@dataclass(slots=True)
class Saga:
    """The saga of one order, as the process that holds its lease has it."""

    order_id: uuid.UUID
    customer_id: uuid.UUID
    total: Money
    payment_method: str
    hold_expire_time: datetime
    progress: Progress
    fencing_token: int
    """Rises at each takeover; a process with an older one cannot save."""
    pools: tuple[uuid.UUID, ...] = ()
    """The pools of its units."""
    secret_wanted: bool = True
    """Whether somebody has asked how to pay the order. Without a card, nothing is charged before."""
    products: tuple[uuid.UUID, ...] = ()
    payment_attempt: int = 0
    """The latest attempt to pay that the customer asked for; 0 for the one that the order came with."""
    terms: PaymentTerms | None = None
    """How they want to pay in it."""
    reholds: int = 0
    """How often the units were held again after a decline."""
    attempts: int = 0
    """How often the next step was tried without an outcome."""
    payment: Payment | None = None
    """The payment as payments returned it last."""
    hold_check_due: bool = False
    """Whether the hold is about to end, by the database's clock at the takeover, and may be extended."""
    hold_extended: bool = False
    """Whether this process has asked for more time; the hold is not checked again."""
    payment_changed: bool = False
    """Whether the takeover followed an event about its payment."""
    refund: Refund | None = None
    """The refund to make, for a `REFUND`."""
    refunded_minor: int = 0
    """The minor units refunded in total, as payments returned them last."""
    cause: str = ""
    """Why its last step had no outcome, for people to read."""
    waits_for_provider: bool = False
    """Whether its last step has no outcome because the provider is moving the money."""
    withdrawn: bool = False
    """Whether its order was cancelled, or its lease taken over, since this process claimed it: it charges nothing."""
    read_time: float = field(default_factory=time.monotonic)
    """When this process read last whether it is still wanted."""

    @property
    def provider_bound(self) -> bool:
        """Whether its next step lasts as long as the provider takes. The column `provider_bound` has the same rule."""
        first = 1 if self.progress.kind is Kind.PURCHASE else 0
        first_step = self.progress.phase is Phase.FORWARD and self.progress.steps_done == first
        return first_step and not self.progress.cancel_reason and not self.payment_changed

    @property
    def was_not_made(self) -> bool:
        """Whether payments did not make the latest attempt, because an earlier one may be taking money."""
        known = self.payment
        return (
            known is not None
            and known.state is PaymentState.PROCESSING
            and known.attempt < self.payment_attempt <= known.latest_attempt
        )

    @property
    def opens_payment(self) -> bool:
        """Whether its next step asks the provider for a payment that nobody pays yet."""
        return self.provider_bound and self.progress.kind is Kind.PURCHASE and not self.payment_method

    @property
    def needs_more_time(self) -> bool:
        """Whether the hold is about to end while money may be moving."""
        if not self.hold_check_due or self.hold_extended or self.progress.cancel_reason == HOLD_EXPIRED:
            return False
        # A charge without any answer may have arrived.
        return self.payment.in_progress if self.payment else bool(self.payment_method)


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaView:
    """A saga as operators see it."""

    order_id: uuid.UUID
    customer_id: uuid.UUID
    order_state: State
    progress: Progress
    waits_for_customer: bool
    waits_for_provider: bool
    stuck: bool
    cause: str
    attempts: int
    create_time: datetime
    progress_time: datetime
    next_time: datetime


def begin(order: Order) -> Saga:
    """The saga of an order that was written just now, under the lease that was written with it."""
    return Saga(
        order_id=order.id,
        customer_id=order.customer_id,
        total=order.total,
        payment_method=order.payment_method,
        hold_expire_time=order.hold_expire_time,
        progress=Progress(),
        fencing_token=1,
        pools=order.pools,
        secret_wanted=order.secret_wanted,
        products=tuple(line.product_id for line in order.lines),
    )


class SagaSteps(Protocol):
    """The effects of the steps in other services. Each call is idempotent by the order's id."""

    async def charge(self, saga: Saga) -> None: ...
    async def cancel_payment(self, saga: Saga) -> None: ...
    async def reverse_charge(self, saga: Saga) -> None: ...
    async def confirm(self, saga: Saga) -> None: ...
    async def extend_hold(self, saga: Saga) -> None: ...
    async def release(self, saga: Saga) -> None: ...
    async def refund(self, saga: Saga) -> None: ...
    async def restock(self, saga: Saga) -> None: ...


Call = Callable[[SagaSteps, Saga], Awaitable[None]]


async def _nothing(_steps: SagaSteps, _saga: Saga) -> None:
    """For the step that was done before the saga began, and for steps that are never reversed."""


@dataclass(frozen=True, slots=True)
class Step:
    """One effect in another service, and its reversal."""

    name: str
    do: Call
    reverse: Call = _nothing
    cancel: Call | None = None
    """Called instead of `do` if the hold has expired. Returns if the money has moved: then the plan continues."""
    optional: bool = False
    """Whether the plan continues after a refusal of the step."""
    extend_hold: Call | None = None
    """Called once, if the step has no outcome yet and the hold is about to end while money may be moving."""


PLANS = {
    Kind.PURCHASE: (
        # Takes the units back whether they are held or, by a confirmation without an answer, sold.
        Step("reserve", do=_nothing, reverse=lambda steps, saga: steps.release(saga)),
        Step(
            "charge",
            do=lambda steps, saga: steps.charge(saga),
            reverse=lambda steps, saga: steps.reverse_charge(saga),
            cancel=lambda steps, saga: steps.cancel_payment(saga),
            extend_hold=lambda steps, saga: steps.extend_hold(saga),
        ),
        Step("confirm", do=lambda steps, saga: steps.confirm(saga)),
    ),
    # Only its first step can turn it back, so no step of it is ever reversed. A refund is final: if the units do not
    # come back, people find out why.
    Kind.REFUND: (
        Step("refund", do=lambda steps, saga: steps.refund(saga)),
        Step("restock", do=lambda steps, saga: steps.restock(saga), optional=True),
    ),
}


async def advance(steps: SagaSteps, saga: Saga) -> Progress:
    """Takes the next step and returns the progress after it. Raises `StepPending`, or what a call raises."""
    progress = saga.progress
    if progress.phase is Phase.BACKWARD:
        await progress.plan[progress.steps_done - 1].reverse(steps, saga)
        return progress.succeeded()
    if progress.must_turn_back:
        return progress.cancelled()
    step = progress.plan[progress.steps_done]
    try:
        await (step.cancel if progress.cancel_reason and step.cancel else step.do)(steps, saga)
    except StepRefused as refusal:
        return progress.skipped(refusal.reason) if step.optional else progress.refused(refusal.reason)
    except Exception:
        if not (step.extend_hold and saga.needs_more_time):
            raise
        await step.extend_hold(steps, saga)
        saga.hold_extended = True
        return progress
    return progress.succeeded()


def pause_seconds(saga: Saga, *, for_customer: bool, now: float) -> float:
    """How long a saga pauses whose step has no outcome at `now`, in seconds since 1970. Events wake it earlier."""
    if for_customer:
        return max(saga.hold_expire_time.timestamp() - now, 0.0) + _AFTER_HOLD_SECONDS
    return float(min(_BACKOFF_FIRST_SECONDS * 2**saga.attempts, _BACKOFF_MOST_SECONDS))


def attempts_after_pause(saga: Saga, *, for_customer: bool) -> int:
    """The attempts to count once it pauses. To wait for the customer is no failed attempt."""
    return saga.attempts if for_customer else min(saga.attempts + 1, _ATTEMPTS_MOST)


def was_abandoned(saga: Saga) -> bool:
    """Whether the purchase turned back unpaid because its customer cancelled it or let its time pass.

    A declined payment is no reason: the customer tried to pay.
    """
    paid = saga.payment is not None and saga.payment.state in (PaymentState.SUCCEEDED, PaymentState.REFUNDED)
    return saga.progress.reason in (CANCELLED, HOLD_EXPIRED) and not paid


_TURNED_BACK = {
    CANCELLED: (State.CANCELLED, "", "CancelOrder"),
    COMPENSATED: (State.CANCELLED, COMPENSATED, "CompensateSaga"),
    HOLD_EXPIRED: (State.EXPIRED, HOLD_EXPIRED, "hold ended"),
    RESERVATION_LOST: (State.EXPIRED, RESERVATION_LOST, "units gone"),
}


def purchase_end(progress: Progress) -> tuple[State, str, str]:
    """The order's state after its finished `PURCHASE`, the reason for it, and the cause to log."""
    assert progress.finished, progress
    assert progress.kind is Kind.PURCHASE, progress
    if progress.phase is Phase.DONE:
        end = State.PAID, "", "paid"
    else:
        end = _TURNED_BACK.get(progress.turned_for, (State.FAILED, progress.reason, "charge refused"))
    domain.move(State.PENDING, end[0])
    return end


def refund_end(order: Order, saga: Saga, refunded_minor: int) -> tuple[State, str]:
    """The order's state after its finished `REFUND`, with `refunded_minor` refunded in total, and the cause to log."""
    assert saga.refund
    cause = saga.refund.method
    if saga.progress.phase is Phase.UNDONE:
        cause = f"{cause} refused: {saga.progress.reason}"
        # Staff may have refunded it at payments meanwhile; the consumer left that to this saga.
        if refunded_minor == order.refunded_minor:
            return order.state, cause
        return domain.move(order.state, order.state_after_refund(refunded_minor)), cause
    if saga.progress.reason:
        cause = f"{cause}; units did not come back: {saga.progress.reason}"
    # Another refund, begun at payments, may still be in progress and may fail: then money is left to refund.
    # Without a refund, the payment was voided.
    cancelled = saga.refund.wanted is State.CANCELLED and refunded_minor in (0, order.total.minor)
    return domain.move(order.state, State.CANCELLED if cancelled else order.state_after_refund(refunded_minor)), cause


def returned_after_refund(order: Order, saga: Saga) -> Mapping[uuid.UUID, int]:
    """The units that have come back, by product, after the order's finished `REFUND`."""
    assert saga.refund
    came_back = saga.progress.phase is Phase.DONE and not saga.progress.reason
    return order.returned_after(saga.refund) if came_back else order.returned
