"""The saga with more than one fault: two deaths, two cancel reasons, two workers at once, a slow reversal.

Single faults are in `test_saga`.
"""

import itertools
from collections.abc import Callable, Iterator

import pytest
import structlog

from services.chassis.errors import Unavailable
from services.orders.domain import State
from services.orders.saga.plan import CANCELLED, HOLD_EXPIRED
from tests.unit.orders.test_saga import Actor
from tests.unit.orders.world import Killed, World, a_worker, carried, to_the_end

POINTS = range(20)
KINDS: dict[str, Callable[[], World]] = {
    "paid": World,
    "declined": lambda: World(declines=True),
    "slow": lambda: World(slow=1),
    "expired": lambda: World(hold="EXPIRED"),
    "lost": lambda: World(hold="EXPIRED", units_left=False),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


async def live(world: World, happens: dict[int, list[Callable[[], None]]]) -> None:
    """One life of an order, in which these things happen at the points of these numbers."""
    passed = itertools.count()

    async def point(_name: str) -> None:
        for act in happens.get(next(passed), ()):
            act()

    await carried(a_worker(world, point), world.sagas.saga())
    await to_the_end(world, point)


def dies(world: World) -> Callable[[], None]:
    def act() -> None:
        world.mishaps += 1
        raise Killed

    return act


def is_unavailable(world: World) -> Callable[[], None]:
    def act() -> None:
        world.mishaps += 1
        raise Unavailable(part="it")

    return act


@each_kind
@pytest.mark.parametrize("second", [dies, is_unavailable])
async def test_process_that_took_over_may_die_too(kind: str, second: Callable[[World], Callable[[], None]]) -> None:
    wanted = {"paid": "PAID", "slow": "PAID", "expired": "PAID", "declined": "FAILED", "lost": "EXPIRED"}[kind]
    for first_at, second_at in itertools.combinations(POINTS, 2):
        world = KINDS[kind]()
        await live(world, {first_at: [dies(world)], second_at: [second(world)]})
        world.check_end()
        assert world.sagas.state is State[wanted], (first_at, second_at)


@each_kind
async def test_cancellation_while_the_hold_expires_comes_to_one_end(kind: str) -> None:
    """Each at every point, in either order, with a death at every second one."""
    for cancel_at, expires_at, dies_at in itertools.product(POINTS[:14], POINTS[:14], POINTS[:16:2]):
        world = KINDS[kind]()

        def cancels(world: World = world) -> None:
            world.sagas.request_cancel(CANCELLED)

        happens: dict[int, list[Callable[[], None]]] = {cancel_at: [cancels]}
        happens.setdefault(expires_at, []).append(world.hold_expires)
        happens.setdefault(dies_at, []).append(dies(world))
        try:
            await live(world, happens)
            world.check_end()
        except AssertionError as error:
            raise AssertionError(f"{(cancel_at, expires_at, dies_at)}: {error}") from error


class SlowReversals(World):
    """The provider accepts a reversal and answers that it is pending."""

    reversals = 0
    answers_after = 0

    def reverse(self) -> None:
        self.reversals += 1
        if self.reversals > self.answers_after:
            super().reverse()


@pytest.mark.parametrize("ask", ["", CANCELLED, HOLD_EXPIRED])
@pytest.mark.parametrize("answers_after", range(3))
async def test_pending_reversal_is_repeated_until_it_is_through(ask: str, answers_after: int) -> None:
    """The saga keeps the stock until the charge is reversed."""
    for asked_at, dies_at in itertools.product(POINTS if ask else [0], [*POINTS, 999]):
        world = SlowReversals(hold="EXPIRED", units_left=False)
        world.answers_after = answers_after

        def asks(world: World = world) -> None:
            if ask:
                world.sagas.request_cancel(ask)

        happens: dict[int, list[Callable[[], None]]] = {asked_at: [asks]}
        happens.setdefault(dies_at, []).append(dies(world))
        await live(world, happens)
        world.check_end()
        assert world.refunded == world.charged, (asked_at, dies_at)


@each_kind
@pytest.mark.parametrize("ask", ["", CANCELLED, HOLD_EXPIRED])
async def test_two_workers_on_one_saga_come_to_one_end_in_any_order(kind: str, ask: str) -> None:
    """The first lost its lease at any point without noticing; the fencing token decides which one may save."""
    for overtaken_at, order in itertools.product(range(7), itertools.product((0, 1), repeat=5)):
        world = KINDS[kind]()
        world.mishaps += 1
        first = Actor(world, world.sagas.saga())
        for _ in range(overtaken_at):
            await first.step()
        if world.sagas.row is None:
            await first.run_out()
            continue
        if ask:
            world.sagas.request_cancel(ask)
        second = Actor(world, world.sagas.claim())
        for who in order:
            await (first, second)[who].step()
        world.units_left = True  # units come back for a late confirmation
        # The worker without a lease continues last, when it can do the most harm.
        await second.run_out()
        await first.run_out()
        await to_the_end(world)
        try:
            world.check_end()
        except AssertionError as error:
            raise AssertionError(f"overtaken at point {overtaken_at}, then {order}: {error}") from error
