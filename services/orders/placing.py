"""Placing an order: hold the stock, then write the order, then let its saga run."""

import asyncio
import hashlib
import time
import uuid
from dataclasses import dataclass

from services.chassis import calls, ids, telemetry, wire
from services.chassis.batcher import Batcher
from services.chassis.db import Database
from services.chassis.errors import AppError, Refused, RequestIdReused
from services.chassis.money import Money
from services.chassis.outbox import Relay
from services.orders import domain, store
from services.orders.domain import Address, HoldEnded, Order, Product, Wish
from services.orders.latch import Latch
from services.orders.partners import Catalog, HoldRequest, Inventory
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
        self, db: Database, *, catalog: Catalog, inventory: Inventory, worker: Worker, latch: Latch, relay: Relay
    ) -> None:
        self._db, self._catalog, self._inventory = db, catalog, inventory
        self._worker, self._latch, self._relay = worker, latch, relay
        self._holding: set[asyncio.Task[Order]] = set()
        self._insert: Batcher[NewOrder, tuple[Order, bool]] = Batcher("place", lambda new: store.insert(db, new))

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
        if shut := self._latch.closed(purchase.sale_ids):
            raise shut.again()
        products = await self._catalog.products([wish.product_id for wish in purchase.wishes])
        domain.check_products(purchase.wishes, products)
        # From here on the client may hang up, but what is held must become an order or be given back.
        holding = asyncio.create_task(self._hold_and_write(order_id, purchase, products))
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

    async def _hold_and_write(
        self, order_id: uuid.UUID, purchase: Purchase, products: dict[uuid.UUID, Product]
    ) -> Order:
        reservation = await self._reserve(order_id, purchase)
        try:
            lines, total = domain.priced(purchase.wishes, products, _sale_prices(reservation))
        except AppError:
            # The hold may be that of an order which was placed at other prices.
            if known := await store.find(self._db, purchase.customer_id, purchase.request_id):
                return _same(known, purchase)
            await self._inventory.release(order_id)
            raise
        new = NewOrder(
            id=order_id,
            customer_id=purchase.customer_id,
            request_id=purchase.request_id,
            digest=purchase.digest,
            lines=lines,
            total=total,
            hold_expire_time=wire.datetime_of(reservation.expire_time),
            shipping_address=purchase.shipping_address,
            payment_method=purchase.payment_method,
            lease_seconds=self._worker.lease_seconds,
            trace=calls.current().request_id,
        )
        return await self._write(new, reservation)

    async def _reserve(self, order_id: uuid.UUID, purchase: Purchase) -> Reservation:
        with self._latch.asking(purchase.sale_ids) as shut:
            if shut:
                raise shut.again()
            try:
                wanted = HoldRequest(order_id, purchase.customer_id, purchase.wishes)
                reservation = await self._inventory.reserve(wanted)
            except (Refused, RequestIdReused) as refusal:
                self._note(refusal)
                if refusal.reason == RequestIdReused.reason:
                    raise RequestIdReused(requestId=purchase.request_id) from refusal
                raise
            for sale_id in purchase.sale_ids:
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

    async def _write(self, new: NewOrder, reservation: Reservation) -> Order:
        if reservation.state not in (Reservation.HELD, Reservation.CONFIRMED):
            # A repeat that comes long after. Only an order that was written then can answer it.
            known = await store.find(self._db, new.customer_id, new.request_id)
            if known is None:
                raise HoldEnded(requestId=new.request_id)
            return _same(known, new)
        order, is_new = await self._insert(new)
        self._latch.placed([order.id])
        if not is_new:
            if order.id != new.id:
                await self._inventory.release(new.id)  # the id's period has ended since; see ids.derived
            return _same(order, new)
        self._relay.nudge()
        telemetry.line("order placed", order_id=order.id)
        if not new.lease_seconds:
            return order  # whoever has time takes its saga up
        saga = Saga(
            order_id=order.id,
            customer_id=order.customer_id,
            total=order.total,
            payment_method=new.payment_method,
            hold_expire_time=order.hold_expire_time,
            progress=Progress(),
            fence=1,
        )
        running = self._worker.begin(saga)
        if new.payment_method:
            return order
        # The customer needs the provider's secret to pay, which is there once the saga waits for them.
        await asyncio.wait({running}, timeout=_SECRET_SECONDS)
        return await store.get(self._db, order.id, customer_id=None)


def _same(known: Order, new: NewOrder | Purchase) -> Order:
    if known.digest != new.digest:
        raise RequestIdReused(requestId=new.request_id)
    return known


def _sale_prices(reservation: Reservation) -> dict[uuid.UUID, Money]:
    return {
        uuid.UUID(line.product_id): wire.money_of(line.sale_price)
        for line in reservation.lines
        if line.HasField("sale_price")
    }
