"""The gRPC handlers of inventory: each reads a request, calls one function, and writes a response."""

import uuid
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from typing import Any

from google.protobuf.duration_pb2 import Duration

from services.chassis import money, request_context
from services.chassis.data import db
from services.chassis.data.db import Database
from services.chassis.errors import AppError, InvalidFields
from services.chassis.server import masks, paging, statuses, wire
from services.chassis.server.paging import Pages
from services.inventory import domain, sales, stock
from services.inventory.background import sale_watch
from services.inventory.background.sale_watch import SaleWatch
from services.inventory.clients import Catalog
from services.inventory.domain import (
    FlashSale,
    Hold,
    HoldBounds,
    Line,
    NewSale,
    Reservation,
    Return,
    SaleChanges,
    SaleState,
)
from services.inventory.gate.gate import Gate
from services.inventory.reservations import rehold, reserve, returns, settle
from services.inventory.reservations.rehold import Rehold
from services.inventory.sql.schema import Movement, Stock
from stampede.inventory.v1 import flash_sale_service_pb2 as sale_pb
from stampede.inventory.v1 import flash_sale_service_pb2_grpc as sale_grpc
from stampede.inventory.v1 import reservation_service_pb2 as pb
from stampede.inventory.v1 import reservation_service_pb2_grpc as pb_grpc
from stampede.inventory.v1 import stock_service_pb2 as stock_pb
from stampede.inventory.v1 import stock_service_pb2_grpc as stock_grpc
from stampede.type.v1.money_pb2 import Money

_DOMAIN = "inventory.stampede"
_TO_END = (SaleState.SCHEDULED, SaleState.LIVE, SaleState.SOLD_OUT)


class StockService(stock_grpc.StockServiceServicer):
    def __init__(self, database: Database, pages: Pages, catalog: Catalog) -> None:
        self._db, self._pages, self._catalog = database, pages, catalog

    async def GetStock(self, request: stock_pb.GetStockRequest, context: Any) -> stock_pb.Stock:
        return _stock(await stock.get_stock(self._db, uuid.UUID(request.product_id)))

    async def SetStock(self, request: stock_pb.SetStockRequest, context: Any) -> stock_pb.Stock:
        product_id = uuid.UUID(request.product_id)
        # A product that has a stock is known: counting it needs no catalog.
        await self._catalog.check_exist(await stock.find_new(self._db, [product_id]))
        return _stock((await self._set(request, {product_id: request.on_hand}))[0])

    async def AdjustStock(self, request: stock_pb.AdjustStockRequest, context: Any) -> stock_pb.Stock:
        changed = await stock.adjust_stock(
            self._db, uuid.UUID(request.product_id), delta=request.delta, reason=request.reason,
            actor=request_context.user_id(), key=request_context.request_key(request),
        )  # fmt: skip
        return _stock(changed)

    async def BatchUpdateStock(
        self, request: stock_pb.BatchUpdateStockRequest, context: Any
    ) -> stock_pb.BatchUpdateStockResponse:
        return stock_pb.BatchUpdateStockResponse(stocks=map(_stock, await self._set(request, _counted(request))))

    async def _set(
        self, request: stock_pb.SetStockRequest | stock_pb.BatchUpdateStockRequest, counted: dict[uuid.UUID, int]
    ) -> list[Stock]:
        actor, key = request_context.user_id(), request_context.request_key(request)
        return await stock.set_stock(self._db, counted, reason=request.reason, actor=actor, key=key)

    async def ListStockMovements(
        self, request: stock_pb.ListStockMovementsRequest, context: Any
    ) -> stock_pb.ListStockMovementsResponse:
        size, query = paging.size(request.page_size), {"product": request.product_id}
        position = self._pages.verify(request.page_token, query)
        before = int(position[0]) if position else None
        rows = await stock.list_movements(self._db, uuid.UUID(request.product_id), before=before, limit=size + 1)
        token = self._pages.sign([str(rows[size - 1].id)], query) if len(rows) > size else ""
        return stock_pb.ListStockMovementsResponse(movements=map(_movement, rows[:size]), next_page_token=token)


class FlashSaleService(sale_grpc.FlashSaleServiceServicer):
    def __init__(self, database: Database, pages: Pages, watch: SaleWatch, catalog: Catalog) -> None:
        self._db, self._pages, self._watch, self._catalog = database, pages, watch, catalog

    async def CreateFlashSale(self, request: sale_pb.CreateFlashSaleRequest, context: Any) -> sale_pb.FlashSale:
        new = _new_sale(request)
        await self._catalog.check_sale_price(new.product_id, new.price)
        return _sale(await sales.create_sale(self._db, new, key=request_context.request_key(request)))

    async def GetFlashSale(self, request: sale_pb.GetFlashSaleRequest, context: Any) -> sale_pb.FlashSale:
        return _sale(await sales.get_sale(self._db, uuid.UUID(request.sale_id)))

    async def ListFlashSales(
        self, request: sale_pb.ListFlashSalesRequest, context: Any
    ) -> sale_pb.ListFlashSalesResponse:
        size, query = paging.size(request.page_size), {"state": request.state, "product": request.product_id}
        position = self._pages.verify(request.page_token, query)
        rows = await sales.list_sales(
            self._db,
            state=SaleState(sale_pb.FlashSale.State.Name(request.state)) if request.state else None,
            product_id=uuid.UUID(request.product_id) if request.product_id else None,
            before=uuid.UUID(position[0]) if position else None,
            limit=size + 1,
        )
        token = self._pages.sign([str(rows[size - 1].id)], query) if len(rows) > size else ""
        return sale_pb.ListFlashSalesResponse(flash_sales=map(_sale, rows[:size]), next_page_token=token)

    async def UpdateFlashSale(self, request: sale_pb.UpdateFlashSaleRequest, context: Any) -> sale_pb.FlashSale:
        sale_id, key = uuid.UUID(request.sale_id), request_context.request_key(request)
        return _sale(await sales.update_sale(self._db, sale_id, _changes(request), etag_given=request.etag, key=key))

    async def CancelFlashSale(self, request: sale_pb.CancelFlashSaleRequest, context: Any) -> sale_pb.FlashSale:
        return await self._close(request, SaleState.CANCELLED)

    async def EndFlashSale(self, request: sale_pb.EndFlashSaleRequest, context: Any) -> sale_pb.FlashSale:
        return await self._close(request, SaleState.ENDED)

    async def _close(
        self, request: sale_pb.CancelFlashSaleRequest | sale_pb.EndFlashSaleRequest, end: SaleState
    ) -> sale_pb.FlashSale:
        sale_id, key = uuid.UUID(request.sale_id), request_context.request_key(request)
        return _sale(await sales.close_sale(self._db, sale_id, end, etag_given=request.etag, key=key))

    async def WatchFlashSale(
        self, request: sale_pb.WatchFlashSaleRequest, context: Any
    ) -> AsyncIterator[sale_pb.FlashSale]:
        async for sale in sale_watch.changes(self._watch, uuid.UUID(request.sale_id)):
            yield _shared(sale)


class ReservationService(pb_grpc.ReservationServiceServicer):
    def __init__(
        self, database: Database, gate: Gate, nudge: Callable[[], None], bounds: HoldBounds = domain.UNBOUNDED
    ) -> None:
        """Calls `nudge` when there are events to publish."""
        self._db, self._gate, self._nudge, self._bounds = database, gate, nudge, bounds

    async def BatchReserve(self, request: pb.BatchReserveRequest, context: Any) -> pb.BatchReserveResponse:
        holds = [_hold(hold) for hold in request.holds]
        outcomes = await reserve.admit(self._db, self._gate, holds, self._bounds, nudge=self._nudge)
        return pb.BatchReserveResponse(outcomes=map(_outcome, outcomes))

    async def BatchConfirm(self, request: pb.BatchConfirmRequest, context: Any) -> pb.BatchConfirmResponse:
        ids, may_retake = db.parse_uuids(request.ids), request.retake
        outcomes = await settle.confirm(self._db, ids, may_retake=may_retake, nudge=self._nudge)
        return pb.BatchConfirmResponse(outcomes=map(_outcome, outcomes))

    async def BatchExtend(self, request: pb.BatchExtendRequest, context: Any) -> pb.BatchExtendResponse:
        outcomes = await settle.extend(self._db, db.parse_uuids(request.ids))
        return pb.BatchExtendResponse(outcomes=map(_outcome, outcomes))

    async def BatchRehold(self, request: pb.BatchReholdRequest, context: Any) -> pb.BatchReholdResponse:
        reholds = [Rehold(uuid.UUID(item.id), item.number) for item in request.reholds]
        if len({item.id for item in reholds}) < len(reholds):
            raise InvalidFields({"reholds": "must not name a reservation twice"})
        outcomes = await rehold.rehold(self._db, reholds, self._bounds, nudge=self._nudge)
        return pb.BatchReholdResponse(outcomes=map(_outcome, outcomes))

    async def BatchRelease(self, request: pb.BatchReleaseRequest, context: Any) -> pb.BatchReleaseResponse:
        ids, abandoned = db.parse_uuids(request.ids), set(db.parse_uuids(request.abandoned_ids))
        reholds = {uuid.UUID(item.id): item.number for item in request.reholds}
        outcomes = await settle.release(self._db, ids, abandoned=abandoned, reholds=reholds, nudge=self._nudge)
        released = [o for o in outcomes if isinstance(o, Reservation) and not o.repeated]
        await self._gate.give_back((r, line) for r in released for line in r.lines)
        return pb.BatchReleaseResponse(outcomes=map(_outcome, outcomes))

    async def BatchCreateReturns(
        self, request: pb.BatchCreateReturnsRequest, context: Any
    ) -> pb.BatchCreateReturnsResponse:
        # The gate's next rebuild counts the units that are on sale again.
        outcomes = await returns.take_back(self._db, [_return(item) for item in request.returns], nudge=self._nudge)
        return pb.BatchCreateReturnsResponse(outcomes=map(_return_outcome, outcomes))


def _hold(message: pb.Hold) -> Hold:
    lines = tuple(
        Line(uuid.UUID(line.product_id), uuid.UUID(line.flash_sale_id) if line.flash_sale_id else None, line.quantity)
        for line in message.lines
    )
    return Hold(uuid.UUID(message.id), uuid.UUID(message.customer_id), lines, message.duration.seconds)


def _outcome(outcome: Reservation | AppError) -> pb.ReservationOutcome:
    if isinstance(outcome, AppError):
        return pb.ReservationOutcome(refusal=statuses.to_refusal(outcome, _DOMAIN))
    return pb.ReservationOutcome(reservation=_reservation(outcome))


def _reservation(reservation: Reservation) -> pb.Reservation:
    return pb.Reservation(
        id=str(reservation.id),
        state=pb.Reservation.State.Value(reservation.state),
        expire_time=wire.timestamp(reservation.expire_time),
        lines=[
            pb.ReservedLine(
                product_id=str(line.product_id),
                flash_sale_id=str(line.sale_id) if line.sale_id else "",
                quantity=line.quantity,
                sale_price=wire.money(line.sale_price) if line.sale_price else None,
            )
            for line in reservation.lines
        ],
        repeated=reservation.repeated,
    )


def _return(message: pb.Return) -> Return:
    quantities = {uuid.UUID(line.product_id): line.quantity for line in message.lines}
    return Return(uuid.UUID(message.return_id), uuid.UUID(message.reservation_id), quantities)


def _return_outcome(outcome: returns.ReturnOutcome) -> pb.ReturnOutcome:
    if isinstance(outcome, AppError):
        return pb.ReturnOutcome(refusal=statuses.to_refusal(outcome, _DOMAIN))
    message = pb.Return(
        return_id=str(outcome.request.id),
        reservation_id=str(outcome.request.reservation_id),
        lines=[pb.ReturnLine(product_id=str(line.product_id), quantity=line.quantity) for line in outcome.lines],
    )
    return pb.ReturnOutcome(returned=message)


def _price(message: Money) -> money.Money:
    price = wire.money_of(message)
    money.check_chargeable(price, "salePrice")
    return price


def _new_sale(request: sale_pb.CreateFlashSaleRequest) -> NewSale:
    return NewSale(
        product_id=uuid.UUID(request.product_id),
        title=request.title,
        price=_price(request.sale_price),
        allocation=request.allocation,
        per_customer_limit=request.per_customer_limit,
        start_time=wire.datetime_of(request.start_time) if request.HasField("start_time") else None,
        end_time=wire.datetime_of(request.end_time),
        hold_seconds=request.hold_duration.seconds or domain.SALE_HOLD_SECONDS_DEFAULT,
        abandoned_hold_limit=(
            request.abandoned_hold_limit
            if request.HasField("abandoned_hold_limit")
            else domain.ABANDONED_HOLD_LIMIT_DEFAULT
        ),
    )


def _changes(request: sale_pb.UpdateFlashSaleRequest) -> SaleChanges:
    given = {field.name for field, _ in request.ListFields()}
    paths = request.update_mask.paths
    fields = masks.select_fields(paths, given, mutable=domain.SALE_MUTABLE, required=domain.SALE_REQUIRED)
    values: dict[str, Any] = {field: getattr(request, field) for field in fields}
    if "sale_price" in values:
        values["price"] = _price(values.pop("sale_price"))
    if "abandoned_hold_limit" in values and "abandoned_hold_limit" not in given:
        values["abandoned_hold_limit"] = domain.ABANDONED_HOLD_LIMIT_DEFAULT
    if "hold_duration" in values:
        values["hold_seconds"] = values.pop("hold_duration").seconds or domain.SALE_HOLD_SECONDS_DEFAULT
    for time in values.keys() & {"start_time", "end_time"}:
        values[time] = wire.datetime_of(values[time])
    return SaleChanges(**values)


def _sale(sale: FlashSale) -> sale_pb.FlashSale:
    next_expiry = sale.next_hold_expire_time
    return sale_pb.FlashSale(
        id=str(sale.id),
        product_id=str(sale.product_id),
        title=sale.title,
        sale_price=wire.money(sale.price),
        allocation=sale.allocation,
        per_customer_limit=sale.per_customer_limit,
        start_time=wire.timestamp(sale.start_time),
        end_time=wire.timestamp(sale.end_time),
        state=sale_pb.FlashSale.State.Value(sale.state),
        remaining=sale.remaining,
        held=sale.held,
        sold=sale.sold,
        hold_duration=Duration(seconds=sale.hold_seconds),
        abandoned_hold_limit=sale.abandoned_hold_limit,
        create_time=wire.timestamp(sale.create_time),
        update_time=wire.timestamp(sale.update_time),
        server_time=wire.timestamp(sale.server_time),
        starts_in=wire.duration(sale.start_time - sale.server_time) if sale.state == SaleState.SCHEDULED else None,
        ends_in=wire.duration(sale.end_time - sale.server_time) if sale.state in _TO_END else None,
        next_hold_expire_time=wire.timestamp(next_expiry) if next_expiry else None,
        etag=db.etag(sale.version),
    )


@lru_cache(maxsize=256)
def _shared(sale: FlashSale) -> sale_pb.FlashSale:
    """`_sale`, computed once for all watchers of the same sale."""
    return _sale(sale)


def _counted(request: stock_pb.BatchUpdateStockRequest) -> dict[uuid.UUID, int]:
    counted: dict[uuid.UUID, int] = {}
    again = {}
    for number, item in enumerate(request.updates):
        product_id = uuid.UUID(item.product_id)
        if product_id in counted:
            again[f"updates[{number}].productId"] = "is named by an earlier item"
        counted[product_id] = item.on_hand
    if again:
        raise InvalidFields(again)
    return counted


def _stock(row: Stock) -> stock_pb.Stock:
    return stock_pb.Stock(
        product_id=str(row.product_id),
        on_hand=row.on_hand,
        held=row.held,
        available=row.on_hand - row.held,
        update_time=wire.timestamp(row.update_time),
    )


def _movement(row: Movement) -> stock_pb.StockMovement:
    return stock_pb.StockMovement(
        id=row.id,
        product_id=str(row.product_id),
        delta=row.delta,
        kind=stock_pb.StockMovement.Kind.Value(row.kind),
        reason=row.reason,
        reference_id=str(row.reference_id),
        create_time=wire.timestamp(row.create_time),
    )
