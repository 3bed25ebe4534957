"""Inventory as its callers see it: who may call what, field names, order of outcomes, live views."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis import ids
from services.chassis.client.target import Target
from services.chassis.data.db import Database
from services.chassis.server.access import MeshIdentity
from services.chassis.server.masks import json_name
from services.chassis.server.paging import Pages
from services.inventory.background.sale_watch import sale_watch
from services.inventory.clients import Catalog
from services.inventory.events import no_nudge
from services.inventory.gate.gate import Gate
from services.inventory.reservations import settle
from services.inventory.rpc import FlashSaleService, ReservationService, StockService
from stampede.catalog.v1 import snapshot_service_pb2 as snapshot_pb
from stampede.catalog.v1 import snapshot_service_pb2_grpc as snapshot_grpc
from stampede.inventory.v1 import flash_sale_service_pb2 as sale_pb
from stampede.inventory.v1 import flash_sale_service_pb2_grpc as sale_grpc
from stampede.inventory.v1 import reservation_service_pb2 as pb
from stampede.inventory.v1 import reservation_service_pb2_grpc as pb_grpc
from stampede.inventory.v1 import stock_service_pb2 as stock_pb
from stampede.inventory.v1 import stock_service_pb2_grpc as stock_grpc
from stampede.type.v1.money_pb2 import Money
from tests.integration.inventory.conftest import (
    a_product,
    a_sale,
    books,
    hold_ended,
    holding,
    of_sale,
    of_stock,
    rebuild,
    sale_ended,
)
from tests.support import tokens
from tests.support.serving import Refusal, refusal, serving

ORDERS = tokens.as_service("orders")
State = sale_pb.FlashSale.State


@dataclass
class Inventory:
    stock: stock_grpc.StockServiceStub
    sales: sale_grpc.FlashSaleServiceStub
    reservations: pb_grpc.ReservationServiceStub


class FakeCatalog(snapshot_grpc.SnapshotServiceServicer):
    """Every product costs dollars, except those in `currencies`."""

    def __init__(self) -> None:
        self.currencies: dict[str, str] = {}
        """An empty one stands for no product."""

    async def GetSnapshots(self, request: Any, context: Any) -> snapshot_pb.GetSnapshotsResponse:
        found = {id_: self.currencies.get(id_, "USD") for id_ in request.product_ids}
        return snapshot_pb.GetSnapshotsResponse(
            snapshots=[
                snapshot_pb.Snapshot(product_id=id_, price=Money(currency_code=currency, minor_units=1999))
                for id_, currency in found.items()
                if currency
            ]
        )


@pytest.fixture
async def products() -> FakeCatalog:
    return FakeCatalog()


@pytest.fixture
async def catalog(products: FakeCatalog) -> AsyncIterator[Catalog]:
    ports: list[int] = []
    add = snapshot_grpc.add_SnapshotServiceServicer_to_server
    async with serving("catalog", lambda server: add(products, server), ports=ports):
        target = Target("catalog", f"127.0.0.1:{ports[0]}", MeshIdentity("inventory", tokens.MESH_SECRET))
        yield Catalog(target)
        await target.close()


@pytest.fixture
async def inventory(db: Database, gate: Gate, catalog: Catalog) -> AsyncIterator[Inventory]:
    pages, watch = Pages("a secret for pages"), sale_watch(db)
    looking = asyncio.create_task(watch.run())

    def register(server: Any) -> None:
        stock_grpc.add_StockServiceServicer_to_server(StockService(db, pages, catalog), server)
        sale_grpc.add_FlashSaleServiceServicer_to_server(FlashSaleService(db, pages, watch, catalog), server)
        pb_grpc.add_ReservationServiceServicer_to_server(ReservationService(db, gate, no_nudge), server)

    async with serving("inventory", register) as channel:
        yield Inventory(
            stock_grpc.StockServiceStub(channel), sale_grpc.FlashSaleServiceStub(channel),
            pb_grpc.ReservationServiceStub(channel),
        )  # fmt: skip
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


def a_hold(sale: Any, quantity: int = 1, **fields: Any) -> pb.Hold:
    line = pb.HoldLine(product_id=str(sale.product_id), flash_sale_id=str(sale.id), quantity=quantity)
    return pb.Hold(
        **{"id": str(ids.new()), "customer_id": str(ids.new()), "lines": [line], "duration": Duration(seconds=60)}
        | fields
    )


def a_sale_request(product_id: uuid.UUID, **fields: Any) -> sale_pb.CreateFlashSaleRequest:
    request = sale_pb.CreateFlashSaleRequest(
        product_id=str(product_id), title="A rush", sale_price=Money(currency_code="USD", minor_units=999),
        allocation=5, per_customer_limit=0,
    )  # fmt: skip
    request.start_time.GetCurrentTime()
    request.end_time.GetCurrentTime()
    request.end_time.seconds += 3600
    for name, value in fields.items():
        if hasattr(value, "CopyFrom"):
            getattr(request, name).CopyFrom(value)
        else:
            setattr(request, name, value)
    return request


def a_count(*counted: tuple[str, int]) -> stock_pb.BatchUpdateStockRequest:
    updates = [stock_pb.StockUpdate(product_id=product_id, on_hand=on_hand) for product_id, on_hand in counted]
    return stock_pb.BatchUpdateStockRequest(updates=updates, reason="inventory night")


async def a_scheduled_sale(db: Database) -> Any:
    """Opens in an hour, for an hour."""
    opens = (await a_sale(db)).end_time
    return await a_sale(db, start_time=opens, end_time=opens + timedelta(hours=1), per_customer_limit=2)


@pytest.mark.parametrize(
    "method",
    ["BatchReserve", "BatchConfirm", "BatchExtend", "BatchRehold", "BatchRelease", "BatchCreateReturns"],
)
async def test_only_orders_moves_reservations(inventory: Inventory, method: str) -> None:
    call, request = getattr(inventory.reservations, method), getattr(pb, f"{method}Request")()
    allowed = await refusal(call(request, metadata=ORDERS))
    assert (allowed.code, allowed.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")  # it got as far as the rules

    for who in ("payments", "catalog", "inventory"):
        assert (await refusal(call(request, metadata=tokens.as_service(who)))).code == "PERMISSION_DENIED"
    for who in ((), tokens.as_staff(), tokens.as_user(ids.new())):
        assert (await refusal(call(request, metadata=who))).code == "UNAUTHENTICATED"


async def test_only_staff_changes_stock_and_sales(inventory: Inventory, db: Database) -> None:
    product_id = str(await a_product(db))
    live = [str((await a_sale(db)).id) for _ in range(2)]
    opens = (await a_sale(db)).end_time
    scheduled = str((await a_sale(db, start_time=opens, end_time=opens + timedelta(hours=1))).id)
    calls = [
        (inventory.stock.SetStock, stock_pb.SetStockRequest(product_id=product_id, on_hand=9, reason="counted")),
        (inventory.stock.AdjustStock, stock_pb.AdjustStockRequest(product_id=product_id, delta=1, reason="found")),
        (inventory.stock.ListStockMovements, stock_pb.ListStockMovementsRequest(product_id=product_id)),
        (inventory.stock.BatchUpdateStock, a_count((product_id, 7))),
        (inventory.sales.CreateFlashSale, a_sale_request(uuid.UUID(product_id))),
        (inventory.sales.UpdateFlashSale, sale_pb.UpdateFlashSaleRequest(sale_id=scheduled, title="Another rush")),
        (inventory.sales.CancelFlashSale, sale_pb.CancelFlashSaleRequest(sale_id=live[0])),
        (inventory.sales.EndFlashSale, sale_pb.EndFlashSaleRequest(sale_id=live[1])),
    ]
    for call, request in calls:
        assert (await refusal(call(request))).code == "UNAUTHENTICATED"
        assert (await refusal(call(request, metadata=tokens.as_user(ids.new())))).code == "PERMISSION_DENIED"
        assert (await refusal(call(request, metadata=ORDERS))).code == "UNAUTHENTICATED"
        await call(request, metadata=tokens.as_staff())
    await inventory.stock.GetStock(stock_pb.GetStockRequest(product_id=product_id))  # anybody


async def test_outcomes_come_in_the_order_asked_each_with_its_own_reason(inventory: Inventory, db: Database) -> None:
    sale, limited = await a_sale(db, units=3), await a_sale(db, units=9, per_customer_limit=1)
    stranger = a_hold(sale)
    stranger.lines[0].flash_sale_id = str(uuid.uuid4())
    ordinary = a_hold(sale)
    ordinary.lines[0].flash_sale_id = ""
    unknown = a_hold(sale)
    unknown.lines[0].flash_sale_id, unknown.lines[0].product_id = "", str(uuid.uuid4())
    holds = [a_hold(sale, 9), a_hold(sale, 2), stranger, a_hold(limited, 2), ordinary, unknown, a_hold(sale)]

    outcomes = (
        await inventory.reservations.BatchReserve(pb.BatchReserveRequest(holds=holds), metadata=ORDERS)
    ).outcomes

    assert [o.refusal.reason for o in outcomes] == [
        "SOLD_OUT", "", "FLASH_SALE_NOT_FOUND", "CUSTOMER_LIMIT", "OUT_OF_STOCK", "STOCK_NOT_FOUND", "",
    ]  # fmt: skip
    assert [o.refusal.code for o in outcomes] == [9, 0, 5, 9, 9, 5, 0]
    assert outcomes[0].refusal.metadata["flashSaleId"] == str(sale.id)
    assert outcomes[0].refusal.domain == "inventory.stampede"
    held = outcomes[1].reservation
    assert (held.id, held.state) == (holds[1].id, pb.Reservation.HELD)
    assert held.lines[0] == pb.ReservedLine(
        product_id=str(sale.product_id), flash_sale_id=str(sale.id), quantity=2,
        sale_price=Money(currency_code="USD", minor_units=999),
    )  # fmt: skip
    assert await books(db) == []


async def test_a_reservation_goes_its_way_over_the_wire(inventory: Inventory, db: Database) -> None:
    sale = await a_sale(db, units=3)
    sold, back = a_hold(sale), a_hold(sale)
    reserved = await inventory.reservations.BatchReserve(pb.BatchReserveRequest(holds=[sold, back]), metadata=ORDERS)
    held = [outcome.reservation for outcome in reserved.outcomes]
    unknown = str(uuid.uuid4())

    extended = await inventory.reservations.BatchExtend(pb.BatchExtendRequest(ids=[unknown, back.id]), metadata=ORDERS)
    confirmed = await inventory.reservations.BatchConfirm(
        pb.BatchConfirmRequest(ids=[unknown, sold.id]), metadata=ORDERS
    )
    released = await inventory.reservations.BatchRelease(
        pb.BatchReleaseRequest(ids=[sold.id, back.id]), metadata=ORDERS
    )

    assert extended.outcomes[0].refusal.reason == "RESERVATION_NOT_FOUND"
    longer = extended.outcomes[1].reservation
    assert (longer.state, longer.expire_time.seconds - held[1].expire_time.seconds) == (pb.Reservation.HELD, 60)
    assert confirmed.outcomes[0].refusal.reason == "RESERVATION_NOT_FOUND"
    assert confirmed.outcomes[1].reservation.state == pb.Reservation.CONFIRMED
    assert released.outcomes[0].refusal.reason == "WRONG_STATE"
    assert released.outcomes[1].reservation.state == pb.Reservation.RELEASED
    now = await inventory.sales.GetFlashSale(sale_pb.GetFlashSaleRequest(sale_id=str(sale.id)))
    assert (now.held, now.sold, now.remaining) == (0, 1, 2)


async def test_sold_units_come_back_over_the_wire(inventory: Inventory, db: Database) -> None:
    sale = await a_sale(db, units=3)
    sold, held = a_hold(sale, 3), str((await holding(db, of_stock(await a_product(db)))).id)
    await inventory.reservations.BatchReserve(pb.BatchReserveRequest(holds=[sold]), metadata=ORDERS)
    await inventory.reservations.BatchConfirm(pb.BatchConfirmRequest(ids=[sold.id]), metadata=ORDERS)
    two = pb.ReturnLine(product_id=str(sale.product_id), quantity=2)
    wishes = [
        pb.Return(return_id=str(ids.new()), reservation_id=id_, lines=lines)
        for id_, lines in ((sold.id, [two]), (sold.id, [two]), (sold.id, []), (held, []), (str(uuid.uuid4()), []))
    ]
    wishes.append(pb.Return(return_id=wishes[0].return_id, reservation_id=sold.id))

    answer = await inventory.reservations.BatchCreateReturns(
        pb.BatchCreateReturnsRequest(returns=wishes), metadata=ORDERS
    )

    first = pb.Return(return_id=wishes[0].return_id, reservation_id=sold.id, lines=[two])
    assert answer.outcomes[0].returned == first
    assert [o.refusal.reason for o in answer.outcomes] == [
        "", "RETURN_TOO_LARGE", "", "WRONG_STATE", "RESERVATION_NOT_FOUND", "REQUEST_ID_REUSED",
    ]  # fmt: skip
    assert [o.refusal.code for o in answer.outcomes] == [0, 9, 0, 9, 5, 3]
    assert answer.outcomes[1].refusal.metadata == {
        "reservationId": sold.id, "productId": str(sale.product_id), "out": "1",
    }  # fmt: skip
    assert [line.quantity for line in answer.outcomes[2].returned.lines] == [1]
    assert await books(db) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"return_id": ""}, "returns[0].returnId"),
        ({"reservation_id": "x"}, "returns[0].reservationId"),
        ({"lines": [pb.ReturnLine(product_id="y", quantity=1)]}, "returns[0].lines[0].productId"),
        ({"lines": [pb.ReturnLine(product_id=str(ids.new()))]}, "returns[0].lines[0].quantity"),
        ({"lines": [pb.ReturnLine(product_id=str(ids.new()), quantity=1)] * 2}, "returns[0]"),
    ],
)
async def test_a_wrong_field_of_a_return_is_named(inventory: Inventory, changes: dict[str, Any], field: str) -> None:
    item = pb.Return(**{"return_id": str(ids.new()), "reservation_id": str(ids.new())} | changes)
    refused = await refusal(
        inventory.reservations.BatchCreateReturns(pb.BatchCreateReturnsRequest(returns=[item]), metadata=ORDERS)
    )
    assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", [field])


async def test_a_released_unit_can_be_bought_again_at_once_through_the_gate(
    inventory: Inventory, db: Database, gate: Gate
) -> None:
    sale = await a_sale(db, units=1)
    await rebuild(gate, db)
    first, second = a_hold(sale), a_hold(sale)
    await inventory.reservations.BatchReserve(pb.BatchReserveRequest(holds=[first]), metadata=ORDERS)
    await inventory.reservations.BatchRelease(pb.BatchReleaseRequest(ids=[first.id]), metadata=ORDERS)

    (outcome,) = (
        await inventory.reservations.BatchReserve(pb.BatchReserveRequest(holds=[second]), metadata=ORDERS)
    ).outcomes

    assert outcome.reservation.state == pb.Reservation.HELD


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"id": "x"}, "holds[0].id"),
        ({"customer_id": ""}, "holds[0].customerId"),
        ({"lines": []}, "holds[0].lines"),
        ({"lines": [pb.HoldLine(product_id=str(uuid.uuid4()), quantity=0)]}, "holds[0].lines[0].quantity"),
        ({"lines": [pb.HoldLine(product_id="y", quantity=1)]}, "holds[0].lines[0].productId"),
        ({"duration": Duration(seconds=3601)}, "holds[0].duration"),
    ],
)
async def test_a_wrong_field_is_named(inventory: Inventory, db: Database, changes: dict[str, Any], field: str) -> None:
    hold = a_hold(await a_sale(db), **changes)
    refused = await refusal(inventory.reservations.BatchReserve(pb.BatchReserveRequest(holds=[hold]), metadata=ORDERS))
    assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", [field])


async def test_wrong_terms_of_a_sale_are_named(inventory: Inventory, db: Database) -> None:
    product_id = await a_product(db)
    wrong = a_sale_request(product_id, allocation=0, hold_duration=Duration(seconds=3601), title="")
    wrong.start_time.seconds -= 7200
    wrong.end_time.seconds -= 7200
    refused = await refusal(inventory.sales.CreateFlashSale(wrong, metadata=tokens.as_staff()))
    assert sorted(refused.fields) == ["allocation", "endTime", "holdDuration", "title"]

    backwards = a_sale_request(product_id)
    backwards.start_time.seconds = backwards.end_time.seconds + 1
    refused = await refusal(inventory.sales.CreateFlashSale(backwards, metadata=tokens.as_staff()))
    assert refused.fields == ["end_after_start"]


async def test_a_sale_is_created_once_under_its_idempotency_key(inventory: Inventory, db: Database) -> None:
    product_id, staff = await a_product(db), tokens.as_staff()
    request, key = a_sale_request(product_id), ("idempotency-key", str(uuid.uuid4()))

    first = await inventory.sales.CreateFlashSale(request, metadata=(*staff, key))
    again = await inventory.sales.CreateFlashSale(request, metadata=(*staff, key))
    request.allocation = 4
    refused = await refusal(inventory.sales.CreateFlashSale(request, metadata=(*staff, key)))

    assert first.id == again.id
    assert (first.state, first.allocation, first.remaining, first.hold_duration.seconds) == (State.LIVE, 5, 5, 600)
    assert refused.reason == "REQUEST_ID_REUSED"


async def test_a_sale_has_the_currency_of_its_product(
    inventory: Inventory, db: Database, products: FakeCatalog
) -> None:
    yen, dinars, nothing = [await a_product(db) for _ in range(3)]
    products.currencies = {str(yen): "JPY", str(dinars): "KWD", str(nothing): ""}

    def creating(product_id: uuid.UUID, currency: str, minor_units: int) -> Any:
        price = Money(currency_code=currency, minor_units=minor_units)
        return inventory.sales.CreateFlashSale(a_sale_request(product_id, sale_price=price), metadata=tokens.as_staff())

    for refused, field in (
        (creating(yen, "USD", 999), "salePrice.currencyCode"),
        (creating(yen, "ZZZ", 999), "salePrice.currencyCode"),
        (creating(dinars, "KWD", 12345), "salePrice.minorUnits"),
    ):
        assert (await refusal(refused)).fields == [field]
    unknown = await refusal(creating(nothing, "USD", 999))
    assert (unknown.code, unknown.reason) == ("NOT_FOUND", "PRODUCT_NOT_FOUND")
    assert (await creating(yen, "JPY", 999)).sale_price.currency_code == "JPY"
    assert (await creating(dinars, "KWD", 12340)).sale_price.minor_units == 12340


async def test_a_sale_keeps_its_currency(inventory: Inventory, db: Database) -> None:
    sale = await a_scheduled_sale(db)
    for currency, field in (("JPY", "salePrice.currencyCode"), ("ZZZ", "salePrice.currencyCode")):
        price = Money(currency_code=currency, minor_units=5)
        request = sale_pb.UpdateFlashSaleRequest(sale_id=str(sale.id), sale_price=price)
        refused = await refusal(inventory.sales.UpdateFlashSale(request, metadata=tokens.as_staff()))
        assert (refused.reason, refused.fields) == ("INVALID_FIELDS", [field])


async def test_a_scheduled_sale_is_changed_as_its_mask_says(inventory: Inventory, db: Database) -> None:
    sale, staff = await a_scheduled_sale(db), tokens.as_staff()
    price = Money(currency_code="USD", minor_units=5)

    async def changed(*paths: str, **fields: Any) -> sale_pb.FlashSale:
        request = sale_pb.UpdateFlashSaleRequest(sale_id=str(sale.id), update_mask={"paths": paths}, **fields)
        return await inventory.sales.UpdateFlashSale(request, metadata=staff)

    now = await changed(title="Second", sale_price=price, hold_duration=Duration(seconds=30))
    assert (now.title, now.sale_price, now.hold_duration.seconds, now.etag) == ("Second", price, 30, '"2"')
    now = await changed("title", title="Third")
    assert (now.title, now.allocation) == ("Third", 10), "what the mask does not name stays"
    assert (await refusal(changed("title", title="Third", allocation=3))).fields == ["allocation"]
    now = await changed("hold_duration", "per_customer_limit", per_customer_limit=0)
    assert (now.hold_duration.seconds, now.per_customer_limit) == (600, 0), "named and not set is the default"
    assert (now.abandoned_hold_limit, (await changed(abandoned_hold_limit=0)).abandoned_hold_limit) == (10, 0)
    assert (await changed("abandoned_hold_limit")).abandoned_hold_limit == 10, "named and not set is the default"
    for field, value in {"state": State.ENDED, "sold": 0, "product_id": sale.id.hex, "starts_in": Duration()}.items():
        assert (await refusal(changed(**{field: value}))).fields == [json_name(field)]
    assert (await refusal(changed())).fields == ["updateMask"]

    for path in ("state", "remaining", "product_id", "etag", "sale_price.minor_units", "nothing"):
        refused = await refusal(changed("title", path, title="Fourth"))
        assert (refused.reason, refused.fields) == ("INVALID_FIELDS", ["updateMask"]), path
    for path, field in (
        ("title", "title"), ("sale_price", "salePrice"), ("end_time", "endTime"), ("start_time", "startTime"),
        ("per_customer_limit", "perCustomerLimit"), ("*", "allocation"),
    ):  # fmt: skip
        assert field in (await refusal(changed(path))).fields
    for fields in (
        {"title": ""}, {"allocation": 0}, {"per_customer_limit": 1001}, {"hold_duration": Duration()},
        {"hold_duration": Duration(seconds=1, nanos=900_000_000)}, {"end_time": Timestamp(seconds=253402300799)},
        {"start_time": Timestamp(seconds=253402300799)}, {"abandoned_hold_limit": -1}, {"abandoned_hold_limit": 1001},
    ):  # fmt: skip
        assert (await refusal(changed(**fields))).reason == "INVALID_FIELDS", fields
    stale = await refusal(changed(title="Fourth", etag='"1"'))
    assert (stale.code, stale.reason) == ("ABORTED", "STALE_ETAG")

    opened = await changed(start_time=Timestamp(seconds=1))
    assert (opened.state, opened.title) == (State.LIVE, "Third"), "the past is at once"
    refused = await refusal(changed(title="Fourth"))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "WRONG_STATE")
    assert refused.message == "The flash sale is LIVE; it cannot become CHANGED."


async def test_sales_are_closed_by_staff(inventory: Inventory, db: Database) -> None:
    first, second = str((await a_sale(db)).id), str((await a_sale(db)).id)
    staff, key = tokens.as_staff(), str(uuid.uuid4())
    cancel = sale_pb.CancelFlashSaleRequest(sale_id=first, request_id=key)

    for _ in range(2):
        called_off = await inventory.sales.CancelFlashSale(cancel, metadata=staff)
        assert (called_off.state, called_off.remaining, called_off.etag) == (State.CANCELLED, 0, '"2"')
    ended = await inventory.sales.EndFlashSale(sale_pb.EndFlashSaleRequest(sale_id=second, etag='"1"'), metadata=staff)

    assert ended.state == State.ENDED
    assert ended.end_time.ToNanoseconds() <= ended.server_time.ToNanoseconds()
    again = await refusal(inventory.sales.EndFlashSale(sale_pb.EndFlashSaleRequest(sale_id=first), metadata=staff))
    assert (again.code, again.reason) == ("FAILED_PRECONDITION", "WRONG_STATE")
    assert again.metadata == {"resource": "flash sale", "state": "CANCELLED", "wanted": "ENDED"}
    reused = sale_pb.CancelFlashSaleRequest(sale_id=second, request_id=key)
    assert (await refusal(inventory.sales.CancelFlashSale(reused, metadata=staff))).reason == "REQUEST_ID_REUSED"


async def test_the_countdown_is_set_while_it_runs(inventory: Inventory, db: Database) -> None:
    live, over, scheduled = await a_sale(db), await a_sale(db), await a_scheduled_sale(db)
    await sale_ended(db, over.id)
    held = await holding(db, of_sale(live))

    listed = await inventory.sales.ListFlashSales(sale_pb.ListFlashSalesRequest())
    by_id = {sale.id: sale for sale in listed.flash_sales}
    for sale, fields in (
        (live, {"ends_in", "next_hold_expire_time"}), (over, set()), (scheduled, {"starts_in", "ends_in"}),
    ):  # fmt: skip
        alone = await inventory.sales.GetFlashSale(sale_pb.GetFlashSaleRequest(sale_id=str(sale.id)))
        for shown in (alone, by_id[str(sale.id)]):
            assert {f for f in ("starts_in", "ends_in", "next_hold_expire_time") if shown.HasField(f)} == fields
            for span, end in (("starts_in", "start_time"), ("ends_in", "end_time")):
                if span in fields:
                    left = getattr(shown, end).ToDatetime() - shown.server_time.ToDatetime()
                    assert getattr(shown, span).ToTimedelta() == left > timedelta(0)
    assert by_id[str(live.id)].next_hold_expire_time.ToDatetime(UTC) == held.expire_time


async def test_many_stocks_are_set_in_one_call(inventory: Inventory, db: Database) -> None:
    known, new, staff = str(await a_product(db)), str(uuid.uuid4()), tokens.as_staff()

    answer = await inventory.stock.BatchUpdateStock(a_count((new, 4), (known, 0)), metadata=staff)

    assert [(s.product_id, s.on_hand, s.available) for s in answer.stocks] == [(new, 4, 4), (known, 0, 0)]
    held = await a_product(db)
    await holding(db, of_stock(held, 3))
    short = await refusal(inventory.stock.BatchUpdateStock(a_count((known, 5), (str(held), 2)), metadata=staff))
    assert (short.code, short.reason, short.metadata) == (
        "FAILED_PRECONDITION", "OUT_OF_STOCK", {"productId": str(held)},
    )  # fmt: skip
    assert (await inventory.stock.GetStock(stock_pb.GetStockRequest(product_id=known))).on_hand == 0
    assert await books(db) == []


async def test_the_items_of_a_count_that_are_wrong_are_named(inventory: Inventory, db: Database) -> None:
    one, other = str(uuid.uuid4()), str(uuid.uuid4())
    unsaid = a_count((one, 1), (other, 1))
    unsaid.updates[1].ClearField("on_hand")
    many = [(str(uuid.uuid4()), 1) for _ in range(1001)]
    for request, fields in (
        (a_count((one, 1), (other, 1), (one.upper(), 2), (other, 1)), ["updates[2].productId", "updates[3].productId"]),
        (a_count((one, 1), ("x", 1), (other, -1)), ["updates[1].productId", "updates[2].onHand"]),
        (a_count((one, 1_000_000_001)), ["updates[0].onHand"]),
        (unsaid, ["updates[1].onHand"]),
        (a_count(), ["updates"]),
        (a_count(*many), ["updates"]),
    ):
        refused = await refusal(inventory.stock.BatchUpdateStock(request, metadata=tokens.as_staff()))
        assert (refused.reason, sorted(refused.fields)) == ("INVALID_FIELDS", fields)
    assert (await inventory.stock.BatchUpdateStock(a_count(*many[1:]), metadata=tokens.as_staff())).stocks


async def test_first_stock_of_an_unknown_product_is_refused(
    inventory: Inventory, db: Database, products: FakeCatalog
) -> None:
    """Catalog is asked only about products without a stock, so counting goes on while it is unavailable."""
    known, unknown, staff = str(await a_product(db)), str(uuid.uuid4()), tokens.as_staff()
    products.currencies[unknown] = products.currencies[known] = ""  # the known one was deleted since
    one = stock_pb.SetStockRequest(product_id=unknown, on_hand=1, reason="counted")
    refused = await refusal(inventory.stock.SetStock(one, metadata=staff))
    assert (refused.code, refused.reason, refused.metadata) == (
        "NOT_FOUND", "PRODUCT_NOT_FOUND", {"productId": unknown},
    )  # fmt: skip
    missing = await refusal(inventory.stock.GetStock(stock_pb.GetStockRequest(product_id=unknown)))
    assert missing.reason == "STOCK_NOT_FOUND"
    count = stock_pb.SetStockRequest(product_id=known, on_hand=6, reason="counted")
    assert (await inventory.stock.SetStock(count, metadata=staff)).on_hand == 6


async def test_stock_over_the_wire(inventory: Inventory) -> None:
    product_id, staff = str(ids.new()), tokens.as_staff()
    missing = await refusal(inventory.stock.GetStock(stock_pb.GetStockRequest(product_id=product_id)))
    assert (missing.code, missing.reason) == ("NOT_FOUND", "STOCK_NOT_FOUND")
    unsaid = await refusal(
        inventory.stock.SetStock(stock_pb.SetStockRequest(product_id=product_id, reason="counted"), metadata=staff)
    )
    assert unsaid.fields == ["onHand"]

    request = stock_pb.SetStockRequest(product_id=product_id, on_hand=7, reason="counted")
    stock = await inventory.stock.SetStock(request, metadata=staff)
    assert (stock.on_hand, stock.held, stock.available) == (7, 0, 7)
    for delta in (3, -2):
        request = stock_pb.AdjustStockRequest(product_id=product_id, delta=delta, reason="found")
        stock = await inventory.stock.AdjustStock(request, metadata=staff)
    assert stock.on_hand == 8

    listed, token = [], ""
    for _ in range(3):
        page = await inventory.stock.ListStockMovements(
            stock_pb.ListStockMovementsRequest(product_id=product_id, page_size=1, page_token=token), metadata=staff
        )
        listed += [(m.delta, m.reason) for m in page.movements]
        token = page.next_page_token
    assert (listed, token) == ([(-2, "found"), (3, "found"), (7, "counted")], "")


async def test_sales_are_listed_in_pages_that_belong_to_their_query(inventory: Inventory, db: Database) -> None:
    sales = [await a_sale(db) for _ in range(5)]
    found, token = [], ""
    while True:
        page = await inventory.sales.ListFlashSales(sale_pb.ListFlashSalesRequest(page_size=2, page_token=token))
        found += [sale.id for sale in page.flash_sales]
        if not (token := page.next_page_token):
            break
        last = token
    assert found == [str(sale.id) for sale in reversed(sales)]

    for other in ({"state": State.LIVE}, {"product_id": str(sales[0].product_id)}):
        request = sale_pb.ListFlashSalesRequest(page_token=last, **other)
        assert (await refusal(inventory.sales.ListFlashSales(request))).fields == ["pageToken"]
    page = await inventory.sales.ListFlashSales(sale_pb.ListFlashSalesRequest(state=State.ENDED))
    assert list(page.flash_sales) == []


async def test_a_watcher_sees_the_sale_as_it_is_then_its_changes_then_its_end(
    inventory: Inventory, db: Database
) -> None:
    sale = await a_sale(db, units=2)
    async with asyncio.timeout(60):
        stream = inventory.sales.WatchFlashSale(sale_pb.WatchFlashSaleRequest(sale_id=str(sale.id)))
        seen = await stream.read()
        assert (seen.state, seen.remaining) == (State.LIVE, 2)

        held = await holding(db, of_sale(sale, 2))
        seen = await stream.read()
        assert (seen.state, seen.held, seen.remaining) == (State.SOLD_OUT, 2, 0)

        await hold_ended(db, held.id)
        await settle.expire(db)
        seen = await stream.read()
        assert (seen.state, seen.remaining) == (State.LIVE, 2)

        await sale_ended(db, sale.id)
        seen = await stream.read()
        assert seen.state == State.ENDED
        assert await stream.read() is grpc.aio.EOF


async def test_watching_an_unknown_sale_is_not_found(inventory: Inventory) -> None:
    stream = inventory.sales.WatchFlashSale(sale_pb.WatchFlashSaleRequest(sale_id=str(uuid.uuid4())))
    refused: Refusal = await refusal(stream.read())
    assert (refused.code, refused.reason) == ("NOT_FOUND", "FLASH_SALE_NOT_FOUND")


async def test_a_sale_that_is_over_is_shown_once(inventory: Inventory, db: Database) -> None:
    sale = await a_sale(db)
    await sale_ended(db, sale.id)
    stream = inventory.sales.WatchFlashSale(sale_pb.WatchFlashSaleRequest(sale_id=str(sale.id)))
    assert [message.state async for message in stream] == [State.ENDED]
