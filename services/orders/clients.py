"""The clients of catalog, inventory and payments: batched, with the values of `domain`."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from google.protobuf.duration_pb2 import Duration

from services.chassis.batcher import Batcher
from services.chassis.client.target import Target
from services.chassis.errors import AppError, Refused, RequestIdReused
from services.chassis.money import Money
from services.chassis.server import statuses, wire
from services.orders.domain import HOLD_SECONDS, DraftOrder, Payment, PaymentState, Product, RequestedLine, State
from services.orders.saga.attempts import PaymentTerms
from services.orders.saga.plan import Saga, Withdrawn
from stampede.catalog.v1 import snapshot_service_pb2 as catalog_pb
from stampede.catalog.v1.snapshot_service_pb2_grpc import SnapshotServiceStub
from stampede.inventory.v1 import flash_sale_service_pb2 as sale_pb
from stampede.inventory.v1 import reservation_service_pb2 as inventory_pb
from stampede.inventory.v1.flash_sale_service_pb2_grpc import FlashSaleServiceStub
from stampede.inventory.v1.reservation_service_pb2_grpc import ReservationServiceStub
from stampede.payments.v1 import charge_service_pb2 as payments_pb
from stampede.payments.v1.charge_service_pb2_grpc import ChargeServiceStub

_PRODUCT_SECONDS = 1.0
_PRODUCTS_MOST = 100_000
_SALES_MOST = 10_000
_CHARGE_SECONDS = 6.0
# A cancellation reaches this process within this time, if events arrive. An order that has waited longer is read again;
# while they do not arrive, each order is.
_READ_AGAIN_SECONDS = 1.0


class Catalog:
    """Products, cached for a second; a caller that needs their prices of now says so."""

    def __init__(self, target: Target) -> None:
        self._target, self._stub = target, SnapshotServiceStub(target.channel)
        self._cache: dict[uuid.UUID, tuple[Product, float]] = {}
        # Of at most 20 products each; a call takes 1,000.
        self._fetch = Batcher("snapshots", self._fetch_batch, size_max=50)

    async def products(
        self, ids: Sequence[uuid.UUID], *, fresh: Collection[uuid.UUID] = ()
    ) -> dict[uuid.UUID, Product]:
        """Those of `ids` that exist. One batch fetches all that are not cached, and those in `fresh`."""
        now = time.monotonic()
        found: dict[uuid.UUID, Product] = {}
        missing: list[uuid.UUID] = []
        for id_ in ids:
            product, fetched = self._cache.get(id_, (None, 0.0))
            if product and now - fetched < _PRODUCT_SECONDS and id_ not in fresh:
                found[id_] = product
            else:
                missing.append(id_)
        return found | await self._fetch(tuple(missing)) if missing else found

    async def _fetch_batch(self, items: Sequence[tuple[uuid.UUID, ...]]) -> list[dict[uuid.UUID, Product]]:
        ids = dict.fromkeys(id_ for item in items for id_ in item)
        request = catalog_pb.GetSnapshotsRequest(product_ids=map(str, ids))
        response = await self._target.call(self._stub.GetSnapshots, request)
        fetched = {uuid.UUID(snapshot.product_id): _product(snapshot) for snapshot in response.snapshots}
        if len(self._cache) > _PRODUCTS_MOST:
            self._cache.clear()
        now = time.monotonic()
        self._cache.update({id_: (product, now) for id_, product in fetched.items()})
        return [{id_: fetched[id_] for id_ in item if id_ in fetched} for item in items]


@dataclass(frozen=True, slots=True)
class Hold:
    """The hold of an order, and the pools of its units. A batch that waits for another pool does not delay it."""

    order_id: uuid.UUID
    pools: tuple[uuid.UUID, ...] = ()
    abandoned: bool = False
    """Whether its customer gave up paying; only `release` reads it."""
    reholds: int = 0
    """How often its units were held again."""


@dataclass(frozen=True, slots=True)
class Return:
    """Sold units that come back, under an id that makes a repeat harmless."""

    id: uuid.UUID
    hold: Hold
    lines: tuple[tuple[uuid.UUID, int], ...] = ()
    """Products and quantities; none for all units that are still out."""


_Reserved = inventory_pb.Reservation | Exception
_Settling = Batcher[Hold, inventory_pb.Reservation]
_Moving = Batcher[Saga, Payment]
StillWanted = Callable[[Sequence[tuple[uuid.UUID, int]]], Awaitable[set[tuple[uuid.UUID, int]]]]
"""Of some sagas, by order id and fencing token: those that are neither taken over nor to turn back."""


class Inventory:
    """Holds stock, and settles holds."""

    def __init__(self, target: Target, *, unpaid_stock_seconds: int = HOLD_SECONDS) -> None:
        """Ordinary stock is held for `unpaid_stock_seconds` for an order without a payment method."""
        self._target, self._stub = target, ReservationServiceStub(target.channel)
        self._unpaid_stock_seconds = unpaid_stock_seconds
        self._sales = FlashSaleServiceStub(target.channel)
        self._final_prices: dict[uuid.UUID, tuple[uuid.UUID, Money]] = {}
        """Products and prices of sales that have begun: a sale keeps its price from then on."""
        self._fetch_prices = Batcher("sale_prices", self._fetch_prices_batch)
        confirm = partial(self._settle, self._stub.BatchConfirm, inventory_pb.BatchConfirmRequest)
        retake_request = partial(inventory_pb.BatchConfirmRequest, retake=True)
        retake = partial(self._settle, self._stub.BatchConfirm, retake_request)
        extend = partial(self._settle, self._stub.BatchExtend, inventory_pb.BatchExtendRequest)
        # Items of other pools go past a batch that is stuck on a locked row: a sale's, or that of a product's stock.
        self.reserve = Batcher("reserve", self._reserve, size_max=256, keys=lambda draft: draft.pools)
        self.confirm: _Settling = Batcher("confirm", confirm, size_max=256, keys=lambda hold: hold.pools)
        self.retake: _Settling = Batcher("retake", retake, size_max=256, keys=lambda hold: hold.pools)
        self.extend: _Settling = Batcher("extend", extend, size_max=256, keys=lambda hold: hold.pools)
        self.release: _Settling = Batcher("release", self._release, size_max=256, keys=lambda hold: hold.pools)
        self.restock = Batcher("restock", self._restock, keys=lambda units: units.hold.pools)

    async def sale_prices(self, lines: Sequence[RequestedLine]) -> dict[uuid.UUID, Money]:
        """The prices of flash lines, by product; none for a sale that has not begun, or is not of that product."""
        flash = [line for line in lines if line.sale_id]
        known = {line.sale_id: self._final_prices.get(line.sale_id) for line in flash if line.sale_id}
        if missing := [sale_id for sale_id, found in known.items() if found is None]:
            known.update(zip(missing, await asyncio.gather(*map(self._fetch_prices, missing)), strict=True))
        found = ((line.product_id, known[line.sale_id]) for line in flash if line.sale_id)
        return {product_id: sale[1] for product_id, sale in found if sale and sale[0] == product_id}

    async def _fetch_prices_batch(
        self, sale_ids: Sequence[uuid.UUID]
    ) -> list[tuple[uuid.UUID, Money] | Exception | None]:
        distinct = list(dict.fromkeys(sale_ids))
        found = dict(zip(distinct, await asyncio.gather(*map(self._final_price, distinct)), strict=True))
        if len(self._final_prices) > _SALES_MOST:
            self._final_prices.clear()
        self._final_prices.update({sale_id: price for sale_id, price in found.items() if isinstance(price, tuple)})
        return [found[sale_id] for sale_id in sale_ids]

    async def _final_price(self, sale_id: uuid.UUID) -> tuple[uuid.UUID, Money] | Exception | None:
        try:
            sale = await self._target.call(self._sales.GetFlashSale, sale_pb.GetFlashSaleRequest(sale_id=str(sale_id)))
        except Refused:  # there is none; inventory says so when the order asks for its units
            return None
        except AppError as error:
            return error
        if sale.state in (sale_pb.FlashSale.STATE_UNSPECIFIED, sale_pb.FlashSale.SCHEDULED):
            return None
        return uuid.UUID(sale.product_id), wire.money_of(sale.sale_price)

    async def _reserve(self, drafts: Sequence[DraftOrder]) -> list[_Reserved]:
        # Deduplicated by order id: concurrent repeats of one request share one item and one answer.
        distinct: dict[uuid.UUID, DraftOrder] = {}
        for draft in drafts:
            distinct.setdefault(draft.id, draft)
        holds = [_hold(draft, self._unpaid_stock_seconds) for draft in distinct.values()]
        request = inventory_pb.BatchReserveRequest(holds=holds)
        response = await self._target.call(self._stub.BatchReserve, request)
        outcomes = dict(zip(distinct, _reservations(response.outcomes), strict=True))
        return [
            outcomes[draft.id]
            if draft.digest == distinct[draft.id].digest or isinstance(outcomes[draft.id], Exception)
            else RequestIdReused(requestId=draft.id)
            for draft in drafts
        ]

    async def _release(self, holds: Sequence[Hold]) -> list[_Reserved]:
        abandoned = dict.fromkeys(str(hold.order_id) for hold in holds if hold.abandoned)
        again = {hold.order_id: hold.reholds for hold in holds if hold.reholds}
        reholds = [inventory_pb.Rehold(id=str(order_id), number=number) for order_id, number in again.items()]
        return await self._settle(
            self._stub.BatchRelease, inventory_pb.BatchReleaseRequest, holds, abandoned_ids=abandoned, reholds=reholds
        )

    async def rehold(self, hold: Hold) -> inventory_pb.Reservation:
        """Holds the units of a released hold again, by the rules of a new order; raises its refusals."""
        request = inventory_pb.BatchReholdRequest(
            reholds=[inventory_pb.Rehold(id=str(hold.order_id), number=hold.reholds)]
        )
        (outcome,) = _reservations((await self._target.call(self._stub.BatchRehold, request)).outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _settle(self, method: Any, request: Any, holds: Sequence[Hold], **more: Any) -> list[_Reserved]:
        # A saga that was taken over in its process may meet its successor in a batch: they share one item.
        ids = dict.fromkeys(str(hold.order_id) for hold in holds)
        response = await self._target.call(method, request(ids=ids, **more))
        outcomes = dict(zip(ids, _reservations(response.outcomes), strict=True))
        return [outcomes[str(hold.order_id)] for hold in holds]

    async def _restock(self, returns: Sequence[Return]) -> list[inventory_pb.Return | Exception]:
        response = await self._target.call(
            self._stub.BatchCreateReturns, inventory_pb.BatchCreateReturnsRequest(returns=map(_return, returns))
        )
        return [o.returned if o.HasField("returned") else statuses.from_refusal(o.refusal) for o in response.outcomes]


class Payments:
    """Moves the money of orders."""

    def __init__(
        self,
        target: Target,
        *,
        still_wanted: StillWanted | None = None,
        events_arrive: Callable[[], bool] = lambda: True,
    ) -> None:
        """`still_wanted` reads which of some sagas still want to charge, before those that have waited are charged.

        `events_arrive`: whether this process hears of the cancellations that others accept.
        """
        self._target, self._stub, self._still_wanted = target, ChargeServiceStub(target.channel), still_wanted
        self._events_arrive = events_arrive
        cancel = partial(self._move, self._stub.BatchCancel, payments_pb.BatchCancelRequest)
        reverse = partial(self._move, self._stub.BatchReverse, payments_pb.BatchReverseRequest)
        # A batch answers when its slowest charge does, so several run at once. Payments that are known to have changed
        # do not wait for those that the provider still works on, and charges do not wait for payments without a card.
        self.charge: _Moving = Batcher("charge", self._charge, size_max=64, lanes=8)
        self.open: _Moving = Batcher("open", self._charge, size_max=64, lanes=4)
        self.charge_changed: _Moving = Batcher("charge_changed", self._charge, size_max=64, lanes=2)
        self.cancel: _Moving = Batcher("cancel", cancel, size_max=64, lanes=4)
        self.reverse: _Moving = Batcher("reverse", reverse, size_max=64, lanes=4)
        self.refund = Batcher("refund", self._refund, size_max=64, lanes=2)

    async def _charge(self, sagas: Sequence[Saga]) -> list[Payment | Exception]:
        await self._withdraw_unwanted(sagas)
        wanted = [saga for saga in sagas if not saga.withdrawn]
        if not wanted:
            return [Withdrawn() for _ in sagas]
        outcomes = iter(await self._move(self._stub.BatchCharge, payments_pb.BatchChargeRequest, wanted))
        # Not by `withdrawn`, which may change during the call.
        charged = set(map(id, wanted))
        return [next(outcomes) if id(saga) in charged else Withdrawn() for saga in sagas]

    async def _withdraw_unwanted(self, sagas: Sequence[Saga]) -> None:
        """Looks again, before the charge, at the sagas that have waited: for a slot, or in a batch."""
        now, patience = time.monotonic(), _READ_AGAIN_SECONDS if self._events_arrive() else 0.0
        waited = [saga for saga in sagas if not saga.withdrawn and now - saga.read_time > patience]
        if waited and self._still_wanted:
            wanted = await self._still_wanted([(saga.order_id, saga.fencing_token) for saga in waited])
            for saga in waited:
                saga.read_time, saga.withdrawn = now, (saga.order_id, saga.fencing_token) not in wanted

    async def check_terms(self, customer_id: uuid.UUID, terms: PaymentTerms, *, with_card: bool) -> None:
        """Raises `InvalidFields` as payments does, if an attempt with these terms could not begin."""
        request = payments_pb.CheckTermsRequest(customer_id=str(customer_id), terms=_terms(terms), with_card=with_card)
        await self._target.call(self._stub.CheckTerms, request)

    async def read(self, order_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Payment]:
        """The payments of at most 200 orders as payments has them now, by order; those that exist."""
        request = payments_pb.GetPaymentsRequest(order_ids=map(str, order_ids))
        response = await self._target.call(self._stub.GetPayments, request)
        outcomes = zip(order_ids, map(_payment, response.outcomes), strict=True)
        return {order_id: payment for order_id, payment in outcomes if isinstance(payment, Payment)}

    async def _move(self, method: Any, request: Any, sagas: Sequence[Saga]) -> list[Payment | Exception]:
        # One item for each order, as in `Inventory._settle`: payments refuses a batch that names an order twice.
        charges = {saga.order_id: _charge_item(saga) for saga in sagas}
        response = await self._target.call(method, request(charges=charges.values()), seconds=_CHARGE_SECONDS)
        outcomes = dict(zip(charges, map(_payment, response.outcomes), strict=True))
        return [outcomes[saga.order_id] for saga in sagas]

    async def _refund(self, sagas: Sequence[Saga]) -> list[payments_pb.RefundStatus | Exception]:
        # One item for each order here too: a batch refused as a whole would turn back all of its sagas.
        refunds = {saga.order_id: _refund_item(saga) for saga in sagas}
        request = payments_pb.BatchCreateRefundsRequest(refunds=refunds.values())
        response = await self._target.call(self._stub.BatchCreateRefunds, request, seconds=_CHARGE_SECONDS)
        outcomes = {
            order_id: o.refund if o.HasField("refund") else statuses.from_refusal(o.refusal)
            for order_id, o in zip(refunds, response.outcomes, strict=True)
        }
        return [outcomes[saga.order_id] for saga in sagas]


def _reservations(outcomes: Sequence[inventory_pb.ReservationOutcome]) -> list[_Reserved]:
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
        status.refunded.minor_units,
        status.refunding.minor_units,
        status.in_process,
        status.disputed,
        attempt=status.attempt,
        latest_attempt=status.latest_attempt,
        checkout_url=status.checkout_url,
        provider_order_id=status.provider_order_id,
    )


def _charge_item(saga: Saga) -> payments_pb.Charge:
    return payments_pb.Charge(
        order_id=str(saga.order_id),
        customer_id=str(saga.customer_id),
        amount=wire.money(saga.total),
        payment_method=saga.payment_method,
        hold_expire_time=wire.timestamp(saga.hold_expire_time),
        attempt=saga.payment_attempt,
        terms=_terms(saga.terms, hold_expire_time=saga.hold_expire_time) if saga.terms else None,
    )


def _terms(terms: PaymentTerms, *, hold_expire_time: datetime | None = None) -> payments_pb.AttemptTerms:
    return payments_pb.AttemptTerms(
        provider=terms.provider,
        checkout=terms.checkout,
        return_url=terms.return_url,
        saved_method_id=terms.saved_method_id,
        save_method=terms.save_method,
        hold_expire_time=wire.timestamp(hold_expire_time) if hold_expire_time else None,
    )


def _refund_item(saga: Saga) -> payments_pb.Refund:
    assert saga.refund
    return payments_pb.Refund(
        refund_id=str(saga.refund.id),
        order_id=str(saga.order_id),
        amount=wire.money(saga.refund.amount) if saga.refund.amount else None,
        reason="order cancelled" if saga.refund.wanted is State.CANCELLED else "order refunded",
    )


def _return(units: Return) -> inventory_pb.Return:
    return inventory_pb.Return(
        return_id=str(units.id),
        reservation_id=str(units.hold.order_id),
        lines=[inventory_pb.ReturnLine(product_id=str(id_), quantity=quantity) for id_, quantity in units.lines],
    )


def hold_seconds(draft: DraftOrder, unpaid_stock_seconds: int) -> int:
    """For how long to ask inventory for stock.

    A flash sale decides for its own units. Ordinary stock is held shorter for an order that no card is charged for,
    because nothing shows yet that its customer will pay.
    """
    unpaid_stock = not draft.payment_method and any(line.sale_id is None for line in draft.lines)
    return unpaid_stock_seconds if unpaid_stock else HOLD_SECONDS


def _hold(draft: DraftOrder, unpaid_stock_seconds: int) -> inventory_pb.Hold:
    return inventory_pb.Hold(
        id=str(draft.id),
        customer_id=str(draft.customer_id),
        duration=Duration(seconds=hold_seconds(draft, unpaid_stock_seconds)),
        lines=[
            inventory_pb.HoldLine(
                product_id=str(line.product_id),
                flash_sale_id=str(line.sale_id) if line.sale_id else "",
                quantity=line.quantity,
            )
            for line in draft.lines
        ],
    )


def _product(snapshot: catalog_pb.Snapshot) -> Product:
    return Product(
        uuid.UUID(snapshot.product_id), snapshot.sku, snapshot.name, wire.money_of(snapshot.price), snapshot.active
    )
