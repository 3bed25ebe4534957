"""The guard around every method, over a real server and real metadata."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.chassis import request_context
from services.chassis.errors import Unavailable, WrongState
from services.chassis.server import guard
from stampede.catalog.v1 import catalog_service_pb2 as pb
from stampede.catalog.v1.catalog_service_pb2_grpc import (
    CatalogServiceServicer,
    CatalogServiceStub,
    add_CatalogServiceServicer_to_server,
)
from stampede.inventory.v1 import flash_sale_service_pb2 as sales_pb
from stampede.inventory.v1.flash_sale_service_pb2_grpc import (
    FlashSaleServiceServicer,
    FlashSaleServiceStub,
    add_FlashSaleServiceServicer_to_server,
)
from stampede.type.v1.money_pb2 import Money
from tests.support.serving import refusal, serving
from tests.support.tokens import as_service, as_staff, as_user

SALE = "01890000-0000-7000-8000-0000000000ad"
SECRET = "password=hunter2"


class Catalog(CatalogServiceServicer):
    """Does what a test sets, and records the call."""

    def __init__(self) -> None:
        self.raises: Exception | None = None
        self.entered, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.request: Any = None
        self.call: request_context.Call | None = None

    async def CreateProduct(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        self.request, self.call = request, request_context.current()
        self.entered.set()
        await self.gate.wait()
        if self.raises:
            raise self.raises
        return pb.Product(id=request.request_id)


class FlashSales(FlashSaleServiceServicer):
    def __init__(self, fails_with: Exception) -> None:
        self._fails_with = fails_with

    async def WatchFlashSale(self, request: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        yield sales_pb.FlashSale(id=request.sale_id)
        raise self._fails_with


@pytest.fixture
def servicer() -> Catalog:
    return Catalog()


@pytest.fixture
async def catalog(servicer: Catalog) -> AsyncIterator[Any]:
    async with serving("catalog", lambda s: add_CatalogServiceServicer_to_server(servicer, s)) as channel:
        yield CatalogServiceStub(channel)


def a_request(**fields: Any) -> pb.CreateProductRequest:
    price = Money(currency_code="USD", minor_units=1999)
    return pb.CreateProductRequest(**{"sku": "RETRO-CLOCK", "name": "Clock", "price": price, **fields})


async def test_refusal_arrives_whole(catalog: Any, servicer: Catalog) -> None:
    servicer.raises = WrongState(resource="product", state="OLD", wanted="NEW")
    refused = await refusal(catalog.CreateProduct(a_request(), metadata=as_staff()))
    assert (refused.code, refused.reason, refused.domain) == ("FAILED_PRECONDITION", "WRONG_STATE", "catalog.stampede")
    assert refused.metadata == {"resource": "product", "state": "OLD", "wanted": "NEW"}


@pytest.mark.parametrize("error", [ValueError(SECRET), KeyError(SECRET), RuntimeError(SECRET), AssertionError(SECRET)])
async def test_bug_is_internal_without_details(catalog: Any, servicer: Catalog, error: Exception) -> None:
    servicer.raises = error
    refused = await refusal(catalog.CreateProduct(a_request(), metadata=as_staff()))
    assert (refused.code, refused.message, refused.reason) == ("INTERNAL", "Internal error.", "")


async def test_retryable_refusal_has_retry_after_header(catalog: Any, servicer: Catalog) -> None:
    servicer.raises = Unavailable(part="database")
    call = catalog.CreateProduct(a_request(), metadata=as_staff())
    refused = await refusal(call)
    assert (refused.code, refused.retry_seconds) == ("UNAVAILABLE", 1)
    assert dict(await call.initial_metadata())["retry-after"] == "1"


async def test_invalid_fields_are_named_as_clients_write_them(catalog: Any, servicer: Catalog) -> None:
    bad = a_request(request_id="x", price=Money(currency_code="usd", minor_units=1), attributes={"": "v"})
    refused = await refusal(catalog.CreateProduct(bad, metadata=as_staff()))
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")
    assert set(refused.fields) == {"requestId", "price.currencyCode", "attributes[]"}
    assert servicer.request is None


async def test_access_is_checked_before_validation(catalog: Any, servicer: Catalog) -> None:
    """So a caller without access learns nothing of the rules of a request."""
    nobody = await refusal(catalog.CreateProduct(pb.CreateProductRequest()))
    customer = await refusal(catalog.CreateProduct(pb.CreateProductRequest(), metadata=as_user(uuid.uuid4())))
    service = await refusal(catalog.CreateProduct(a_request(), metadata=as_service("orders")))
    assert [r.code for r in (nobody, customer, service)] == ["UNAUTHENTICATED", "PERMISSION_DENIED", "UNAUTHENTICATED"]
    assert servicer.request is None


async def test_idempotency_key_fills_the_request_id(catalog: Any) -> None:
    key = str(uuid.uuid4())
    made = await catalog.CreateProduct(a_request(), metadata=(*as_staff(), ("idempotency-key", key)))
    assert made.id == key


async def test_key_that_is_not_a_uuid_maps_to_a_constant_one(catalog: Any) -> None:
    async def id_for(key: str) -> str:
        made = await catalog.CreateProduct(a_request(), metadata=(*as_staff(), ("idempotency-key", key)))
        return str(uuid.UUID(made.id))

    assert await id_for("order #42") == await id_for("order #42") != await id_for("order #43")


async def test_request_id_of_the_body_takes_precedence(catalog: Any) -> None:
    request_id = str(uuid.uuid4())
    header = ("idempotency-key", str(uuid.uuid4()))
    assert (
        await catalog.CreateProduct(a_request(request_id=request_id), metadata=(*as_staff(), header))
    ).id == request_id


async def test_too_long_idempotency_key_is_refused(catalog: Any) -> None:
    header = ("idempotency-key", "k" * 256)
    refused = await refusal(catalog.CreateProduct(a_request(), metadata=(*as_staff(), header)))
    assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ["Idempotency-Key"])


async def test_handler_sees_its_call(catalog: Any, servicer: Catalog) -> None:
    user, began = uuid.uuid4(), time.monotonic()
    metadata = (*as_user(user, "staff"), ("x-request-id", "trace-me"))
    await catalog.CreateProduct(a_request(), metadata=metadata, timeout=30)
    call = servicer.call
    assert call
    assert call.deadline
    assert (call.caller.user_id, call.request_id) == (user, "trace-me")
    assert 25 < call.deadline - began < 35


async def test_call_without_a_request_id_gets_one(catalog: Any, servicer: Catalog) -> None:
    await catalog.CreateProduct(a_request(), metadata=as_staff())
    assert servicer.call
    assert uuid.UUID(servicer.call.request_id)


async def test_too_many_calls_in_flight_are_refused(
    catalog: Any, servicer: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted, and logged once a second with their number."""
    labels = {"code": "RESOURCE_EXHAUSTED", "reason": "RATE_LIMITED"}
    labels["method"] = "/stampede.catalog.v1.CatalogService/CreateProduct"
    counted = REGISTRY.get_sample_value("stampede_rpc_total", labels) or 0
    monkeypatch.setattr(guard, "_IN_FLIGHT_MAX", 1)
    servicer.gate.clear()
    first = asyncio.ensure_future(catalog.CreateProduct(a_request(), metadata=as_staff()))
    await servicer.entered.wait()
    with capture_logs() as logs:
        for _ in range(3):
            refused = await refusal(catalog.CreateProduct(a_request(), metadata=as_staff()))
            assert (refused.code, refused.reason, refused.retry_seconds) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED", 1)
    assert REGISTRY.get_sample_value("stampede_rpc_total", labels) == counted + 3
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["overloaded"]
    servicer.gate.set()
    await first
    await catalog.CreateProduct(a_request(), metadata=as_staff())


async def watched(error: Exception, sale_id: str = SALE) -> tuple[list[str], Any]:
    """Returns what a stream sent, and how it failed."""
    seen: list[str] = []
    add = add_FlashSaleServiceServicer_to_server
    async with serving("inventory", lambda s: add(FlashSales(error), s)) as channel:

        async def read() -> None:
            request = sales_pb.WatchFlashSaleRequest(sale_id=sale_id)
            async for sale in FlashSaleServiceStub(channel).WatchFlashSale(request):
                seen.append(sale.id)

        return seen, await refusal(read())


async def test_stream_is_refused_after_a_message() -> None:
    seen, refused = await watched(WrongState(resource="sale", state="ENDED", wanted="LIVE"))
    assert seen == [SALE]
    assert (refused.code, refused.reason, refused.domain) == (
        "FAILED_PRECONDITION",
        "WRONG_STATE",
        "inventory.stampede",
    )


async def test_refusal_after_a_message_has_retry_info() -> None:
    """Not as a header: headers were sent with the first message, and gRPC raises if they are sent again."""
    seen, refused = await watched(Unavailable(part="database"))
    assert seen == [SALE]
    assert (refused.code, refused.reason, refused.retry_seconds) == ("UNAVAILABLE", "UNAVAILABLE", 1)


async def test_bug_in_a_stream_is_internal() -> None:
    _, refused = await watched(ValueError(SECRET))
    assert (refused.code, refused.message) == ("INTERNAL", "Internal error.")


async def test_request_of_a_stream_is_validated() -> None:
    seen, refused = await watched(ValueError(), sale_id="no id")
    assert (seen, refused.code, refused.fields) == ([], "INVALID_ARGUMENT", ["saleId"])
