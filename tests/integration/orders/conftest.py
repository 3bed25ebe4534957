"""A database, orders to write into it, and small versions of the other services in memory."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import grpc
import pytest
from sqlalchemy import event, text

from services.chassis import ids
from services.chassis.client.target import Target
from services.chassis.data.db import Database, connect
from services.chassis.errors import InvalidFields, Unavailable
from services.chassis.events.outbox import Relay
from services.chassis.money import Money
from services.chassis.server.access import MeshIdentity
from services.chassis.server.paging import Pages
from services.orders import actions, rpc
from services.orders.clients import Catalog, Inventory, Payments
from services.orders.domain import Line, Order
from services.orders.placing.paying import Payer
from services.orders.placing.place import Placer
from services.orders.placing.recent_orders import RecentOrders
from services.orders.placing.sold_out_cache import SoldOutCache
from services.orders.saga.comparer import Comparer
from services.orders.saga.steps import MeshSteps
from services.orders.saga.worker import Worker
from services.orders.sql import combined, orders, sagas
from stampede.catalog.v1 import snapshot_service_pb2 as catalog_pb
from stampede.catalog.v1 import snapshot_service_pb2_grpc as catalog_grpc
from stampede.inventory.v1 import flash_sale_service_pb2 as sale_pb
from stampede.inventory.v1 import flash_sale_service_pb2_grpc as sale_grpc
from stampede.inventory.v1 import reservation_service_pb2 as inventory_pb
from stampede.inventory.v1 import reservation_service_pb2_grpc as inventory_grpc
from stampede.orders.v1 import events_pb2
from stampede.orders.v1 import order_service_pb2 as pb
from stampede.orders.v1 import order_service_pb2_grpc as pb_grpc
from stampede.orders.v1 import saga_service_pb2_grpc as saga_grpc
from stampede.payments.v1 import charge_service_pb2 as payments_pb
from stampede.payments.v1 import charge_service_pb2_grpc as payments_grpc
from stampede.type.v1 import money_pb2, refusal_pb2
from tests.support import tokens
from tests.support.databases import empty
from tests.support.infra import Infra
from tests.support.serving import serving
from tests.support.waiting import until

PRICE = Money("USD", 999)


@pytest.fixture(scope="session")
async def one_database(infra: Infra, template: Callable[[str], Awaitable[str]]) -> AsyncIterator[Database]:
    """One for all tests: to empty it costs a tenth of a new one."""
    infra.admin(f"CREATE DATABASE test_all_orders TEMPLATE {await template('orders')}")
    engine, sessions = connect(infra.database_url("test_all_orders"), pool_size=20)
    yield sessions
    await engine.dispose()


@pytest.fixture
async def db(one_database: Database) -> Database:
    async with one_database.begin() as tx:
        await empty(tx)
    return one_database


def an_order(**fields: Any) -> Order:
    """An order whose stock is held, not written yet."""
    line = Line(ids.new(), 2, None, "TEE", "A tee", PRICE)
    known: dict[str, Any] = {
        "id": ids.new(), "customer_id": ids.new(), "request_id": uuid.uuid4(), "digest": b"d" * 32, "lines": (line,),
        "total": PRICE * 2, "hold_expire_time": datetime.now(UTC) + timedelta(minutes=10), "shipping_address": None,
        "payment_method": "pm_card_visa", "call_id": "a call",
    }  # fmt: skip
    return Order(**{**known, **fields})


async def place(db: Database, *new: Order, lease_seconds: float = 20.0) -> list[tuple[Order, bool]]:
    return await combined.place(db, [(order, lease_seconds) for order in new])


async def rows_of(db: Database, query: str, **arguments: Any) -> list[tuple[Any, ...]]:
    async with db() as tx:
        return [tuple(row) for row in await tx.execute(text(query), arguments)]


async def run_sql(db: Database, query: str, **arguments: Any) -> None:
    async with db.begin() as tx:
        await tx.execute(text(query), arguments)


async def log_of(db: Database, order_id: uuid.UUID) -> list[tuple[Any, ...]]:
    query = "SELECT state, reason, actor FROM order_log WHERE order_id = :id ORDER BY id"
    return await rows_of(db, query, id=order_id)


async def published(db: Database, order_id: uuid.UUID) -> list[tuple[str, int]]:
    """The events of an order as they will be published: (last word of the subject, version)."""
    rows = await rows_of(db, "SELECT subject, payload FROM outbox ORDER BY id")
    events = [(subject, events_pb2.OrderChanged.FromString(bytes(payload))) for subject, payload in rows]
    return [(s.rpartition(".")[2], e.version) for s, e in events if e.order_id == str(order_id)]


@dataclass
class Counted:
    transactions: int = 0
    statements: int = 0


@contextmanager
def counted(db: Database) -> Iterator[Counted]:
    """Counts the transactions and statements on a database."""
    count, engine = Counted(), db.kw["bind"].sync_engine

    def begins(_connection: Any) -> None:
        count.transactions += 1

    def states(*_: Any) -> None:
        count.statements += 1

    event.listen(engine, "begin", begins)
    event.listen(engine, "before_cursor_execute", states)
    try:
        yield count
    finally:
        event.remove(engine, "begin", begins)
        event.remove(engine, "before_cursor_execute", states)


# --- the other services ---


class FakeCatalog(catalog_grpc.SnapshotServiceServicer):
    def __init__(self) -> None:
        self.products: dict[str, catalog_pb.Snapshot] = {}
        self.calls: Counter[str] = Counter()

    def add(self, price: Money = PRICE, *, active: bool = True, product_id: uuid.UUID | None = None) -> uuid.UUID:
        id_ = product_id or ids.new()
        money = money_pb2.Money(currency_code=price.currency, minor_units=price.minor)
        self.products[str(id_)] = catalog_pb.Snapshot(
            product_id=str(id_), sku="TEE", name="A tee", price=money, active=active
        )
        return id_

    async def GetSnapshots(self, request: Any, context: Any) -> Any:
        self.calls["GetSnapshots"] += 1
        found = [self.products[id_] for id_ in request.product_ids if id_ in self.products]
        return catalog_pb.GetSnapshotsResponse(snapshots=found)


class FakeInventory(inventory_grpc.ReservationServiceServicer):
    """Units by sale or product; `unavailable` refuses calls, `loses_answers` fails after the effect."""

    def __init__(self) -> None:
        self.units: Counter[str] = Counter()
        self.prices: dict[str, Money] = {}
        self.held: dict[str, Any] = {}
        self.asked: dict[str, Any] = {}
        self.extended: set[str] = set()
        self.not_live: dict[str, str] = {}
        """States of sales that are not live."""
        self.product_of: dict[str, str] = {}
        """The products of sales, if a test needs them."""
        self.abandoned: set[str] = set()
        """Orders whose customers gave up."""
        self.at_limit: set[str] = set()
        """Customers at the limit."""
        self.calls: Counter[str] = Counter()
        self.unavailable = self.loses_answers = False
        self.retakes = 0

    def add(self, units: int, *, sale: Money | None = None, key: uuid.UUID | None = None) -> uuid.UUID:
        id_ = key or ids.new()
        self.units[str(id_)] = units
        if sale:
            self.prices[str(id_)] = sale
        return id_

    async def _begin(self, name: str, context: Any) -> None:
        self.calls[name] += 1
        if self.unavailable:
            raise Unavailable(part="here")

    async def BatchReserve(self, request: Any, context: Any) -> Any:
        await self._begin("BatchReserve", context)
        assert len({hold.id for hold in request.holds}) == len(request.holds), "an id twice in a batch"
        outcomes = [self._reserve(hold) for hold in request.holds]
        if self.loses_answers:
            raise Unavailable(part="here")
        return inventory_pb.BatchReserveResponse(outcomes=outcomes)

    def _reserve(self, hold: Any) -> Any:
        if hold.id in self.held:
            if self.asked[hold.id] != hold:
                return _refused(3, "REQUEST_ID_REUSED", requestId=hold.id)
            return inventory_pb.ReservationOutcome(reservation=self.held[hold.id])
        for line in hold.lines:
            if self.product_of.get(line.flash_sale_id, line.product_id) != line.product_id:
                return _refused(5, "FLASH_SALE_NOT_FOUND", flashSaleId=line.flash_sale_id)
            if state := self.not_live.get(line.flash_sale_id):
                return _refused(9, "SALE_NOT_LIVE", flashSaleId=line.flash_sale_id, state=state)
            if self.units[line.flash_sale_id or line.product_id] < line.quantity:
                if line.flash_sale_id:
                    return _refused(9, "SOLD_OUT", flashSaleId=line.flash_sale_id, remaining="0")
                return _refused(9, "OUT_OF_STOCK", productId=line.product_id)
            if hold.customer_id in self.at_limit and line.flash_sale_id:
                return _refused(9, "CUSTOMER_LIMIT", flashSaleId=line.flash_sale_id, limit="1")
        reservation = inventory_pb.Reservation(id=hold.id, state=inventory_pb.Reservation.HELD)
        reservation.expire_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=600))
        for line in hold.lines:
            self.units[line.flash_sale_id or line.product_id] -= line.quantity
            price = self.prices.get(line.flash_sale_id)
            reservation.lines.add(
                product_id=line.product_id, flash_sale_id=line.flash_sale_id, quantity=line.quantity,
                sale_price=price and money_pb2.Money(currency_code=price.currency, minor_units=price.minor),
            )  # fmt: skip
        self.held[hold.id], self.asked[hold.id] = reservation, hold
        return inventory_pb.ReservationOutcome(reservation=reservation)

    def state(self, order_id: uuid.UUID | str) -> str:
        return str(inventory_pb.Reservation.State.Name(self.held[str(order_id)].state))

    async def BatchConfirm(self, request: Any, context: Any) -> Any:
        await self._begin("BatchConfirm", context)
        return inventory_pb.BatchConfirmResponse(
            outcomes=[self._confirm(id_, retake=request.retake) for id_ in request.ids]
        )

    def _confirm(self, id_: str, *, retake: bool) -> Any:
        expired = self.held[id_].state == inventory_pb.Reservation.EXPIRED
        if expired and not retake:
            return _refused(9, "RESERVATION_EXPIRED", reservationId=id_)
        self.retakes += expired
        if expired:
            self.held[id_].state = inventory_pb.Reservation.HELD
        return self._settle(id_, inventory_pb.Reservation.CONFIRMED)

    async def BatchExtend(self, request: Any, context: Any) -> Any:
        await self._begin("BatchExtend", context)
        for id_ in set(request.ids) - self.extended:
            if self.held[id_].state == inventory_pb.Reservation.HELD:
                self.held[id_].expire_time.seconds += 600
                self.extended.add(id_)
        outcomes = [inventory_pb.ReservationOutcome(reservation=self.held[id_]) for id_ in request.ids]
        return inventory_pb.BatchExtendResponse(outcomes=outcomes)

    async def BatchRelease(self, request: Any, context: Any) -> Any:
        await self._begin("BatchRelease", context)
        self.abandoned.update(request.abandoned_ids)
        return inventory_pb.BatchReleaseResponse(
            outcomes=[self._settle(id_, inventory_pb.Reservation.RELEASED) for id_ in request.ids]
        )

    async def BatchCreateReturns(self, request: Any, context: Any) -> Any:
        await self._begin("BatchCreateReturns", context)
        outcomes = [inventory_pb.ReturnOutcome(returned=item) for item in request.returns]
        return inventory_pb.BatchCreateReturnsResponse(outcomes=outcomes)

    def _settle(self, id_: str, state: Any) -> Any:
        reservation = self.held.get(id_)
        if reservation is None:
            return _refused(5, "RESERVATION_NOT_FOUND", reservationId=id_)
        if reservation.state not in (inventory_pb.Reservation.HELD, state):
            return _refused(9, "RESERVATION_LOST" if state == inventory_pb.Reservation.CONFIRMED else "WRONG_STATE")
        reservation.state = state
        return inventory_pb.ReservationOutcome(reservation=reservation)


class FakeSales(sale_grpc.FlashSaleServiceServicer):
    """The sales of `inventory`, which its reservations use too."""

    def __init__(self, inventory: FakeInventory) -> None:
        self._inventory = inventory

    async def GetFlashSale(self, request: Any, context: Any) -> Any:
        await self._inventory._begin("GetFlashSale", context)
        state = self._inventory.not_live.get(request.sale_id, "LIVE")
        price = self._inventory.prices[request.sale_id]
        return sale_pb.FlashSale(
            id=request.sale_id, product_id=self._inventory.product_of[request.sale_id], state=state,
            sale_price=money_pb2.Money(currency_code=price.currency, minor_units=price.minor),
        )  # fmt: skip


def _refused(code: int, reason: str, **metadata: str) -> Any:
    refusal = refusal_pb2.Refusal(
        code=code, reason=reason, domain="inventory.stampede", message=f"{reason}.", metadata=metadata
    )
    return inventory_pb.ReservationOutcome(refusal=refusal)


class FakePayments(payments_grpc.ChargeServiceServicer):
    """`pm_declined` is declined, `pm_slow` has no answer, `pm_debit` stays in process at the provider, `pm_manual`
    waits for staff to capture it.

    Without a method the customer pays in the browser.
    """

    def __init__(self) -> None:
        self.payments: dict[str, Any] = {}
        self.calls: Counter[str] = Counter()
        self.unavailable = False
        self.answers, self.charges = asyncio.Event(), asyncio.Event()
        """While cleared, calls wait; or only charges."""
        self.answers.set()
        self.charges.set()
        self.charged: list[str] = []
        """The orders that were to be charged, in the order of the calls."""
        self.refuses_refunds = False
        self.amounts: dict[str, Any] = {}
        self.refunds: dict[str, int] = {}
        self.refunded: Counter[str] = Counter()
        self.refunding: Counter[str] = Counter()

    async def _begin(self, name: str, context: Any) -> None:
        self.calls[name] += 1
        await self.answers.wait()
        if name == "BatchCharge":
            await self.charges.wait()
        if self.unavailable:
            raise Unavailable(part="here")

    def _payment(self, item: Any, state: str) -> Any:
        if item.order_id not in self.payments:
            waits = state == "AWAITING_CUSTOMER"
            self.payments[item.order_id] = payments_pb.PaymentStatus(
                payment_id=str(ids.new()), order_id=item.order_id, state=state, provider="sandbox",
                client_secret="a secret" if waits else "", failure_reason="CARD_DECLINED" if state == "FAILED" else "",
            )  # fmt: skip
        return self.payments[item.order_id]

    def set_state(self, order_id: str, state: str) -> None:
        self.payments[order_id].state = payments_pb.PaymentStatus.State.Value(state)
        self.payments[order_id].client_secret = ""

    def state(self, order_id: str) -> str:
        return str(payments_pb.PaymentStatus.State.Name(self.payments[order_id].state))

    async def BatchCharge(self, request: Any, context: Any) -> Any:
        self.charged += [item.order_id for item in request.charges]
        await self._begin("BatchCharge", context)
        _check_distinct([item.order_id for item in request.charges])
        outcomes = []
        for item in request.charges:
            self.amounts[item.order_id] = item.amount
            method = item.payment_method
            known = {
                "": "AWAITING_CUSTOMER", "pm_declined": "FAILED", "pm_slow": "PROCESSING", "pm_debit": "PROCESSING",
                "pm_manual": "AUTHORIZED",
            }  # fmt: skip
            payment = self._payment(item, known.get(method, "SUCCEEDED"))
            payment.in_process = method == "pm_debit"
            outcomes.append(payments_pb.PaymentOutcome(payment=payment))
        return payments_pb.BatchChargeResponse(outcomes=outcomes)

    async def BatchCancel(self, request: Any, context: Any) -> Any:
        await self._begin("BatchCancel", context)
        _check_distinct([item.order_id for item in request.charges])
        outcomes = []
        for item in request.charges:
            payment = self._payment(item, "CANCELLED")
            if self.state(item.order_id) == "AWAITING_CUSTOMER":
                self.set_state(item.order_id, "CANCELLED")
            outcomes.append(payments_pb.PaymentOutcome(payment=payment))
        return payments_pb.BatchCancelResponse(outcomes=outcomes)

    async def BatchReverse(self, request: Any, context: Any) -> Any:
        await self._begin("BatchReverse", context)
        _check_distinct([item.order_id for item in request.charges])
        outcomes = []
        for item in request.charges:
            payment = self._payment(item, "CANCELLED")
            ends = {"SUCCEEDED": "REFUNDED", "AWAITING_CUSTOMER": "CANCELLED", "AUTHORIZED": "CANCELLED"}
            end = ends.get(self.state(item.order_id))
            if end:
                self.set_state(item.order_id, end)
            outcomes.append(payments_pb.PaymentOutcome(payment=payment))
        return payments_pb.BatchReverseResponse(outcomes=outcomes)

    async def GetPayments(self, request: Any, context: Any) -> Any:
        await self._begin("GetPayments", context)
        return payments_pb.GetPaymentsResponse(outcomes=[self._known(id_) for id_ in request.order_ids])

    def _known(self, order_id: str) -> Any:
        if order_id not in self.payments:
            refusal = refusal_pb2.Refusal(code=5, reason="PAYMENT_NOT_FOUND", domain="payments.stampede", message="No.")
            return payments_pb.PaymentOutcome(refusal=refusal)
        status = payments_pb.PaymentStatus()
        status.CopyFrom(self.payments[order_id])
        for name, units in (("refunded", self.refunded[order_id]), ("refunding", self.refunding[order_id])):
            if units:
                getattr(status, name).CopyFrom(self.amounts[order_id])
                getattr(status, name).minor_units = units
        return payments_pb.PaymentOutcome(payment=status)

    def refund_there(self, order_id: str, units: int) -> None:
        """Staff refund at payments, or with a negative number a refund fails after it had succeeded."""
        self.refunded[order_id] += units
        whole = self.refunded[order_id] == self.amounts[order_id].minor_units
        self.set_state(order_id, "REFUNDED" if whole else "SUCCEEDED")

    async def BatchCreateRefunds(self, request: Any, context: Any) -> Any:
        await self._begin("BatchCreateRefunds", context)
        _check_distinct([item.refund_id for item in request.refunds])
        return payments_pb.BatchCreateRefundsResponse(outcomes=[self._refund(item) for item in request.refunds])

    def _refund(self, item: Any) -> Any:
        if self.refuses_refunds:
            failed = payments_pb.RefundStatus(
                refund_id=item.refund_id, state=payments_pb.RefundStatus.FAILED, failure_reason="CHARGE_DISPUTED"
            )
            return payments_pb.RefundOutcome(refund=failed)
        reasons = {"AUTHORIZED": "PAYMENT_NOT_CAPTURED", "CANCELLED": "WRONG_STATE"}
        if item.order_id in self.payments and (reason := reasons.get(self.state(item.order_id))):
            refusal = refusal_pb2.Refusal(code=9, reason=reason, domain="payments.stampede", message="No")
            return payments_pb.RefundOutcome(refusal=refusal)
        if item.order_id not in self.amounts:  # never charged here
            done = payments_pb.RefundStatus(refund_id=item.refund_id, state=payments_pb.RefundStatus.SUCCEEDED)
            return payments_pb.RefundOutcome(refund=done)
        if item.refund_id not in self.refunds:
            left = self.amounts[item.order_id].minor_units - self.refunded[item.order_id]
            left -= self.refunding[item.order_id]
            if (item.amount.minor_units or 1) > left:
                refusal = refusal_pb2.Refusal(
                    code=9, reason="REFUND_TOO_LARGE", domain="payments.stampede", message="No"
                )
                return payments_pb.RefundOutcome(refusal=refusal)
            self.refunds[item.refund_id] = item.amount.minor_units if item.HasField("amount") else left
            self.refunded[item.order_id] += self.refunds[item.refund_id]
        status = payments_pb.RefundStatus(refund_id=item.refund_id, state=payments_pb.RefundStatus.SUCCEEDED)
        status.refunded.CopyFrom(self.amounts[item.order_id])
        status.refunded.minor_units = self.refunded[item.order_id]
        return payments_pb.RefundOutcome(refund=status)


def _check_distinct(names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise InvalidFields({"items": "must not name one twice"})


class Shop:
    """One running orders service, its neighbours, and a customer. Sagas left over run after `carry_on`."""

    def __init__(self, db: Database, address: str) -> None:
        self.db = db
        mesh = MeshIdentity("orders", tokens.MESH_SECRET)
        self.targets = [Target(name, address, mesh) for name in ("catalog", "inventory", "payments")]
        catalog, inventory, payments = self.targets
        relay, self.sold_out, self.watch = Relay(db), SoldOutCache(), actions.order_watch(db)
        self.recent = RecentOrders()
        self.inventory_client = Inventory(inventory)
        self.hears_of_cancellations = True
        self.payments_client = Payments(
            payments, still_wanted=partial(sagas.still_wanted, db), events_arrive=lambda: self.hears_of_cancellations
        )
        self.catalog_client = Catalog(catalog)
        steps = MeshSteps(self.catalog_client, self.inventory_client, self.payments_client)
        self.worker = Worker(db, steps, relay, self.watch, at_once=512)
        self.placer = Placer(
            db, catalog=self.catalog_client, inventory=self.inventory_client, worker=self.worker,
            sold_out=self.sold_out, recent=self.recent, relay=relay, backlog_max=10_000,
        )  # fmt: skip
        comparer = Comparer(db, self.payments_client, lambda _: None)
        self.placed_orders, pages = (
            actions.Orders(db, self.worker, comparer, self.watch, relay),
            Pages("a secret for pages"),
        )
        payer = Payer(
            db, self.placed_orders, self.worker,
            catalog=self.catalog_client, inventory=self.inventory_client, payments=self.payments_client,
        )  # fmt: skip
        self.service = rpc.OrderService(self.placer, payer, self.placed_orders, pages)
        self.saga_service = rpc.SagaService(db, self.placed_orders, pages)
        self.tasks: list[asyncio.Task[None]] = [asyncio.create_task(self.watch.run())]
        self.customer = ids.new()
        self.orders: Any = None
        self.sagas: Any = None
        self.catalog, self.inventory, self.payments = FakeCatalog(), FakeInventory(), FakePayments()

    def carry_on(self) -> None:
        self.tasks.append(asyncio.create_task(self.worker.run()))

    async def place(self, request: pb.PlaceOrderRequest, *, customer: uuid.UUID | None = None) -> pb.Order:
        answer: pb.Order = await self.orders.PlaceOrder(request, metadata=tokens.as_user(customer or self.customer))
        return answer

    async def ended(self, order_id: str) -> pb.Order:
        async def fact() -> pb.Order | None:
            order: pb.Order = await self.orders.GetOrder(
                pb.GetOrderRequest(order_id=order_id), metadata=tokens.as_user(self.customer)
            )
            return order if order.state != pb.Order.PENDING else None

        found: pb.Order = await until(fact)
        return found

    async def close(self) -> None:
        await self.worker.drain(5)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def shop(db: Database) -> AsyncIterator[Shop]:
    fakes = FakeCatalog(), FakeInventory(), FakePayments()

    def neighbours(server: Any) -> None:
        catalog_grpc.add_SnapshotServiceServicer_to_server(fakes[0], server)
        inventory_grpc.add_ReservationServiceServicer_to_server(fakes[1], server)
        sale_grpc.add_FlashSaleServiceServicer_to_server(FakeSales(fakes[1]), server)
        payments_grpc.add_ChargeServiceServicer_to_server(fakes[2], server)

    # One port for all three; the real guard checks every request against the contract.
    async with listening("neighbours", neighbours) as address:
        shop = Shop(db, address)
        shop.catalog, shop.inventory, shop.payments = fakes

        def register(server: Any) -> None:
            pb_grpc.add_OrderServiceServicer_to_server(shop.service, server)
            saga_grpc.add_SagaServiceServicer_to_server(shop.saga_service, server)

        async with serving("orders", register) as channel:
            shop.orders, shop.sagas = pb_grpc.OrderServiceStub(channel), saga_grpc.SagaServiceStub(channel)
            yield shop
            await shop.close()
        for target in shop.targets:
            await target.close()


class listening:
    """Servicers behind the real guard on a free port; yields the address."""

    def __init__(self, service: str, register: Callable[[Any], None]) -> None:
        from services.chassis.server.guard import Guard
        from services.chassis.server.registry import Registry

        self._server = grpc.aio.server()
        register(Registry(Guard(service, tokens.gatekeeper(service)), self._server))
        self._address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def __aenter__(self) -> str:
        await self._server.start()
        return self._address

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(grace=None)


async def the_order(db: Database, order_id: uuid.UUID | str) -> Any:
    id_ = uuid.UUID(str(order_id))
    return (await orders.get_many(db, [id_]))[id_]
