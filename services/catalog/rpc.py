"""Handlers of the catalog: parse the request, call one action, build the response."""

import dataclasses
import uuid
from typing import Any

import grpc

from services.catalog import actions, domain
from services.catalog.domain import Changes, Draft, Filter
from services.catalog.sql.schema import Product
from services.chassis import request_context
from services.chassis.data.db import Database, etag, parse_uuids
from services.chassis.money import Money, check_chargeable
from services.chassis.server import masks, paging, wire
from services.chassis.server.paging import Pages
from stampede.catalog.v1 import catalog_service_pb2 as pb
from stampede.catalog.v1 import catalog_service_pb2_grpc as pb_grpc
from stampede.catalog.v1 import snapshot_service_pb2 as snapshot_pb
from stampede.catalog.v1 import snapshot_service_pb2_grpc as snapshot_pb_grpc
from stampede.type.v1 import money_pb2

Context = grpc.aio.ServicerContext[Any, Any]


class CatalogService(pb_grpc.CatalogServiceServicer):
    def __init__(self, db: Database, pages: Pages) -> None:
        self._db, self._pages = db, pages

    async def CreateProduct(self, request: pb.CreateProductRequest, context: Context) -> pb.Product:
        draft = Draft(
            sku=request.sku,
            slug=request.slug,
            name=request.name,
            description=request.description,
            category=request.category,
            price=_price(request.price),
            attributes=dict(request.attributes),
            active=request.active if request.HasField("active") else True,
        )
        return to_proto(await actions.create_product(self._db, draft, key=request_context.request_key(request)))

    async def GetProduct(self, request: pb.GetProductRequest, context: Context) -> pb.Product:
        return to_proto(await actions.get_product(self._db, uuid.UUID(request.product_id)))

    async def GetProductBySlug(self, request: pb.GetProductBySlugRequest, context: Context) -> pb.Product:
        return to_proto(await actions.get_product(self._db, request.slug))

    async def ListProducts(self, request: pb.ListProductsRequest, context: Context) -> pb.ListProductsResponse:
        wanted = Filter(
            query=request.query,
            category=request.category,
            price_min=request.min_price,
            price_max=request.max_price,
            attribute=request.attribute,
            order_by=request.order_by or "newest",
        )
        query = dataclasses.asdict(wanted)
        position = self._pages.verify(request.page_token, query)
        page = await actions.list_products(self._db, wanted, position=position, size=paging.size(request.page_size))
        found = paging.fit(page.products, to_proto)
        is_last = page.is_last and len(found) == len(page.products)
        return pb.ListProductsResponse(
            products=found,
            next_page_token="" if is_last else self._pages.sign(page.positions[len(found) - 1], query),
            total_size=page.total,
        )

    async def UpdateProduct(self, request: pb.UpdateProductRequest, context: Context) -> pb.Product:
        return await self._update(request, _changes(request))

    async def ActivateProduct(self, request: pb.ActivateProductRequest, context: Context) -> pb.Product:
        return await self._update(request, Changes(active=True))

    async def DeactivateProduct(self, request: pb.DeactivateProductRequest, context: Context) -> pb.Product:
        return await self._update(request, Changes(active=False))

    async def _update(
        self,
        request: pb.UpdateProductRequest | pb.ActivateProductRequest | pb.DeactivateProductRequest,
        changes: Changes,
    ) -> pb.Product:
        product_id, key = uuid.UUID(request.product_id), request_context.request_key(request)
        return to_proto(await actions.update_product(self._db, product_id, changes, etag_given=request.etag, key=key))


class SnapshotService(snapshot_pb_grpc.SnapshotServiceServicer):
    def __init__(self, db: Database) -> None:
        self._db = db

    async def GetSnapshots(
        self, request: snapshot_pb.GetSnapshotsRequest, context: Context
    ) -> snapshot_pb.GetSnapshotsResponse:
        found = await actions.get_snapshots(self._db, parse_uuids(request.product_ids))
        return snapshot_pb.GetSnapshotsResponse(
            snapshots=(
                snapshot_pb.Snapshot(
                    product_id=str(snapshot.product_id),
                    sku=snapshot.sku,
                    name=snapshot.name,
                    price=wire.money(snapshot.price),
                    active=snapshot.active,
                )
                for snapshot in found
            )
        )


def to_proto(product: Product) -> pb.Product:
    original = product.original_price_minor
    return pb.Product(
        id=str(product.id),
        sku=product.sku,
        slug=product.slug,
        name=product.name,
        description=product.description,
        category=product.category,
        price=wire.money(Money(product.currency, product.price_minor)),
        original_price=None if original is None else wire.money(Money(product.currency, original)),
        discount_percent=domain.discount_percent(product.price_minor, original),
        attributes=product.attributes,
        active=product.active,
        create_time=wire.timestamp(product.create_time),
        update_time=wire.timestamp(product.update_time),
        etag=etag(product.version),
    )


def _price(message: money_pb2.Money) -> Money:
    price = wire.money_of(message)
    check_chargeable(price, "price")
    return price


def _changes(request: pb.UpdateProductRequest) -> Changes:
    given = {field.name for field, _ in request.ListFields()}
    fields = masks.select_fields(request.update_mask.paths, given, mutable=domain.MUTABLE, required=domain.REQUIRED)
    values = {field: getattr(request, field) for field in fields}
    if "price" in values:
        values["price"] = _price(values["price"])
    if "attributes" in values:
        values["attributes"] = dict(values["attributes"])
    return Changes(**values)
