"""The saga, killed at every point. Worker, steps and plan are real; the world around them is in memory."""

import asyncio
import itertools
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
import structlog

from services.chassis.errors import Unavailable, WrongState
from services.orders import domain
from services.orders.domain import Payment, PaymentState, State
from services.orders.saga import plan
from services.orders.saga.plan import (
    CANCELLED,
    COMPENSATED,
    HOLD_EXPIRED,
    PLANS,
    RESERVATION_LOST,
    Kind,
    Phase,
    Progress,
    Saga,
    StepRefused,
)
from services.orders.sql.combined import Checkpoint
from tests.unit.orders.world import Killed, World, a_worker, carried, to_the_end

POINTS_MOST = 24
"""More than any life passes: before and after charge, save, extend, confirm, retake, reverse, release and finish."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """These tests fail steps thousands of times."""
    with structlog.testing.capture_logs():
        yield


REFUSALS = [None, "charge", "confirm"]
FAULTS = ["killed", "unavailable", "unforeseen"]
EXPECTED = {None: (State.PAID, ""), "charge": (State.FAILED, "CARD_DECLINED"),
            "confirm": (State.EXPIRED, RESERVATION_LOST)}  # fmt: skip


def a_world(refuses: str | None, *, slow: int = 0, method: str = "pm_card_visa") -> World:
    if refuses == "confirm":
        return World(hold="EXPIRED", units_left=False, slow=slow, method=method)
    return World(declines=refuses == "charge", slow=slow, method=method)


async def live(
    world: World, *, fault: str = "", fault_at: int = -1, ask: str = "", ask_at: int = -1, ends_at: int = -1
) -> None:
    """One life of an order, with one fault at the point of that number."""
    passed = 0

    async def point(_name: str) -> None:
        nonlocal passed
        passed += 1
        if passed - 1 == ends_at:
            world.sagas.hold_is_about_to_end()
        if passed - 1 == ask_at:
            if ask == HOLD_EXPIRED:
                world.hold_expires()
            world.sagas.request_cancel(ask)
        if passed - 1 == fault_at:
            world.mishaps += 1
            raise {"killed": Killed(), "unavailable": Unavailable(part="it"), "unforeseen": RuntimeError("?")}[fault]

    await carried(a_worker(world, point), world.sagas.saga())
    await to_the_end(world, point)


@pytest.mark.parametrize("refuses", REFUSALS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_saga_ends_whole_or_not_at_all(refuses: str | None, fault: str) -> None:
    """The worker stops before or after any call: the outcome does not differ."""
    for fault_at, slow in itertools.product(range(-1, POINTS_MOST), (0, 1, 2)):
        world = a_world(refuses, slow=slow)
        await live(world, fault=fault, fault_at=fault_at)
        world.check_end()
        assert (world.sagas.state, world.sagas.turned_for) == EXPECTED[refuses], (fault_at, slow)


def asked_lives() -> Iterator[tuple[int, int, int]]:
    return itertools.product(range(-1, POINTS_MOST), range(POINTS_MOST), (0, 1))


@pytest.mark.parametrize("refuses", REFUSALS)
@pytest.mark.parametrize("ask", [CANCELLED, HOLD_EXPIRED])
@pytest.mark.parametrize("fault", FAULTS)
async def test_cancelled_or_expired_order_comes_to_one_end(refuses: str | None, ask: str, fault: str) -> None:
    for fault_at, ask_at, slow in asked_lives():
        world = a_world(refuses, slow=slow)
        await live(world, fault=fault, fault_at=fault_at, ask=ask, ask_at=ask_at)
        world.check_end()


@pytest.mark.parametrize("ask", [CANCELLED, HOLD_EXPIRED])
@pytest.mark.parametrize("pays", [False, True])
@pytest.mark.parametrize("units_left", [False, True])
async def test_customer_who_pays_in_the_browser_gets_goods_or_money(ask: str, pays: bool, units_left: bool) -> None:
    for fault_at in range(-1, POINTS_MOST):
        world = World(method="", units_left=units_left)
        await _waits(world)
        if pays:
            world.customer_pays()
        if ask == HOLD_EXPIRED:
            world.hold_expires()
        world.sagas.request_cancel(ask)
        saga = world.sagas.claim()
        passed = 0

        async def point(_name: str, at: int = fault_at) -> None:
            nonlocal passed
            passed += 1
            if passed - 1 == at:
                raise Killed

        await carried(a_worker(world, point), saga)
        await to_the_end(world)
        world.check_end()
        goods = pays and ask == HOLD_EXPIRED and units_left
        assert (world.sagas.state is State.PAID) == goods


async def _waits(world: World) -> None:
    """The saga pauses until the customer pays."""
    await carried(a_worker(world), world.sagas.saga())
    assert world.sagas.row
    assert world.sagas.row.paused


# --- a hold that is about to end ---


@pytest.mark.parametrize("refuses", REFUSALS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_hold_check_changes_no_end(refuses: str | None, fault: str) -> None:
    """At any point, and with any fault: money and stock end as if there had been enough time."""
    for fault_at, ends_at, slow in itertools.product(range(-1, POINTS_MOST), range(POINTS_MOST), range(5)):
        world = a_world(refuses, slow=slow)
        await live(world, fault=fault, fault_at=fault_at, ends_at=ends_at)
        world.check_end()
        assert (world.sagas.state, world.sagas.turned_for) == EXPECTED[refuses], (fault_at, ends_at, slow)


@pytest.mark.parametrize("ask", [CANCELLED, HOLD_EXPIRED])
@pytest.mark.parametrize("fault", FAULTS)
async def test_hold_check_does_not_stop_a_cancellation(ask: str, fault: str) -> None:
    points = range(-1, POINTS_MOST)
    for fault_at, ask_at, ends_at, slow in itertools.product(points, range(0, POINTS_MOST, 2), (0, 2, 5), (1, 3)):
        world = a_world(None, slow=slow)
        await live(world, fault=fault, fault_at=fault_at, ask=ask, ask_at=ask_at, ends_at=ends_at)
        world.check_end()


@pytest.mark.parametrize("ends_at", range(3))
async def test_hold_is_extended_once_while_the_provider_is_processing(ends_at: int) -> None:
    world = World(slow=4)
    pauses = noted_pauses(world)
    await live(world, ends_at=ends_at)

    assert world.sagas.state is State.PAID
    assert (world.extensions, world.extended) == (1, True)
    held_until = [pause.saga.hold_expire_time - world.placed_time for pause in pauses]
    assert (held_until[0], held_until[-1]) == (timedelta(minutes=10), timedelta(minutes=20))
    assert [pause.saga.hold_extended for pause in pauses].count(True) == 1


async def test_answered_charge_extends_no_hold() -> None:
    """An order whose hold ends soon costs no call more."""
    world, seen = World(), []

    async def point(name: str) -> None:
        seen.append(name)

    world.sagas.hold_is_about_to_end()
    await carried(a_worker(world, point), world.sagas.claim())

    assert seen == [f"{when} {name}" for name in ("charge", "confirm", "finish") for when in ("before", "after")]


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("end", ["pays", "expires", CANCELLED])
async def test_hold_is_extended_only_for_a_customer_who_has_begun_to_pay(begins: bool, end: str) -> None:
    """A customer who only opens the page would keep the stock from others. Killed at every point."""
    for fault_at in range(-1, POINTS_MOST):
        world = World(method="")
        await _waits(world)
        if begins:
            world.customer_begins()
        passed = 0

        async def point(_name: str, at: int = fault_at, world: World = world) -> None:
            nonlocal passed
            passed += 1
            if passed - 1 == at:
                world.mishaps += 1
                raise Killed

        for _ in range(2):  # two hold checks
            world.sagas.hold_is_about_to_end()
            await carried(a_worker(world, point), world.sagas.claim())
        if end == "pays":
            world.customer_pays()
        elif end == "expires":
            world.hold_expires()
        else:
            world.sagas.request_cancel(CANCELLED)
        await to_the_end(world, point)
        world.check_end()
        assert world.extended == begins
        assert (world.sagas.state is State.PAID) == (end == "pays")


async def test_hold_that_expired_before_its_extension_stays_expired() -> None:
    """After a late payment the units are retaken, or the charge is reversed."""
    for units_left in (True, False):
        world = World(slow=3, hold="EXPIRED", units_left=units_left)
        pauses = noted_pauses(world)
        await live(world, ends_at=0)
        world.check_end()
        assert (world.extensions, world.extended) == (1, False)
        assert world.sagas.state is (State.PAID if units_left else State.EXPIRED)
        assert {pause.saga.hold_expire_time - world.placed_time for pause in pauses} == {timedelta(minutes=10)}


async def test_hold_that_is_known_to_have_expired_is_not_extended() -> None:
    world = World(slow=3)
    await carried(a_worker(world), world.sagas.saga())
    world.hold_expires()
    world.sagas.hold_is_about_to_end()
    await carried(a_worker(world), world.sagas.claim())
    assert world.extensions == 0
    await to_the_end(world)
    world.check_end()


async def test_unavailable_inventory_at_the_hold_check_does_not_stop_the_payment() -> None:
    world = World(slow=3)

    async def point(name: str) -> None:
        if name == "before extend":
            raise Unavailable(part="inventory")

    await carried(a_worker(world), world.sagas.saga())
    for _ in range(4):
        world.sagas.hold_is_about_to_end()
        await carried(a_worker(world, point), world.sagas.claim())
        if world.sagas.row is None:
            break
    assert (world.sagas.state, world.extensions) == (State.PAID, 0)
    world.check_end()


@pytest.mark.parametrize(("method", "asks"), [("pm_card_visa", True), ("", False)])
async def test_hold_is_extended_for_a_charge_without_any_answer(method: str, asks: bool) -> None:
    """Payments is unavailable. The charge of a card may have arrived; in the browser nobody can have paid yet."""
    world = World(method=method)

    async def point(name: str) -> None:
        if name == "after charge":
            raise Unavailable(part="payments")

    world.sagas.hold_is_about_to_end()
    await carried(a_worker(world, point), world.sagas.claim())

    assert world.extended is asks
    await to_the_end(world)


def noted_pauses(world: World) -> list[Checkpoint]:
    """The checkpoints that are saved from now on."""
    pauses: list[Checkpoint] = []
    save = world.sagas.save

    def noted(pause: Checkpoint) -> bool:
        pauses.append(replace(pause, saga=replace(pause.saga)))
        return save(pause)

    world.sagas.save = noted  # type: ignore[method-assign]
    return pauses


async def test_taking_a_failure_for_a_refusal_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a timeout taken for a refusal, the tests above must fail."""
    advance = plan.advance

    async def mistaken(services: plan.SagaSteps, saga: Saga) -> Progress:
        try:
            return await advance(services, saga)
        except Unavailable:
            if saga.progress.phase is Phase.FORWARD:
                return saga.progress.refused("PAYMENT_FAILED")
            raise

    monkeypatch.setattr(plan, "advance", mistaken)
    wrong = 0
    for fault_at in range(POINTS_MOST):
        world = a_world(None)
        try:
            await live(world, fault="unavailable", fault_at=fault_at)
            world.check_end()
            assert world.sagas.state is State.PAID
        except AssertionError:
            wrong += 1
    assert wrong >= 3


async def test_charge_is_reversed_only_after_the_turn_is_saved() -> None:
    """A saga that turns back after the charge is saved first; without the lease, a process reverses nothing."""
    world, seen = a_world("confirm"), []

    async def point(name: str) -> None:
        seen.append(name)
        if name == "before save":
            world.sagas.claim()  # a takeover at this moment

    await carried(a_worker(world, point), world.sagas.saga())

    assert seen == ["before charge", "after charge", "before confirm", "before retake", "before save", "after save"]
    assert world.refunded == 0
    await to_the_end(world)
    world.check_end()


async def test_saga_that_waits_for_its_customer_pauses_until_after_the_hold() -> None:
    world = World(method="")
    pauses = []
    worker = a_worker(world)
    save = worker._save

    async def noted(pause):  # type: ignore[no-untyped-def]
        pauses.append(pause)
        return await save(pause)

    worker._save = noted  # type: ignore[assignment]
    await worker.carry(world.sagas.saga())
    (pause,) = pauses
    assert pause.paused
    assert 590 < pause.seconds < 605


async def test_failed_step_is_retried_with_growing_pauses_up_to_a_bound() -> None:
    world = World()
    seconds = []

    async def point(name: str) -> None:
        if name == "before charge":
            raise Unavailable(part="payments")

    worker = a_worker(world, point)
    save = worker._save

    async def noted(pause):  # type: ignore[no-untyped-def]
        seconds.append(pause.seconds)
        return await save(pause)

    worker._save = noted  # type: ignore[assignment]
    saga = world.sagas.saga()
    for _ in range(8):
        await worker.carry(saga)
        saga = world.sagas.claim()
    assert seconds == [0.5, 1, 2, 4, 8, 15, 15, 15]


# --- one order, everybody at once ---


class Actor:
    """A worker that waits before and after each call for `step`."""

    def __init__(self, world: World, saga: Saga) -> None:
        self._go, self._stands = asyncio.Event(), asyncio.Event()
        self._killed = self._free = False
        self.task = asyncio.create_task(carried(a_worker(world, self._point), saga))

    async def _point(self, _name: str) -> None:
        if self._killed:
            raise Killed
        if self._free:
            return
        self._stands.set()
        await self._go.wait()
        self._go.clear()
        if self._killed:
            raise Killed

    async def step(self) -> None:
        """Continues to the next point."""
        await self._arrive()
        if not self.task.done():
            self._stands.clear()
            self._go.set()
            await self._arrive()

    async def _arrive(self) -> None:
        stands = asyncio.create_task(self._stands.wait())
        await asyncio.wait({stands, self.task}, return_when=asyncio.FIRST_COMPLETED)
        stands.cancel()

    async def die(self) -> None:
        await self._arrive()
        self._killed = True
        self._go.set()
        await self.task

    async def run_out(self) -> None:
        self._free = True
        self._go.set()
        await self.task


FACTS = ["pays", "event", "cancel", "expires", "ends soon", "steps", "dies", "taken over"]


async def one_story(method: str, units_left: bool, facts: tuple[str, ...], begun: int) -> None:
    world = World(method=method, units_left=units_left)
    actors = [Actor(world, world.sagas.saga())]
    for _ in range(begun):
        await actors[0].step()
    for fact in facts:
        if fact == "pays":
            world.customer_pays()
        elif fact == "event":
            world.sagas.note_payment()
        elif fact == "cancel":
            world.sagas.request_cancel(CANCELLED)
        elif fact == "expires":
            world.hold_expires()
        elif fact == "ends soon":
            world.customer_begins()
            world.sagas.hold_is_about_to_end()
        elif fact == "steps":
            await actors[0].step()
        elif fact == "dies":
            world.mishaps += 1
            await actors[0].die()
        elif world.sagas.row:
            world.mishaps += 1
            actors.append(Actor(world, world.sagas.claim()))
            await actors[-1].step()
            await actors[-1].step()
    # Workers without a lease continue last, when they can do the most harm.
    for actor in reversed(actors):
        await actor.run_out()
    await to_the_end(world)
    world.check_end()


@pytest.mark.parametrize("units_left", [True, False])
@pytest.mark.parametrize("method", ["", "pm_card_visa"])
async def test_any_four_facts_in_any_order_end_in_one_consistent_state(method: str, units_left: bool) -> None:
    """Client, events, cancellation, expiry, death and takeover, from any of the worker's first steps on."""
    for length in range(1, 5):
        for n, facts in enumerate(itertools.product(FACTS, repeat=length)):
            for begun in (0, 2, 4) if length < 3 else (n % 5,):
                try:
                    await one_story(method, units_left, facts, begun)
                except AssertionError as error:
                    raise AssertionError(f"{facts} after {begun} points: {error}") from error


async def test_worker_without_lease_cannot_confirm_an_order_that_turns_back() -> None:
    """The owner's confirmation is refused and its saga turns back; then units come back, and a slow call arrives."""
    world = World(hold="EXPIRED", units_left=False)
    slow = Actor(world, world.sagas.saga())
    for _ in range(2):
        await slow.step()  # charged, and about to confirm
    owner = Actor(world, world.sagas.claim())
    for _ in range(5):
        await owner.step()  # its confirmation was refused, and the turn is saved
    assert world.sagas.row
    assert world.sagas.row.progress.phase is Phase.BACKWARD
    world.units_left = True
    await slow.run_out()
    await owner.run_out()
    await to_the_end(world)
    world.check_end()


# --- the rules themselves ---


def test_moves_outside_of_the_table_are_refused() -> None:
    for state, wanted in itertools.product(State, State):
        if wanted in domain.NEXT[state]:
            assert domain.move(state, wanted) is wanted
        else:
            with pytest.raises(WrongState):
                domain.move(state, wanted)


def test_only_pending_orders_can_fail_be_paid_or_expire() -> None:
    assert set(domain.NEXT) == set(State)
    for wanted in (State.PAID, State.FAILED, State.EXPIRED):
        assert [state for state in State if wanted in domain.NEXT[state]] == [State.PENDING]
    assert [state for state in State if State.CANCELLED in domain.NEXT[state]] == [State.PENDING, State.PAID]


def test_progress_goes_through_the_plan_and_back() -> None:
    progress = Progress()
    assert [step.name for step in PLANS[Kind.PURCHASE][: progress.steps_done]] == ["reserve"]
    assert progress.succeeded().succeeded().phase is Phase.DONE
    back = progress.succeeded().refused("NO")
    assert (back.phase, back.steps_done, back.reason) == (Phase.BACKWARD, 2, "NO")
    assert back.succeeded().succeeded().phase is Phase.UNDONE


def test_refused_reversal_is_a_bug_and_fails_loudly() -> None:
    with pytest.raises(AssertionError, match="compensation refused"):
        Progress(Phase.BACKWARD).refused("NO")
    with pytest.raises(AssertionError, match="takes no steps"):
        Progress(Phase.DONE, 3).succeeded()


@pytest.mark.parametrize(
    ("progress", "end"),
    [
        (Progress(Phase.DONE, 3), (State.PAID, "", "paid")),
        (Progress(Phase.UNDONE, 0, CANCELLED), (State.CANCELLED, "", "CancelOrder")),
        (Progress(Phase.UNDONE, 0, COMPENSATED), (State.CANCELLED, COMPENSATED, "CompensateSaga")),
        (Progress(Phase.UNDONE, 0, HOLD_EXPIRED), (State.EXPIRED, HOLD_EXPIRED, "hold ended")),
        (Progress(Phase.UNDONE, 0, RESERVATION_LOST), (State.EXPIRED, RESERVATION_LOST, "units gone")),
        (Progress(Phase.UNDONE, 0, "CARD_DECLINED"), (State.FAILED, "CARD_DECLINED", "charge refused")),
    ],
)
def test_why_a_saga_turned_back_decides_the_orders_end(progress: Progress, end: tuple[State, str, str]) -> None:
    assert plan.purchase_end(progress) == end


def test_end_of_a_purchase_must_be_a_move_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(domain.NEXT, State.PENDING, {State.CANCELLED})
    with pytest.raises(WrongState):
        plan.purchase_end(Progress(Phase.DONE, 3))


def test_a_refusal_carries_its_reason() -> None:
    assert StepRefused("CARD_DECLINED").reason == "CARD_DECLINED"


@pytest.mark.parametrize(
    ("reason", "payment", "abandoned"),
    [
        (CANCELLED, None, True), (HOLD_EXPIRED, PaymentState.CANCELLED, True),
        (CANCELLED, PaymentState.REFUNDED, False),
        ("CARD_DECLINED", PaymentState.FAILED, False), (RESERVATION_LOST, PaymentState.REFUNDED, False),
        (COMPENSATED, None, False),
    ],
)  # fmt: skip
def test_customer_abandons_a_hold_by_a_cancel_or_by_waiting(
    reason: str, payment: PaymentState | None, abandoned: bool
) -> None:
    saga = World().sagas.saga()
    saga.progress = replace(saga.progress, reason=reason, phase=Phase.BACKWARD)
    saga.payment = payment and Payment(uuid.uuid4(), "stripe", payment)
    assert plan.was_abandoned(saga) is abandoned
