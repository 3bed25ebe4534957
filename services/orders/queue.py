"""Orders of the largest rushes: answered after the hold alone, and written when there is time.

What is needed to write such an order, its ticket, is kept by inventory in the transaction that makes the hold. So an
order that was answered is never lost, whatever is killed. One process at a time writes down the oldest; whoever is
asked for an order that is not written yet reads its ticket.
"""

import asyncio
import hashlib
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import orjson
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from prometheus_client import Counter

from services.chassis.data.db import Database
from services.chassis.data.lease import Lease
from services.chassis.errors import AppError, Unavailable
from services.chassis.events.outbox import Relay
from services.chassis.money import Money
from services.chassis.server import wire
from services.orders import domain, store
from services.orders.domain import Address, Order, Product, Wish
from services.orders.partners import Held, Inventory
from services.orders.store import NewOrder
from stampede.inventory.v1.reservation_service_pb2 import Reservation, Ticket

log = structlog.get_logger()

_QUEUED = Counter("stampede_orders_queued_total", "Orders answered after the hold alone.")
# A Reserve call takes 256 of them, and 4 MiB; an order that is longer is written before it is answered.
TICKET_BYTES_MOST = 12 * 1024
_BATCH_MOST = 200
_IDLE_SECONDS = 0.5
_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An order that is not priced yet: its units are about to be held."""

    id: uuid.UUID
    customer_id: uuid.UUID
    request_id: uuid.UUID
    digest: bytes
    wishes: tuple[Wish, ...]
    products: tuple[Product, ...]
    """As the catalog described them when the order was placed."""
    payment_method: str
    shipping_address: Address | None
    trace: str
    place_time: datetime

    @property
    def held(self) -> Held:
        return Held(self.id, tuple(wish.pool for wish in self.wishes))

    def priced(self, reservation: Reservation, *, lease_seconds: float = 0.0) -> NewOrder:
        """The order, now that its units are held; raises what `domain.priced` raises.

        For `lease_seconds` nobody else looks after its saga; by default whoever has time shall.
        """
        sale_prices = {
            uuid.UUID(line.product_id): wire.money_of(line.sale_price)
            for line in reservation.lines
            if line.HasField("sale_price")
        }
        lines, total = domain.priced(self.wishes, {product.id: product for product in self.products}, sale_prices)
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


class Seal:
    """Makes tickets that only orders can read: inventory is told neither addresses nor how somebody pays."""

    def __init__(self, secret: str) -> None:
        self._cipher = AESGCM(hashlib.sha256(f"tickets/{secret}".encode()).digest())

    def close(self, draft: Draft) -> bytes:
        """The ticket of `draft`, which opens for its id alone."""
        content = orjson.dumps(draft, default=bytes.hex)
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, content, draft.id.bytes)

    def open(self, order_id: uuid.UUID, ticket: bytes) -> Draft:
        """Raises `InvalidTag` where it was sealed under another secret, or for another order."""
        nonce, sealed = ticket[:_NONCE_BYTES], ticket[_NONCE_BYTES:]
        content = orjson.loads(self._cipher.decrypt(nonce, sealed, order_id.bytes))
        address = content["shipping_address"]
        return Draft(
            id=order_id,
            customer_id=uuid.UUID(content["customer_id"]),
            request_id=uuid.UUID(content["request_id"]),
            digest=bytes.fromhex(content["digest"]),
            wishes=tuple(
                Wish(uuid.UUID(w["product_id"]), w["quantity"], uuid.UUID(w["sale_id"]) if w["sale_id"] else None)
                for w in content["wishes"]
            ),
            products=tuple(
                Product(uuid.UUID(p["id"]), p["sku"], p["name"], Money(**p["price"]), p["active"])
                for p in content["products"]
            ),
            payment_method=content["payment_method"],
            shipping_address=Address(**address) if address else None,
            trace=content["trace"],
            place_time=datetime.fromisoformat(content["place_time"]),
        )


class Queue:
    """Orders that are answered and not written yet, in inventory's keeping."""

    def __init__(self, db: Database, inventory: Inventory, seal: Seal, relay: Relay) -> None:
        self._db, self._inventory, self.seal, self._relay = db, inventory, seal, relay
        self._news = asyncio.Event()

    def joined(self) -> None:
        """Says that an order was answered whose ticket is kept."""
        _QUEUED.inc()
        self._news.set()

    async def find(self, order_id: uuid.UUID) -> Order | None:
        """An order that is not written yet, if it is one."""
        ticket = await self._inventory.ticket(order_id)
        return self.order_of(ticket.ticket, ticket.reservation) if ticket else None

    def order_of(self, ticket: bytes, reservation: Reservation) -> Order:
        """The order that a ticket stands for, as it was answered."""
        draft = self.seal.open(uuid.UUID(reservation.id), ticket)
        return store.as_placed(draft.priced(reservation), draft.place_time)

    async def write(self, order_id: uuid.UUID) -> None:
        """Writes one order out of its turn, if it is queued: somebody wants to do something with it."""
        ticket = await self._inventory.ticket(order_id)
        if ticket:
            await self._write([ticket])

    async def run(self) -> None:
        """Writes queued orders whenever this process is the one that does; until cancelled."""
        await Lease("queue").lead(self._db, self._work)

    async def _work(self, _term: int) -> None:
        # A term that is over does no harm: whatever is written twice is found the second time.
        page = ""
        while True:
            self._news.clear()
            try:
                tickets, next_page = await self._inventory.tickets(_BATCH_MOST, page)
                all_written = await self._write(tickets)
            except Unavailable as error:
                log.info("queued orders wait", cause=str(error))
                next_page, all_written = "", True
            # What is written is gone from the first page; what cannot be must not stand before the rest.
            page = "" if all_written else next_page
            if not next_page:
                await self._rest()

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                await self._news.wait()
        except TimeoutError:
            pass

    async def _write(self, tickets: Sequence[Ticket]) -> bool:
        """Writes the orders of `tickets`, and drops these. Whether none is left."""
        new, lost = [], []
        for ticket in tickets:
            order_id = uuid.UUID(ticket.reservation.id)
            try:
                draft = self.seal.open(order_id, ticket.ticket)
                new.append(replace(draft.priced(ticket.reservation), place_time=draft.place_time))
            except AppError:  # it was refused for its price, and whoever did so has died before giving the units back
                await self._inventory.release(draft.held)
                lost.append(order_id)
            except (InvalidTag, LookupError, TypeError, ValueError):
                log.exception("a ticket cannot be read: was PAGE_SECRET changed?", order_id=order_id)
                if ticket.reservation.state != Reservation.HELD:
                    lost.append(order_id)
        for wanted, (order, _) in zip(new, await store.insert(self._db, new) if new else (), strict=True):
            if order.id != wanted.id:
                await self._inventory.release(Held(wanted.id))  # the id's period has ended since; see ids.derived
        self._relay.nudge()
        if done := [order.id for order in new] + lost:
            await self._inventory.drop_tickets(done)
        return len(done) == len(tickets)
