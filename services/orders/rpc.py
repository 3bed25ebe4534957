"""The gRPC handlers of orders: each reads a request, calls one function, and writes the response."""

import hashlib
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from services.chassis import ids, request_context
from services.chassis.data import db
from services.chassis.data.db import Database
from services.chassis.errors import InvalidFields
from services.chassis.server import paging, wire
from services.chassis.server.paging import Pages
from services.orders.actions import Mutation, Orders
from services.orders.domain import (
    Actor,
    Address,
    DraftOrder,
    LogEntry,
    Order,
    OrderFilter,
    PaymentState,
    RequestedLine,
    State,
)
from services.orders.placing.paying import Asked, Payer
from services.orders.placing.place import Placer
from services.orders.saga import operators
from services.orders.saga.attempts import PaymentTerms
from services.orders.saga.plan import SagaView
from stampede.orders.v1 import order_service_pb2 as pb
from stampede.orders.v1 import order_service_pb2_grpc as pb_grpc
from stampede.orders.v1 import saga_service_pb2 as saga_pb
from stampede.orders.v1 import saga_service_pb2_grpc as saga_grpc


class OrderService(pb_grpc.OrderServiceServicer):
    """The methods for customers, and for staff after an order was placed."""

    def __init__(self, placer: Placer, payer: Payer, orders: Orders, pages: Pages) -> None:
        self._placer, self._payer, self._orders, self._pages = placer, payer, orders, pages

    async def PlaceOrder(self, request: pb.PlaceOrderRequest, context: Any) -> pb.Order:
        seconds = 0.0
        if request.HasField("prefer_wait"):
            seconds = request.prefer_wait.ToTimedelta().total_seconds()
            request.ClearField("prefer_wait")  # no part of the content that distinguishes repeats
        order = await self._placer.place(_draft(request, secret_wanted=bool(seconds)))
        if seconds and order.state is State.PENDING:
            await self._orders.want_secret(order, order.customer_id)
            order = await self._orders.settled(order, seconds=seconds)
        return to_proto(order)

    async def GetOrder(self, request: pb.GetOrderRequest, context: Any) -> pb.Order:
        order_id, viewer = uuid.UUID(request.order_id), request_context.user_id()
        return to_proto(await self._orders.show(order_id, customer_id=_customer_id(), viewer=viewer))

    async def ListOrders(self, request: pb.ListOrdersRequest, context: Any) -> pb.ListOrdersResponse:
        return await self._page(request, _query(request, request_context.user_id()))

    async def ListAllOrders(self, request: pb.ListAllOrdersRequest, context: Any) -> pb.ListOrdersResponse:
        return await self._page(
            request, _query(request, uuid.UUID(request.customer_id) if request.customer_id else None)
        )

    async def _page(
        self, request: pb.ListOrdersRequest | pb.ListAllOrdersRequest, query: OrderFilter
    ) -> pb.ListOrdersResponse:
        sealed_to = asdict(query)
        at = self._pages.verify(request.page_token, sealed_to)
        orders, end = await self._orders.page(
            query,
            after=(datetime.fromisoformat(at[0]), uuid.UUID(at[1])) if at else None,
            most=paging.size(request.page_size),
        )
        found = paging.fit(orders, to_proto)
        if len(found) < len(orders):
            end = orders[len(found) - 1].create_time, orders[len(found) - 1].id
        token = self._pages.sign([end[0].isoformat(), str(end[1])], sealed_to) if end else ""
        return pb.ListOrdersResponse(orders=found, next_page_token=token)

    async def ListOrderLog(self, request: pb.ListOrderLogRequest, context: Any) -> pb.ListOrderLogResponse:
        order = await self._orders.get(uuid.UUID(request.order_id), customer_id=_customer_id())
        size, sealed_to = paging.size(request.page_size), {"log of": order.id}
        at = self._pages.verify(request.page_token, sealed_to)
        entries = await self._orders.log_entries(order, after=int(at[0]) if at else 0, most=size + 1)
        token = self._pages.sign([str(entries[size - 1].id)], sealed_to) if len(entries) > size else ""
        in_full = request_context.current().caller.is_staff
        return pb.ListOrderLogResponse(
            entries=[_entry_to_proto(entry, in_full=in_full) for entry in entries[:size]], next_page_token=token
        )

    async def PayOrder(self, request: pb.PayOrderRequest, context: Any) -> pb.OrderPayment:
        # Only their own orders, also if they are staff.
        mutation = Mutation(
            order_id=uuid.UUID(request.order_id), customer_id=request_context.user_id(), by=_actor(),
            key=request_context.request_key(request),
        )  # fmt: skip
        saved = str(uuid.UUID(request.saved_method_id)) if request.saved_method_id else ""
        terms = PaymentTerms(request.provider, request.checkout, request.return_url, saved, request.save_method)
        order = await self._payer.pay(mutation, Asked(terms=terms, payment_method=request.payment_method))
        return _payment_to_proto(order) or pb.OrderPayment(state=pb.OrderPayment.PROCESSING)

    async def CancelOrder(self, request: pb.CancelOrderRequest, context: Any) -> pb.Order:
        return to_proto(await self._orders.cancel(_mutation(request, note=request.reason)))

    async def ShipOrder(self, request: pb.ShipOrderRequest, context: Any) -> pb.Order:
        shipped = self._orders.ship(
            _mutation(request), carrier=request.carrier, tracking_number=request.tracking_number
        )
        return to_proto(await shipped)

    async def DeliverOrder(self, request: pb.DeliverOrderRequest, context: Any) -> pb.Order:
        return to_proto(await self._orders.deliver(_mutation(request)))

    async def RefundOrder(self, request: pb.RefundOrderRequest, context: Any) -> pb.Order:
        amount = wire.money_of(request.amount) if request.HasField("amount") else None
        if amount is not None and amount.minor < 1:
            raise InvalidFields({"amount.minorUnits": "must be at least 1"})
        order = await self._orders.refund(
            _mutation(request, note=request.reason),
            amount=amount,
            restock=request.restock,
            lines=[(uuid.UUID(line.product_id), line.quantity) for line in request.restock_lines],
        )
        return to_proto(order)

    async def WatchOrder(self, request: pb.WatchOrderRequest, context: Any) -> AsyncIterator[pb.Order]:
        order_id, viewer = uuid.UUID(request.order_id), request_context.user_id()
        async for order in self._orders.changes(order_id, customer_id=_customer_id(), viewer=viewer):
            yield to_proto(order)


class SagaService(saga_grpc.SagaServiceServicer):
    """The methods for staff to see running sagas and to help stuck ones."""

    def __init__(self, database: Database, orders: Orders, pages: Pages) -> None:
        self._db, self._orders, self._pages = database, orders, pages

    async def ListSagas(self, request: saga_pb.ListSagasRequest, context: Any) -> saga_pb.ListSagasResponse:
        size, query = paging.size(request.page_size), {"stuck": request.stuck}
        at = self._pages.verify(request.page_token, query)
        after = (datetime.fromisoformat(at[0]), uuid.UUID(at[1])) if at else None
        sagas = await operators.list_sagas(self._db, stuck=request.stuck, after=after, most=size + 1)
        token = ""
        if len(sagas) > size:
            token = self._pages.sign([sagas[size - 1].progress_time.isoformat(), str(sagas[size - 1].order_id)], query)
        return saga_pb.ListSagasResponse(sagas=map(_saga_to_proto, sagas[:size]), next_page_token=token)

    async def GetSaga(self, request: saga_pb.GetSagaRequest, context: Any) -> saga_pb.Saga:
        return _saga_to_proto(await operators.get(self._db, uuid.UUID(request.order_id)))

    async def ResumeSaga(self, request: saga_pb.ResumeSagaRequest, context: Any) -> saga_pb.Saga:
        order_id, key = uuid.UUID(request.order_id), request_context.request_key(request)
        saga = await operators.resume(self._db, order_id, _actor(), key=key)
        return _saga_to_proto(await self._orders.carry_saga(saga))

    async def CompensateSaga(self, request: saga_pb.CompensateSagaRequest, context: Any) -> saga_pb.Saga:
        order_id, key = uuid.UUID(request.order_id), request_context.request_key(request)
        by, withdraw = _actor(request.reason), self._orders.withdraw
        saga = await operators.compensate(self._db, order_id, by, key=key, withdraw=withdraw)
        return _saga_to_proto(await self._orders.carry_saga(saga))


def _customer_id() -> uuid.UUID | None:
    """The customer whose orders the caller may see; None for every customer's."""
    return None if request_context.current().caller.is_staff else request_context.user_id()


def _actor(note: str = "") -> Actor:
    caller = request_context.current().caller
    return Actor(f"staff:{caller.user_id}" if caller.is_staff else "customer", request_context.request_id(), note)


def _mutation(request: Any, note: str = "") -> Mutation:
    """Of a request that changes an order: all of them have these fields."""
    return Mutation(
        order_id=uuid.UUID(request.order_id),
        customer_id=_customer_id(),
        by=_actor(note),
        etag=request.etag,
        key=request_context.request_key(request),
    )


def _query(request: pb.ListOrdersRequest | pb.ListAllOrdersRequest, customer_id: uuid.UUID | None) -> OrderFilter:
    return OrderFilter(
        customer_id=customer_id,
        state=State(pb.Order.State.Name(request.state)) if request.state else None,
        product_id=uuid.UUID(request.product_id) if request.product_id else None,
        since=wire.datetime_of(request.from_time) if request.HasField("from_time") else None,
        until=wire.datetime_of(request.to_time) if request.HasField("to_time") else None,
    )


def _draft(request: pb.PlaceOrderRequest, *, secret_wanted: bool) -> DraftOrder:
    customer_id, request_id = request_context.user_id(), uuid.UUID(request.request_id)
    address = request.shipping_address
    return DraftOrder(
        id=ids.derive_id(customer_id, request_id, now_ms=time.time_ns() // 1_000_000),
        customer_id=customer_id,
        request_id=request_id,
        digest=hashlib.sha256(request.SerializeToString(deterministic=True)).digest(),
        lines=tuple(
            RequestedLine(
                uuid.UUID(line.product_id), line.quantity, uuid.UUID(line.flash_sale_id) if line.flash_sale_id else None
            )
            for line in request.lines
        ),
        payment_method=request.payment_method,
        note=request.note,
        expected_total=wire.money_of(request.expected_total) if request.HasField("expected_total") else None,
        shipping_address=Address(
            address.name, address.line1, address.line2, address.city, address.region, address.postal_code,
            address.country_code,
        )
        if request.HasField("shipping_address")
        else None,
        call_id=request_context.current().request_id,
        secret_wanted=secret_wanted,
    )  # fmt: skip


def to_proto(order: Order) -> pb.Order:
    """An order as its customer sees it."""
    message = pb.Order(
        id=str(order.id),
        customer_id=str(order.customer_id),
        state=pb.Order.State.Value(order.state),
        state_reason=order.state_reason,
        lines=[
            pb.OrderLine(
                product_id=str(line.product_id),
                sku=line.sku,
                name=line.name,
                unit_price=wire.money(line.unit_price),
                quantity=line.quantity,
                flash_sale_id=str(line.sale_id) if line.sale_id else "",
                returned_quantity=order.returned.get(line.product_id, 0),
            )
            for line in order.lines
        ],
        total=wire.money(order.total),
        subtotal=wire.money(order.total),
        hold_expire_time=wire.timestamp(order.hold_expire_time),
        create_time=wire.timestamp(order.create_time),
        update_time=wire.timestamp(order.update_time),
        etag=db.etag(order.version),
        note=order.note,
        disputed=order.disputed,
    )
    if payment := _payment_to_proto(order):
        message.payment.CopyFrom(payment)
    if order.shipping_address:
        message.shipping_address.CopyFrom(pb.Address(**asdict(order.shipping_address)))
    if order.refunded_minor:
        message.refunded.CopyFrom(wire.money(replace(order.total, minor=order.refunded_minor)))
    message.refunding, message.cancel_requested = order.refunding, order.cancel_requested
    if shipment := order.shipment:
        message.shipment.carrier, message.shipment.tracking_number = shipment.carrier, shipment.tracking_number
        message.shipment.ship_time.CopyFrom(wire.timestamp(shipment.ship_time))
        if shipment.deliver_time:
            message.shipment.deliver_time.CopyFrom(wire.timestamp(shipment.deliver_time))
    return message


def _payment_to_proto(order: Order) -> pb.OrderPayment | None:
    payment = order.payment
    if payment is None:
        return None
    waits = payment.state is PaymentState.AWAITING_CUSTOMER
    return pb.OrderPayment(
        id=str(payment.id),
        provider=payment.provider,
        state=pb.OrderPayment.State.Value(payment.state),
        client_secret=payment.client_secret if waits else "",
        failure_reason=payment.failure_reason,
        checkout_url=payment.checkout_url if waits else "",
        provider_order_id=payment.provider_order_id if waits else "",
    )


def _entry_to_proto(entry: LogEntry, *, in_full: bool) -> pb.OrderLogEntry:
    kind, _, id_ = entry.actor.partition(":")
    actors = {
        "customer": pb.OrderLogEntry.CUSTOMER,
        "staff": pb.OrderLogEntry.STAFF,
        "operator": pb.OrderLogEntry.STAFF,
    }
    message = pb.OrderLogEntry(
        version=entry.version,
        state=pb.Order.State.Value(entry.state),
        state_reason=entry.state_reason,
        actor=actors.get(kind, pb.OrderLogEntry.SYSTEM),
        create_time=wire.timestamp(entry.create_time),
        refunded=wire.money(entry.refunded) if entry.refunded.minor else None,
    )
    if in_full:
        message.actor_id, message.cause = id_ or kind, entry.cause
        message.note, message.request_id = entry.note, entry.call_id
    return message


def _saga_to_proto(saga: SagaView) -> saga_pb.Saga:
    progress = saga.progress
    return saga_pb.Saga(
        order_id=str(saga.order_id),
        customer_id=str(saga.customer_id),
        kind=saga_pb.Saga.Kind.Value(progress.kind),
        phase=saga_pb.Saga.Phase.Value(progress.phase),
        step=progress.step,
        waits_for_customer=saga.waits_for_customer,
        waits_for_provider=saga.waits_for_provider,
        stuck=saga.stuck,
        cause=saga.cause,
        reason=progress.reason or progress.cancel_reason,
        attempts=saga.attempts,
        create_time=wire.timestamp(saga.create_time),
        progress_time=wire.timestamp(saga.progress_time),
        next_time=wire.timestamp(saga.next_time),
        order_state=pb.Order.State.Value(saga.order_state),
    )
