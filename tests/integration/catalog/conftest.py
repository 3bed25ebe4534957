"""A catalog behind the real guard, with its own database."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from services.catalog.rpc import CatalogService, SnapshotService
from services.chassis.data.db import Database
from services.chassis.server.paging import Pages
from stampede.catalog.v1 import catalog_service_pb2 as pb
from stampede.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub, add_CatalogServiceServicer_to_server
from stampede.catalog.v1.snapshot_service_pb2_grpc import add_SnapshotServiceServicer_to_server
from stampede.type.v1.money_pb2 import Money
from tests.support.databases import fill_pool
from tests.support.serving import serving
from tests.support.tokens import as_staff

Create = Callable[..., Awaitable[pb.Product]]


@pytest.fixture
async def db(database: Callable[[str], Awaitable[Database]]) -> Database:
    return await database("catalog")


@pytest.fixture
async def full_pool(db: Database) -> None:
    await fill_pool(db)


@pytest.fixture
async def channel(db: Database) -> AsyncIterator[grpc.aio.Channel]:
    async with serving(
        "catalog",
        lambda server: add_CatalogServiceServicer_to_server(CatalogService(db, Pages("a secret of pages")), server),
        lambda server: add_SnapshotServiceServicer_to_server(SnapshotService(db), server),
    ) as channel:
        yield channel


@pytest.fixture
def catalog(channel: grpc.aio.Channel) -> Any:
    return CatalogServiceStub(channel)


@pytest.fixture
def create(catalog: Any) -> Create:
    """Creates a product: `await create("MUG-1", 1999, name="Mug")`."""

    async def make(sku: str = "RETRO-CLOCK", price: int = 1999, **fields: Any) -> pb.Product:
        values = {"name": f"Product {sku}", "price": Money(currency_code="USD", minor_units=price), **fields}
        product: pb.Product = await catalog.CreateProduct(
            pb.CreateProductRequest(sku=sku, **values), metadata=as_staff()
        )
        return product

    return make
