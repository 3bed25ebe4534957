"""Placing an order: hold its stock, write the order, start its saga."""

import asyncio
import time
import uuid
from typing import NamedTuple

from services.chassis import telemetry
from services.chassis.batcher import Batcher
from services.chassis.data.db import Database
from services.chassis.errors import AppError, RateLimited, RequestIdReused
from services.chassis.events.outbox import Relay
from services.chassis.server import wire
from services.orders.clients import Catalog, Hold, Inventory
from services.orders.domain import DraftOrder, HoldEnded, Order, Product
from services.orders.placing import pricing
from services.orders.placing.recent_orders import RecentOrders
from services.orders.placing.sold_out_cache import SoldOutCache
from services.orders.saga import plan
from services.orders.saga.plan import Kind
from services.orders.saga.worker import STARTED, Worker
from services.orders.sql import combined, orders
from stampede.inventory.v1.reservation_service_pb2 import Reservation

# How long an answer may wait for the client secret. The order is placed in any case.
_SECRET_SECONDS = 5.0
_MAYBE_HELD_MOST = 20_000


class _Placed(NamedTuple):
    order: Order
    saga: "asyncio.Task[None] | None" = None
    """The order's saga, if it has started in this process."""


class Placer:
    """Places orders. The id of an order is made from the customer and the request id, and names its reservation too."""

    def __init__(
        self,
        db: Database,
        *,
        catalog: Catalog,
        inventory: Inventory,
        worker: Worker,
        sold_out: SoldOutCache,
        recent: RecentOrders,
        relay: Relay,
        backlog_max: int,
    ) -> None:
        """With `backlog_max` orders being placed and sagas running or due, new orders are refused."""
        self._db, self._catalog, self._inventory, self._worker = db, catalog, inventory, worker
        self._sold_out, self._recent, self._relay, self._backlog_max = sold_out, recent, relay, backlog_max
        self._maybe_held = RecentOrders(_MAYBE_HELD_MOST)
        """Orders that inventory holds stock for, or may: it has not answered yet, or its answer was lost."""
        self._placing: set[asyncio.Task[_Placed]] = set()
        self._write: Batcher[tuple[Order, float], tuple[Order, bool]] = Batcher(
            "place", lambda items: combined.place(db, items, holder=worker.holder)
        )
        self._find: Batcher[tuple[uuid.UUID, uuid.UUID], Order | None] = Batcher(
            "find", lambda requests: orders.find_by_requests(db, requests)
        )

    async def place(self, draft: DraftOrder) -> Order:
        """Returns the order once its stock is held and it is durable; `OrderService.PlaceOrder` has the refusals.

        Stock is held first, so that losers leave no row. If this process dies in between, the hold expires; a repeat
        of the request finds it before that.
        """
        if draft.id in self._recent:
            if known := await self._known(draft):
                return known
        elif draft.id not in self._maybe_held and (refusal := self._sold_out.refusal(draft.sale_ids)):
            raise refusal
        try:
            products = await self._products(draft)
        except AppError as refusal:
            # The products may have changed since the order was placed: a repeat must find it.
            is_final = refusal.code not in ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
            if is_final and (known := await self._known(draft)):
                return known
            raise
        if len(self._placing) + self._worker.backlog >= self._backlog_max:
            # Another process may have placed it: a repeat must find its order, however long the backlog is.
            if known := await self._known(draft):
                return known
            raise RateLimited(what="orders")
        # The client may hang up from here on, but a hold must become an order or be released.
        placing = asyncio.create_task(self._hold_and_write(draft, products))
        self._placing.add(placing)
        placing.add_done_callback(self._done)
        order, saga = await asyncio.shield(placing)
        if saga is None or draft.payment_method or not order.secret_wanted:
            return order
        # To pay, the customer needs the provider's secret, which is stored when the saga pauses for the customer.
        await asyncio.wait({saga}, timeout=_SECRET_SECONDS)
        return (await orders.get_many(self._db, [order.id]))[order.id]

    async def _products(self, draft: DraftOrder) -> dict[uuid.UUID, Product]:
        """The draft's products. Raises the refusals that need no stock; after them nothing is held."""
        ids = [line.product_id for line in draft.lines]
        if draft.expected_total is None:
            products = await self._catalog.products(ids)
            pricing.check_products(draft.lines, products)
            return products
        ordinary = {line.product_id for line in draft.lines if not line.sale_id}
        products, sale_prices = await asyncio.gather(
            self._catalog.products(ids, fresh=ordinary), self._inventory.sale_prices(draft.lines)
        )
        pricing.check_products(draft.lines, products)
        pricing.check_expected_total(draft, products, sale_prices)
        return products

    async def drain(self, seconds: float) -> None:
        """Waits at most `seconds` for orders that are being placed, also for clients that have hung up."""
        if self._placing:
            await asyncio.wait(set(self._placing), timeout=seconds)

    def _done(self, placing: asyncio.Task[_Placed]) -> None:
        self._placing.discard(placing)
        if not placing.cancelled():
            placing.exception()  # retrieved, else asyncio logs it for a client that has hung up

    async def _known(self, draft: DraftOrder) -> Order | None:
        """The order that was placed under the draft's request id, if any; raises `RequestIdReused`."""
        order = await self._find((draft.customer_id, draft.request_id))
        return _same(order, draft) if order else None

    async def _hold_and_write(self, draft: DraftOrder, products: dict[uuid.UUID, Product]) -> _Placed:
        reservation = await self._hold(draft)
        with self._worker.slot(opening=not draft.payment_method) as lease_seconds:
            try:
                order = _order(draft, products, reservation)
            except AppError:
                # The hold may belong to an order that was placed at other prices.
                if known := await self._known(draft):
                    return _Placed(known)
                await self._inventory.release(Hold(draft.id, draft.pools))
                raise
            if _has_ended(reservation):
                # A late repeat: only an order that was written before can answer it.
                if known := await self._known(draft):
                    return _Placed(known)
                raise HoldEnded(requestId=draft.request_id)
            return await self._write_and_start(order, lease_seconds)

    async def _hold(self, draft: DraftOrder) -> Reservation:
        # Its hold may be what the sale sold out with: a repeat must find it.
        sale_ids = [] if draft.id in self._maybe_held else draft.sale_ids
        try:
            with self._sold_out.asking(sale_ids):
                self._maybe_held.add([draft.id])
                return await self._inventory.reserve(draft)
        except AppError as error:
            if error.code not in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
                self._maybe_held.discard(draft.id)
            if error.reason == RequestIdReused.reason:
                raise RequestIdReused(requestId=draft.request_id) from error
            raise

    async def _write_and_start(self, draft: Order, lease_seconds: float) -> _Placed:
        order, is_new = await self._write((draft, lease_seconds))
        self._recent.add([order.id])
        if not is_new:
            if order.id != draft.id:
                await self._inventory.release(Hold(draft.id))  # the period of the derived id ended; see `ids.derive_id`
            return _Placed(_same(order, draft))
        STARTED.labels(Kind.PURCHASE).inc()
        self._relay.nudge()
        telemetry.log_info("order placed", order_id=order.id)
        # Without a lease, any process claims its saga.
        return _Placed(order, self._worker.start(plan.begin(order)) if lease_seconds else None)


def _has_ended(reservation: Reservation) -> bool:
    """Whether no order can be written for it any more. One that has just ended is in its grace, and still `HELD`."""
    if reservation.state == Reservation.HELD:
        return reservation.repeated and reservation.expire_time.ToSeconds() <= time.time()
    return reservation.state != Reservation.CONFIRMED


def _order(draft: DraftOrder, products: dict[uuid.UUID, Product], reservation: Reservation) -> Order:
    sale_prices = {
        uuid.UUID(line.product_id): wire.money_of(line.sale_price)
        for line in reservation.lines
        if line.HasField("sale_price")
    }
    return pricing.price(draft, products, sale_prices, hold_expire_time=wire.datetime_of(reservation.expire_time))


def _same(known: Order, draft: DraftOrder) -> Order:
    """`known`, unless it was placed for another request under the same id."""
    if known.digest != draft.digest:
        raise RequestIdReused(requestId=draft.request_id)
    return known
