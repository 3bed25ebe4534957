"""The gRPC face of orders: reads a request, calls one function, writes a response."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from services.chassis import calls, db, paging, wire
from services.chassis.db import Database
from services.chassis.paging import Pages
from services.chassis.watch import Watch
from services.orders import actions, store
from services.orders.domain import Address, Order, PaymentState, State, Wish
from services.orders.placing import Placer, Purchase
from services.orders.worker import Worker
from stampede.orders.v1 import order_service_pb2 as pb
from stampede.orders.v1 import order_service_pb2_grpc as pb_grpc


class OrderService(pb_grpc.OrderServiceServicer):
    def __init__(
        self, database: Database, placer: Placer, worker: Worker, watch: Watch[uuid.UUID, Order], pages: Pages
    ) -> None:
        self._db, self._placer, self._worker = database, placer, worker
        self._watch, self._pages = watch, pages

    async def PlaceOrder(self, request: pb.PlaceOrderRequest, context: Any) -> pb.Order:
        seconds = 0.0
        if request.HasField("prefer_wait"):
            seconds = request.prefer_wait.ToTimedelta().total_seconds()
            request.ClearField("prefer_wait")  # how long the caller likes to wait is no part of what it asks for
        order = await self._placer.place(_purchase(request))
        if seconds and order.state is State.PENDING:
            order = await actions.settled(self._watch, self._db, order, seconds=seconds)
        return to_proto(order)

    async def GetOrder(self, request: pb.GetOrderRequest, context: Any) -> pb.Order:
        return to_proto(await store.get(self._db, uuid.UUID(request.order_id), customer_id=_whose()))

    async def ListOrders(self, request: pb.ListOrdersRequest, context: Any) -> pb.ListOrdersResponse:
        customer_id, size = calls.user_id(), paging.size(request.page_size)
        query = {"customer": customer_id, "state": request.state}
        position = self._pages.unseal(request.page_token, query)
        orders = await store.list_of(
            self._db,
            customer_id,
            state=State(pb.Order.State.Name(request.state)) if request.state else None,
            after=(position[0], position[1]) if position else None,
            limit=size + 1,
        )
        token = ""
        if len(orders) > size:
            last = orders[size - 1]
            token = self._pages.seal([last.create_time.isoformat(), str(last.id)], query)
        return pb.ListOrdersResponse(orders=map(to_proto, orders[:size]), next_page_token=token)

    async def CancelOrder(self, request: pb.CancelOrderRequest, context: Any) -> pb.Order:
        order = await actions.cancel(
            self._db, self._worker, uuid.UUID(request.order_id), customer_id=_whose(), etag=request.etag
        )
        return to_proto(order)

    async def WatchOrder(self, request: pb.WatchOrderRequest, context: Any) -> AsyncIterator[pb.Order]:
        order_id = uuid.UUID(request.order_id)
        async for order in actions.changes(self._watch, self._db, order_id, customer_id=_whose()):
            yield to_proto(order)


def _whose() -> uuid.UUID | None:
    """Whose orders the caller may see; None for everybody's."""
    return None if calls.current().caller.is_staff else calls.user_id()


def _purchase(request: pb.PlaceOrderRequest) -> Purchase:
    address = request.shipping_address
    return Purchase(
        customer_id=calls.user_id(),
        request_id=uuid.UUID(request.request_id),
        content=request.SerializeToString(deterministic=True),
        wishes=tuple(
            Wish(
                uuid.UUID(line.product_id), line.quantity, uuid.UUID(line.flash_sale_id) if line.flash_sale_id else None
            )
            for line in request.lines
        ),
        payment_method=request.payment_method,
        shipping_address=Address(
            address.name, address.line1, address.line2, address.city, address.region, address.postal_code,
            address.country_code,
        )
        if request.HasField("shipping_address")
        else None,
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
            )
            for line in order.lines
        ],
        total=wire.money(order.total),
        hold_expire_time=wire.timestamp(order.hold_expire_time),
        create_time=wire.timestamp(order.create_time),
        update_time=wire.timestamp(order.update_time),
        etag=db.etag(order.version),
    )
    if order.payment:
        message.payment.id, message.payment.provider = str(order.payment.id), order.payment.provider
        message.payment.state = pb.OrderPayment.State.Value(order.payment.state)
        if order.payment.state is PaymentState.AWAITING_CUSTOMER:
            message.payment.client_secret = order.payment.client_secret
    if order.shipping_address:
        message.shipping_address.CopyFrom(pb.Address(**asdict(order.shipping_address)))
    return message
