"""The other services, as orders needs them: batched, and in orders' own words."""

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import structlog
from google.protobuf.duration_pb2 import Duration

from services.chassis.batcher import Batcher
from services.chassis.client.target import Target
from services.chassis.errors import AppError, Refused, RequestIdReused
from services.chassis.server import statuses, wire
from services.orders.domain import HOLD_SECONDS, Payment, PaymentState, Product, State, Wish
from services.orders.saga import RESERVATION_LOST, Saga, StepRefused, StepWaits
from stampede.catalog.v1 import snapshot_service_pb2 as catalog_pb
from stampede.catalog.v1.snapshot_service_pb2_grpc import SnapshotServiceStub
from stampede.inventory.v1 import reservation_service_pb2 as inventory_pb
from stampede.inventory.v1.reservation_service_pb2_grpc import ReservationServiceStub
from stampede.payments.v1 import charge_service_pb2 as payments_pb
from stampede.payments.v1.charge_service_pb2_grpc import ChargeServiceStub

log = structlog.get_logger()

_PRODUCT_SECONDS = 1.0
_PRODUCTS_MOST = 100_000
_CHARGE_SECONDS = 6.0

_GONE = (PaymentState.CANCELLED, PaymentState.FAILED, PaymentState.REFUNDED)


class Catalog:
    """Products as they were within the last second."""

    def __init__(self, target: Target) -> None:
        self._target, self._stub = target, SnapshotServiceStub(target.channel)
        self._known: dict[uuid.UUID, tuple[Product, float]] = {}
        self._fetch = Batcher("snapshots", self._fetch_batch)

    async def products(self, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Product]:
        """Those of `ids` that exist."""
        now = time.monotonic()
        found: dict[uuid.UUID, Product] = {}
        for id_ in ids:
            known = self._known.get(id_)
            product = known[0] if known and now - known[1] < _PRODUCT_SECONDS else await self._fetch(id_)
            if product:
                found[id_] = product
        return found

    async def _fetch_batch(self, ids: Sequence[uuid.UUID]) -> list[Product | Exception | None]:
        request = catalog_pb.GetSnapshotsRequest(product_ids=[str(id_) for id_ in dict.fromkeys(ids)])
        response = await self._target.call(self._stub.GetSnapshots, request)
        fetched = {uuid.UUID(s.product_id): _product(s) for s in response.snapshots}
        if len(self._known) > _PRODUCTS_MOST:
            self._known.clear()
        now = time.monotonic()
        self._known.update({id_: (product, now) for id_, product in fetched.items()})
        return [fetched.get(id_) for id_ in ids]


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """What to hold for an order."""

    order_id: uuid.UUID
    customer_id: uuid.UUID
    wishes: tuple[Wish, ...]
    digest: bytes = b""
    """Over what the request asked for besides, to tell a repeat from another under the same id."""


@dataclass(frozen=True, slots=True)
class Held:
    """What is held for an order, and of which pools: flash sales, and products for ordinary stock."""

    order_id: uuid.UUID
    pools: tuple[uuid.UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class UnitsBack:
    """Sold units that come back, under an id that makes a repeat harmless."""

    id: uuid.UUID
    held: Held
    lines: tuple[tuple[uuid.UUID, int], ...] = ()
    """Products and how many units; none for all that is still out."""


class Inventory:
    """Holds stock, and settles what became of it."""

    def __init__(self, target: Target) -> None:
        self._target, self._stub = target, ReservationServiceStub(target.channel)
        self.reserve = Batcher("reserve", self._reserve, size_max=256, keys=_pools)
        self.confirm = Batcher("confirm", self._confirm, size_max=256, keys=_held_pools)
        self.extend = Batcher("extend", self._extend, size_max=256, keys=_held_pools)
        self.release = Batcher("release", self._release, size_max=256, keys=_held_pools)
        self.restock = Batcher("restock", self._restock, keys=lambda back: back.held.pools)

    async def _reserve(self, holds: Sequence[HoldRequest]) -> list[inventory_pb.Reservation | Exception]:
        # One id in two items would be one item too many: a client that repeats itself at once gets one answer twice.
        distinct: dict[uuid.UUID, HoldRequest] = {}
        for hold in holds:
            distinct.setdefault(hold.order_id, hold)
        request = inventory_pb.BatchReserveRequest(holds=map(_hold, distinct.values()))
        response = await self._target.call(self._stub.BatchReserve, request)
        outcomes = dict(zip(distinct, _settled(response.outcomes), strict=True))
        return [_answer(hold, distinct[hold.order_id], outcomes[hold.order_id]) for hold in holds]

    async def _confirm(self, holds: Sequence[Held]) -> list[inventory_pb.Reservation | Exception]:
        request = inventory_pb.BatchConfirmRequest(ids=[str(held.order_id) for held in holds])
        return _settled((await self._target.call(self._stub.BatchConfirm, request)).outcomes)

    async def _extend(self, holds: Sequence[Held]) -> list[inventory_pb.Reservation | Exception]:
        request = inventory_pb.BatchExtendRequest(ids=[str(held.order_id) for held in holds])
        return _settled((await self._target.call(self._stub.BatchExtend, request)).outcomes)

    async def _release(self, holds: Sequence[Held]) -> list[inventory_pb.Reservation | Exception]:
        request = inventory_pb.BatchReleaseRequest(ids=[str(held.order_id) for held in holds])
        return _settled((await self._target.call(self._stub.BatchRelease, request)).outcomes)

    async def _restock(self, backs: Sequence[UnitsBack]) -> list[inventory_pb.Return | Exception]:
        response = await self._target.call(
            self._stub.BatchCreateReturns, inventory_pb.BatchCreateReturnsRequest(returns=map(_units_back, backs))
        )
        return [o.returned if o.HasField("returned") else statuses.from_refusal(o.refusal) for o in response.outcomes]


class Payments:
    """Moves the money of orders."""

    def __init__(self, target: Target) -> None:
        self._target, self._stub = target, ChargeServiceStub(target.channel)
        # A batch answers when its slowest charge does, so several are under way at once. Payments that are known to
        # have got on need not wait with those that the provider still works on.
        self.charge = Batcher("charge", self._charge, size_max=64, lanes=8)
        self.charged = Batcher("charged", self._charge, size_max=64, lanes=2)
        self.cancel = Batcher("cancel", self._cancel, size_max=64, lanes=4)
        self.refund = Batcher("refund", self._refund, size_max=64, lanes=4)
        self.refund_part = Batcher("refund_part", self._refund_part, size_max=64, lanes=2)

    async def _charge(self, sagas: Sequence[Saga]) -> list[Payment | Exception]:
        request = payments_pb.BatchChargeRequest(charges=map(_charge_item, sagas))
        response = await self._target.call(self._stub.BatchCharge, request, seconds=_CHARGE_SECONDS)
        return [_payment(outcome) for outcome in response.outcomes]

    async def _cancel(self, sagas: Sequence[Saga]) -> list[Payment | Exception]:
        request = payments_pb.BatchCancelRequest(charges=map(_charge_item, sagas))
        response = await self._target.call(self._stub.BatchCancel, request, seconds=_CHARGE_SECONDS)
        return [_payment(outcome) for outcome in response.outcomes]

    async def _refund(self, sagas: Sequence[Saga]) -> list[Payment | Exception]:
        request = payments_pb.BatchReverseRequest(charges=map(_charge_item, sagas))
        response = await self._target.call(self._stub.BatchReverse, request, seconds=_CHARGE_SECONDS)
        return [_payment(outcome) for outcome in response.outcomes]

    async def _refund_part(self, sagas: Sequence[Saga]) -> list[payments_pb.RefundStatus | Exception]:
        request = payments_pb.BatchCreateRefundsRequest(refunds=map(_refund_item, sagas))
        response = await self._target.call(self._stub.BatchCreateRefunds, request, seconds=_CHARGE_SECONDS)
        return [o.refund if o.HasField("refund") else statuses.from_refusal(o.refusal) for o in response.outcomes]


class Steps:
    """The steps of `saga.PLANS`, carried out by inventory and payments."""

    def __init__(self, inventory: Inventory, payments: Payments) -> None:
        self._inventory, self._payments = inventory, payments

    async def charge(self, saga: Saga) -> None:
        """Begins or continues the payment."""
        saga.payment = await (self._payments.charge if saga.slow else self._payments.charged)(saga)
        if saga.payment.state in _GONE:
            raise StepRefused(saga.payment.failure_reason or f"PAYMENT_{saga.payment.state}")
        if saga.payment.state is not PaymentState.SUCCEEDED:
            raise StepWaits(for_customer=saga.payment.state is PaymentState.AWAITING_CUSTOMER)

    async def give_up(self, saga: Saga) -> None:
        """Cancels the payment; returns where the money has moved already."""
        saga.payment = await self._payments.cancel(saga)
        if saga.payment.state in _GONE:
            raise StepRefused(saga.progress.asked)
        if saga.payment.state is not PaymentState.SUCCEEDED:
            raise StepWaits(for_customer=False)  # the provider has not answered yet

    async def refund(self, saga: Saga) -> None:
        """Pays everything back."""
        saga.payment = await self._payments.refund(saga)
        if saga.payment.state not in _GONE:
            raise StepWaits(for_customer=False)

    async def confirm(self, saga: Saga) -> None:
        """Makes the held units the customer's."""
        try:
            await self._inventory.confirm(_held(saga))
        except Refused as refusal:
            if refusal.code in ("FAILED_PRECONDITION", "NOT_FOUND"):
                raise StepRefused(RESERVATION_LOST) from refusal
            raise

    async def extend(self, saga: Saga) -> None:
        """Has the units held for longer, once. Where they are held no more, nothing changes."""
        reservation = await self._inventory.extend(_held(saga))
        saga.hold_expire_time = wire.datetime_of(reservation.expire_time)
        log.info("asked for more time", order_id=saga.order_id, hold_expire_time=saga.hold_expire_time)

    async def release(self, saga: Saga) -> None:
        """Gives the units back, held or sold."""
        try:
            await self._inventory.release(_held(saga))
        except Refused as refusal:
            if refusal.reason == "WRONG_STATE":  # a confirmation that an operator takes back
                await self._inventory.restock(UnitsBack(saga.order_id, _held(saga)))
            elif refusal.code != "NOT_FOUND":  # nothing is held under it: as wished
                raise

    async def pay_back(self, saga: Saga) -> None:
        """Pays back what the saga's refund says."""
        if not saga.total.minor:
            return  # what cost nothing needs no payment back
        try:
            status = await self._payments.refund_part(saga)
        except Refused as refusal:
            if refusal.code in ("FAILED_PRECONDITION", "NOT_FOUND", "INVALID_ARGUMENT"):
                raise StepRefused(refusal.reason) from refusal
            raise
        saga.refunded_minor = max(saga.refunded_minor, status.refunded.minor_units)
        if status.state == payments_pb.RefundStatus.FAILED:
            raise StepRefused(status.failure_reason or "REFUND_FAILED")
        if status.state != payments_pb.RefundStatus.SUCCEEDED:
            raise StepWaits(for_customer=False)

    async def restock(self, saga: Saga) -> None:
        """Takes the units back that the saga's refund names."""
        assert saga.refund
        if not (saga.refund.restock or saga.refund.lines):
            return
        try:
            await self._inventory.restock(UnitsBack(saga.refund.id, _held(saga), saga.refund.lines))
        except Refused as refusal:
            if refusal.code not in ("FAILED_PRECONDITION", "NOT_FOUND"):
                raise
            log.warning("units do not come back", order_id=saga.order_id, reason=refusal.reason)
            raise StepRefused(refusal.reason) from refusal


def _held(saga: Saga) -> Held:
    return Held(saga.order_id, saga.pools)


def _pools(hold: HoldRequest) -> Iterator[uuid.UUID]:
    """What inventory may have to lock: a sale's row, or that of a product's stock."""
    return (wish.pool for wish in hold.wishes)


def _held_pools(held: Held) -> Iterable[uuid.UUID]:
    return held.pools


def _answer(
    hold: HoldRequest, first: HoldRequest, outcome: inventory_pb.Reservation | Exception
) -> inventory_pb.Reservation | Exception:
    """What became of `hold`, in whose place `first`, with the same id, was asked for."""
    if hold is first or isinstance(outcome, Exception):
        return outcome
    return outcome if hold == first else RequestIdReused(requestId=hold.order_id)


def _settled(outcomes: Sequence[inventory_pb.ReservationOutcome]) -> list[inventory_pb.Reservation | Exception]:
    return [o.reservation if o.HasField("reservation") else statuses.from_refusal(o.refusal) for o in outcomes]


def _payment(outcome: payments_pb.PaymentOutcome) -> Payment | AppError:
    if outcome.HasField("refusal"):
        return statuses.from_refusal(outcome.refusal)
    status = outcome.payment
    return Payment(
        uuid.UUID(status.payment_id),
        status.provider,
        PaymentState(payments_pb.PaymentStatus.State.Name(status.state)),
        status.client_secret,
        status.failure_reason,
        status.authenticating,
    )


def _charge_item(saga: Saga) -> payments_pb.Charge:
    return payments_pb.Charge(
        order_id=str(saga.order_id),
        customer_id=str(saga.customer_id),
        amount=wire.money(saga.total),
        payment_method=saga.payment_method,
    )


def _refund_item(saga: Saga) -> payments_pb.Refund:
    assert saga.refund
    return payments_pb.Refund(
        refund_id=str(saga.refund.id),
        order_id=str(saga.order_id),
        amount=wire.money(saga.refund.amount) if saga.refund.amount else None,
        reason="order cancelled" if saga.refund.wanted is State.CANCELLED else "order refunded",
    )


def _units_back(back: UnitsBack) -> inventory_pb.Return:
    return inventory_pb.Return(
        return_id=str(back.id),
        reservation_id=str(back.held.order_id),
        lines=[inventory_pb.ReturnLine(product_id=str(id_), quantity=quantity) for id_, quantity in back.lines],
    )


def _hold(hold: HoldRequest) -> inventory_pb.Hold:
    return inventory_pb.Hold(
        id=str(hold.order_id),
        customer_id=str(hold.customer_id),
        duration=Duration(seconds=HOLD_SECONDS),
        lines=[
            inventory_pb.HoldLine(
                product_id=str(wish.product_id),
                flash_sale_id=str(wish.sale_id) if wish.sale_id else "",
                quantity=wish.quantity,
            )
            for wish in hold.wishes
        ],
    )


def _product(snapshot: catalog_pb.Snapshot) -> Product:
    return Product(
        uuid.UUID(snapshot.product_id), snapshot.sku, snapshot.name, wire.money_of(snapshot.price), snapshot.active
    )
