"""The plan of a refund, killed at every point: money and units go back once, or not at all."""

import itertools
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import structlog

from services.chassis.errors import Unavailable
from services.chassis.money import Money
from services.orders.domain import Payment, Refund, State
from services.orders.saga.plan import Kind, Phase, Progress, Saga
from services.orders.saga.steps import MeshSteps
from services.orders.saga.worker import Worker
from stampede.payments.v1.charge_service_pb2 import RefundStatus
from tests.unit.orders.world import CrashPoint, Killed, World, a_worker, carried, refused, to_the_end

PAID, POINTS_MOST = 500, 14
FAULTS = ["killed", "unavailable", "unforeseen"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


@dataclass
class Shop:
    """Payments, inventory and the saga table of one paid order, as their contracts promise."""

    refuses: str = ""
    slow: int = 0
    back: dict[uuid.UUID, int] = field(default_factory=dict)
    """Refunded minor units, by refund."""
    units_back: set[uuid.UUID] = field(default_factory=set)
    saga: Saga | None = None
    ends: list[tuple[Phase, int, str]] = field(default_factory=list)

    def refund(self, saga: Saga) -> RefundStatus:
        assert saga.refund
        if self.refuses == "refund":
            raise refused("FAILED_PRECONDITION", "REFUND_TOO_LARGE")
        self.back[saga.refund.id] = PAID
        state = RefundStatus.PENDING if self.slow else RefundStatus.SUCCEEDED
        self.slow = max(self.slow - 1, 0)
        status = RefundStatus(state=RefundStatus.FAILED if self.refuses == "provider" else state)
        status.refunded.minor_units = 0 if self.refuses == "provider" else sum(self.back.values())
        return status

    def read(self, order_ids: Any) -> dict[uuid.UUID, Payment]:
        return {}  # nothing else was refunded

    def restock(self, back: Any) -> None:
        if self.refuses == "restock":
            raise refused("FAILED_PRECONDITION", "RETURN_TOO_LARGE")
        self.units_back.add(back.id)

    def claim(self) -> Saga:
        assert self.saga
        self.saga.fencing_token += 1
        kept = self.saga
        return replace(kept)

    def save(self, saga: Saga) -> bool:
        if self.saga is None or saga.fencing_token != self.saga.fencing_token:
            return False
        self.saga.progress, self.saga.attempts = saga.progress, saga.attempts
        self.saga.refunded_minor = max(self.saga.refunded_minor, saga.refunded_minor)
        return True

    def finish(self, saga: Saga) -> State | None:
        if self.saga is None or saga.fencing_token != self.saga.fencing_token:
            return None
        refunded = max(self.saga.refunded_minor, saga.refunded_minor)
        self.saga = None
        self.ends.append((saga.progress.phase, refunded, saga.progress.reason))
        return State.REFUNDED


def a_refund(shop: Shop) -> Saga:
    refund = Refund(uuid.UUID(int=3), None, State.REFUNDED, restock=True)
    shop.saga = Saga(
        order_id=uuid.UUID(int=1), customer_id=uuid.UUID(int=2), total=Money("USD", PAID), payment_method="",
        hold_expire_time=World().placed_time, progress=Progress(steps_done=0, kind=Kind.REFUND), fencing_token=1,
        refund=refund,
    )  # fmt: skip
    return shop.claim()


def a_refunder(shop: Shop, point: CrashPoint) -> Worker:
    """A real `Worker` with real steps in this shop; `point` is passed before and after each of their calls."""

    class Clients:
        def __getattr__(self, name: str) -> Any:
            async def call(item: Any) -> Any:
                await point(f"before {name}")
                answer = getattr(shop, name)(item)
                await point(f"after {name}")
                return answer

            return call

    worker, clients = a_worker(World()), Clients()
    worker._steps = MeshSteps(clients, clients, clients)  # type: ignore[arg-type]

    async def save(pause: Any) -> bool:
        await point("before save")
        saved = shop.save(pause.saga)
        await point("after save")
        return saved

    async def finish(saga: Saga) -> State | None:
        await point("before finish")
        end = shop.finish(saga)
        await point("after finish")
        return end

    worker._save, worker._finish_refund = save, finish  # type: ignore[assignment]
    return worker


@pytest.mark.parametrize("refuses", ["", "refund", "provider", "restock"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_refund_and_return_happen_once_wherever_the_worker_stops(refuses: str, fault: str) -> None:
    for fault_at, slow in itertools.product(range(-1, POINTS_MOST), (0, 1, 2)):
        shop, passed = Shop(refuses=refuses, slow=slow), 0

        async def point(_name: str, fault_at: int = fault_at) -> None:
            nonlocal passed
            passed += 1
            if passed - 1 == fault_at:
                raise {"killed": Killed(), "unavailable": Unavailable(part="it"), "unforeseen": RuntimeError("?")}[
                    fault
                ]

        await carried(a_refunder(shop, point), a_refund(shop))
        for _ in range(20):
            if shop.saga is not None:
                await carried(a_refunder(shop, point), shop.claim())
        given_back = refuses not in ("refund", "provider")
        ((phase, refunded, reason),) = shop.ends
        assert phase is (Phase.DONE if given_back else Phase.UNDONE), (fault_at, slow)
        assert refunded == (PAID if given_back else 0), (fault_at, slow)
        assert len(shop.back) <= 1
        assert len(shop.units_back) == (given_back and refuses != "restock")
        if refuses == "restock":
            assert reason == "RETURN_TOO_LARGE", (fault_at, slow)


async def test_worker_without_lease_finishes_no_refund() -> None:
    shop = Shop()

    async def pass_by(_name: str) -> None: ...

    late = a_refund(shop)
    await carried(a_refunder(shop, pass_by), shop.claim())
    await carried(a_refunder(shop, pass_by), late)
    assert len(shop.ends) == len(shop.back) == len(shop.units_back) == 1


@pytest.mark.parametrize("method", ["", "pm_card_visa"])
@pytest.mark.parametrize("refuses", ["", "charge", "confirm"])
async def test_compensation_reverses_a_saga_at_any_point(method: str, refuses: str) -> None:
    """Requested at every point, with a death at every other one: no money and no unit stays, and there is one end."""
    for ask_at, fault_at in itertools.product(range(12), range(-1, 16)):
        world = World(
            method=method, declines=refuses == "charge", hold="EXPIRED" if refuses == "confirm" else "HELD",
            units_left=refuses != "confirm",
        )  # fmt: skip
        passed = 0

        async def point(_name: str, world: World = world, ask_at: int = ask_at, fault_at: int = fault_at) -> None:
            nonlocal passed
            passed += 1
            if passed - 1 == ask_at:
                world.sagas.compensate()
            if passed - 1 == fault_at:
                world.mishaps += 1
                raise Killed

        await carried(a_worker(world, point), world.sagas.saga())
        await to_the_end(world, point)
        world.check_end()


def test_only_the_first_step_of_a_refund_can_turn_it_back() -> None:
    assert Progress(steps_done=0, kind=Kind.REFUND).refused("NO").phase is Phase.UNDONE
    assert Progress(steps_done=0, kind=Kind.REFUND).succeeded().succeeded().phase is Phase.DONE
