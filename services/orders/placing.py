"""Placing an order: hold the stock, then write the order, then let its saga run."""

import asyncio
import hashlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from services.chassis import ids, request_context, telemetry
from services.chassis.batcher import Batcher
from services.chassis.data.db import Database
from services.chassis.errors import AppError, Refused, RequestIdReused
from services.chassis.events.outbox import Relay
from services.orders import domain, store
from services.orders.domain import Address, HoldEnded, Order, Product, Wish
from services.orders.latch import Latch
from services.orders.partners import Catalog, Held, HoldRequest, Inventory
from services.orders.queue import TICKET_BYTES_MOST, Draft, Queue
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
        queue: Queue,
        queue_above: int,
    ) -> None:
        """With more than `queue_above` orders placed and not settled, flash orders are queued."""
        self._db, self._catalog, self._inventory = db, catalog, inventory
        self._worker, self._latch, self._relay = worker, latch, relay
        self._holding: set[asyncio.Task[Order]] = set()
        self._insert: Batcher[NewOrder, tuple[Order, bool]] = Batcher("place", lambda new: store.insert(db, new))
        self._queue, self._queue_above = queue, queue_above

    async def place(self, purchase: Purchase) -> Order:
        """Returns the order once its stock is held and it is durable; see `OrderService.PlaceOrder` for the refusals.

        Losers leave no order row: stock is held first. Should this process die in between, the hold ends by itself, and
        a repeat of the request finds it before that.
        """
        order_id = ids.derived(purchase.customer_id, purchase.request_id, now_ms=time.time_ns() // 1_000_000)
        if self._latch.knows(order_id):
            known = await store.find(self._db, purchase.customer_id, purchase.request_id)
            if known is not None:
                return _same(known, purchase)
            # It is queued, and inventory knows it.
        elif shut := self._latch.closed(purchase.sale_ids):
            raise shut.again()
        products = await self._catalog.products([wish.product_id for wish in purchase.wishes])
        domain.check_products(purchase.wishes, products)
        # From here on the client may hang up, but what is held must become an order or be given back.
        holding = asyncio.create_task(self._hold_and_write(_draft(order_id, purchase, products)))
        self._holding.add(holding)
        holding.add_done_callback(self._held)
        return await asyncio.shield(holding)

    async def drain(self, seconds: float) -> None:
        """Lets orders that are being placed become so, for at most `seconds`, also those whose clients have gone."""
        if self._holding:
            await asyncio.wait(set(self._holding), timeout=seconds)

    def _held(self, holding: asyncio.Task[Order]) -> None:
        self._holding.discard(holding)
        if not holding.cancelled():
            holding.exception()  # seen, also where the client is no longer there to be told

    def _ticket(self, draft: Draft) -> bytes:
        """By which an order is queued: answered after its hold, written when there is time. Empty where it is not."""
        flash = any(wish.sale_id for wish in draft.wishes)
        if not flash or len(self._holding) + self._worker.backlog <= self._queue_above:
            return b""
        ticket = self._queue.seal.close(draft)
        return ticket if len(ticket) <= TICKET_BYTES_MOST else b""

    async def _hold_and_write(self, draft: Draft) -> Order:
        ticket = self._ticket(draft)
        wanted = HoldRequest(draft.id, draft.customer_id, draft.wishes, draft.digest, ticket)
        reservation = await self._reserve(wanted, draft)
        if reservation.ticket:
            known = await store.find(self._db, draft.customer_id, draft.request_id)
            return _same(known or self._queue.order_of(reservation.ticket, reservation), draft)
        with self._worker.place() as lease_seconds:
            order, running = await self._priced_and_written(draft, reservation, ticket, lease_seconds=lease_seconds)
        if running is None or draft.payment_method:
            return order
        # The customer needs the provider's secret to pay, which is there once the saga waits for them.
        await asyncio.wait({running}, timeout=_SECRET_SECONDS)
        return await store.get(self._db, order.id, customer_id=None)

    async def _priced_and_written(
        self, draft: Draft, reservation: Reservation, ticket: bytes, *, lease_seconds: float
    ) -> tuple[Order, asyncio.Task[None] | None]:
        """The order, queued with its ticket or written; and its saga, where that has begun here."""
        try:
            new = draft.priced(reservation, lease_seconds=lease_seconds)
        except AppError:
            # The hold may be that of an order which was placed at other prices.
            if known := await store.find(self._db, draft.customer_id, draft.request_id):
                return _same(known, draft), None
            await self._inventory.release(draft.held)
            if ticket:
                await self._inventory.drop_tickets([draft.id])
            raise
        if ticket and not reservation.repeated:
            self._queue.joined()
            self._latch.placed([draft.id])
            telemetry.line("order queued", order_id=draft.id)
            return store.as_placed(new, draft.place_time), None
        return await self._write(new, reservation)

    async def _reserve(self, wanted: HoldRequest, draft: Draft) -> Reservation:
        sale_ids = [wish.sale_id for wish in draft.wishes if wish.sale_id]
        # A repeat of an order that is queued must find it, however little is left.
        with self._latch.asking([] if self._latch.knows(draft.id) else sale_ids) as shut:
            if shut:
                raise shut.again()
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

    async def _write(self, new: NewOrder, reservation: Reservation) -> tuple[Order, asyncio.Task[None] | None]:
        if reservation.state not in (Reservation.HELD, Reservation.CONFIRMED):
            # A repeat that comes long after. Only an order that was written then can answer it.
            known = await store.find(self._db, new.customer_id, new.request_id)
            if known is None:
                raise HoldEnded(requestId=new.request_id)
            return _same(known, new), None
        order, is_new = await self._insert(new)
        self._latch.placed([order.id])
        if not is_new:
            if order.id != new.id:
                await self._inventory.release(Held(new.id))  # the id's period has ended since; see ids.derived
            return _same(order, new), None
        self._relay.nudge()
        telemetry.line("order placed", order_id=order.id)
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
        products=tuple(products[wish.product_id] for wish in purchase.wishes),
        payment_method=purchase.payment_method,
        shipping_address=purchase.shipping_address,
        trace=request_context.current().request_id,
        place_time=datetime.fromtimestamp(time.time(), UTC),
    )


def _same(known: Order, wanted: Draft | NewOrder | Purchase) -> Order:
    if known.digest != wanted.digest:
        raise RequestIdReused(requestId=wanted.request_id)
    return known
