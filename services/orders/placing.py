"""Placing an order: hold the stock, then write the order, then let its saga run."""

import asyncio
import hashlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from services.chassis import ids, request_context, telemetry
from services.chassis.batcher import Batcher
from services.chassis.data.db import Database
from services.chassis.errors import AppError, RateLimited, Refused, RequestIdReused
from services.chassis.events.outbox import Relay
from services.chassis.server import wire
from services.orders import domain, store
from services.orders.domain import Address, HoldEnded, Order, Product, Wish
from services.orders.latch import Latch
from services.orders.partners import Catalog, Held, HoldRequest, Inventory
from services.orders.saga import Progress, Saga
from services.orders.store import NewOrder
from services.orders.worker import Worker
from stampede.inventory.v1.reservation_service_pb2 import Reservation

# How long an answer may wait for the client secret. The order is placed all the same.
_SECRET_SECONDS = 5.0
# Inventory's reasons.
_SOLD_OUT, _NOT_LIVE, _CUSTOMER_LIMIT = "SOLD_OUT", "SALE_NOT_LIVE", "CUSTOMER_LIMIT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """What a customer asks for, under a request id."""

    customer_id: uuid.UUID
    request_id: uuid.UUID
    content: bytes
    """What is asked for, as bytes: tells a repeat from another order under the same request id."""
    wishes: tuple[Wish, ...]
    payment_method: str
    shipping_address: Address | None

    @property
    def sale_ids(self) -> list[uuid.UUID]:
        """The flash sales it buys in."""
        return [wish.sale_id for wish in self.wishes if wish.sale_id]

    @property
    def digest(self) -> bytes:
        """Over `content`; made when needed, which for most of a crowd it never is."""
        return hashlib.sha256(self.content).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An order that is not priced yet: its units are about to be held."""

    id: uuid.UUID
    customer_id: uuid.UUID
    request_id: uuid.UUID
    digest: bytes
    wishes: tuple[Wish, ...]
    products: Mapping[uuid.UUID, Product]
    """As the catalog described them when the order was placed."""
    payment_method: str
    shipping_address: Address | None
    trace: str

    @property
    def held(self) -> Held:
        return Held(self.id, tuple(wish.pool for wish in self.wishes))

    def priced(self, reservation: Reservation, *, lease_seconds: float) -> NewOrder:
        """The order, now that its units are held; raises what `domain.priced` raises.

        `lease_seconds` is how long this process alone may carry its saga; 0 leaves it to any process.
        """
        sale_prices = {
            uuid.UUID(line.product_id): wire.money_of(line.sale_price)
            for line in reservation.lines
            if line.HasField("sale_price")
        }
        lines, total = domain.priced(self.wishes, dict(self.products), sale_prices)
        return NewOrder(
            id=self.id,
            customer_id=self.customer_id,
            request_id=self.request_id,
            digest=self.digest,
            lines=lines,
            total=total,
            hold_expire_time=wire.datetime_of(reservation.expire_time),
            shipping_address=self.shipping_address,
            payment_method=self.payment_method,
            lease_seconds=lease_seconds,
            trace=self.trace,
        )


Placed = tuple[Order, "asyncio.Task[None] | None"]
"""An order, and its saga if it has started in this process."""


class Placer:
    """Places orders.

    The order's id is made from the customer and the request id, and is the reservation's id too.
    """

    def __init__(
        self,
        db: Database,
        *,
        catalog: Catalog,
        inventory: Inventory,
        worker: Worker,
        latch: Latch,
        relay: Relay,
        backlog_max: int,
    ) -> None:
        """With more than `backlog_max` orders placed and not settled, new ones are refused."""
        self._catalog, self._inventory = catalog, inventory
        self._worker, self._latch, self._relay, self._backlog_max = worker, latch, relay, backlog_max
        self._placing: set[asyncio.Task[Placed]] = set()
        self._insert: Batcher[NewOrder, tuple[Order, bool]] = Batcher("place", lambda new: store.insert(db, new))
        self._find: Batcher[tuple[uuid.UUID, uuid.UUID], Order | None] = Batcher(
            "find", lambda requests: store.find(db, requests)
        )
        self._db = db

    async def place(self, purchase: Purchase) -> Order:
        """Returns the order once its stock is held and it is durable; see `OrderService.PlaceOrder` for the refusals.

        Stock is held first, so that losers leave no order row. If this process dies in between, the hold expires; a
        repeat of the request finds it before that.
        """
        order_id = ids.derive_id(purchase.customer_id, purchase.request_id, now_ms=time.time_ns() // 1_000_000)
        if self._latch.knows(order_id):
            known = await self._find((purchase.customer_id, purchase.request_id))
            if known is not None:
                return _same(known, purchase)
        elif shut := self._latch.closed(purchase.sale_ids):
            raise shut.copy()
        if len(self._placing) + self._worker.backlog >= self._backlog_max:
            # Another process may have placed it: a repeat must find its order, however long the backlog is.
            known = await self._find((purchase.customer_id, purchase.request_id))
            if known is None:
                raise RateLimited(what="orders")
            return _same(known, purchase)
        products = await self._catalog.products([wish.product_id for wish in purchase.wishes])
        domain.check_products(purchase.wishes, products)
        # The client may hang up from here on, but a hold must become an order or be released.
        placing = asyncio.create_task(self._hold_and_write(_draft(order_id, purchase, products)))
        self._placing.add(placing)
        placing.add_done_callback(self._done)
        order, running = await asyncio.shield(placing)
        if running is None or purchase.payment_method:
            return order
        # To pay, the customer needs the provider's secret. It is stored when the saga pauses for the customer.
        await asyncio.wait({running}, timeout=_SECRET_SECONDS)
        return await store.get(self._db, order.id, customer_id=None)

    async def drain(self, seconds: float) -> None:
        """Waits at most `seconds` for orders that are being placed, also those whose clients have gone."""
        if self._placing:
            await asyncio.wait(set(self._placing), timeout=seconds)

    def _done(self, placing: asyncio.Task[Placed]) -> None:
        self._placing.discard(placing)
        if not placing.cancelled():
            placing.exception()  # retrieved: asyncio would log it where the client has gone

    async def _hold_and_write(self, draft: Draft) -> Placed:
        reservation = await self._reserve(HoldRequest(draft.id, draft.customer_id, draft.wishes, draft.digest), draft)
        with self._worker.place() as lease_seconds:
            try:
                new = draft.priced(reservation, lease_seconds=lease_seconds)
            except AppError:
                # The hold may belong to an order that was placed at other prices.
                if known := await self._find((draft.customer_id, draft.request_id)):
                    return _same(known, draft), None
                await self._inventory.release(draft.held)
                raise
            return await self._write(new, reservation)

    async def _reserve(self, wanted: HoldRequest, draft: Draft) -> Reservation:
        sale_ids = [wish.sale_id for wish in draft.wishes if wish.sale_id]
        with self._latch.asking(sale_ids) as shut:
            if shut:
                raise shut.copy()
            try:
                reservation = await self._inventory.reserve(wanted)
            except (Refused, RequestIdReused) as refusal:
                self._note(refusal)
                if refusal.reason == RequestIdReused.reason:
                    raise RequestIdReused(requestId=draft.request_id) from refusal
                raise
            for sale_id in sale_ids:
                self._latch.open(sale_id)
            return reservation

    def _note(self, refusal: AppError) -> None:
        if not isinstance(refusal, Refused) or "flashSaleId" not in refusal.metadata:
            return
        sale_id = uuid.UUID(refusal.metadata["flashSaleId"])
        # Closed only for what everybody would hear: who asks for too many, or has had enough, must not shut it.
        if refusal.reason == _NOT_LIVE or (refusal.reason == _SOLD_OUT and refusal.metadata["remaining"] == "0"):
            self._latch.close(sale_id, refusal)
        elif refusal.reason in (_SOLD_OUT, _CUSTOMER_LIMIT):
            self._latch.open(sale_id)

    async def _write(self, new: NewOrder, reservation: Reservation) -> Placed:
        if reservation.state not in (Reservation.HELD, Reservation.CONFIRMED):
            # A repeat that comes long after. Only an order that was written then can answer it.
            known = await self._find((new.customer_id, new.request_id))
            if known is None:
                raise HoldEnded(requestId=new.request_id)
            return _same(known, new), None
        order, is_new = await self._insert(new)
        self._latch.placed([order.id])
        if not is_new:
            if order.id != new.id:
                await self._inventory.release(Held(new.id))  # the id's period has ended since; see ids.derive_id
            return _same(order, new), None
        self._relay.nudge()
        telemetry.log_info("order placed", order_id=order.id)
        if not new.lease_seconds:
            return order, None  # whoever has time takes its saga up
        saga = Saga(
            order_id=order.id,
            customer_id=order.customer_id,
            total=order.total,
            payment_method=new.payment_method,
            hold_expire_time=order.hold_expire_time,
            progress=Progress(),
            fence=1,
            pools=tuple(line.sale_id or line.product_id for line in order.lines),
        )
        return order, self._worker.start(saga)


def _draft(order_id: uuid.UUID, purchase: Purchase, products: Mapping[uuid.UUID, Product]) -> Draft:
    return Draft(
        id=order_id,
        customer_id=purchase.customer_id,
        request_id=purchase.request_id,
        digest=purchase.digest,
        wishes=purchase.wishes,
        products=products,
        payment_method=purchase.payment_method,
        shipping_address=purchase.shipping_address,
        trace=request_context.current().request_id,
    )


def _same(known: Order, wanted: Draft | NewOrder | Purchase) -> Order:
    if known.digest != wanted.digest:
        raise RequestIdReused(requestId=wanted.request_id)
    return known
