"""Creating and changing products."""

import asyncio
import uuid
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy import func, select, text

from services.catalog.sql.schema import Product
from services.chassis.data.db import Database
from services.chassis.server.masks import json_name
from stampede.catalog.v1 import catalog_service_pb2 as pb
from stampede.type.v1.money_pb2 import Money
from tests.integration.catalog.conftest import Create
from tests.support.serving import refusal
from tests.support.tokens import as_staff, as_user
from tests.support.waiting import until

USD_20 = Money(currency_code="USD", minor_units=2000)


def update(product: pb.Product, *paths: str, **fields: Any) -> pb.UpdateProductRequest:
    mask = FieldMask(paths=paths) if paths else None
    return pb.UpdateProductRequest(product_id=product.id, update_mask=mask, **fields)


async def test_a_created_product_is_found_by_id_and_by_slug(catalog: Any, create: Create) -> None:
    made = await create("MUG-1", 1999, name="Blue Mug", category="kitchen", attributes={"colour": "blue"})
    assert uuid.UUID(made.id).version == 7
    assert (made.slug, made.active, made.etag) == ("blue-mug-mug-1", True, '"1"')
    assert made.price == Money(currency_code="USD", minor_units=1999)
    assert not made.HasField("original_price")
    assert not made.HasField("discount_percent")
    assert made.create_time == made.update_time
    assert await catalog.GetProduct(pb.GetProductRequest(product_id=made.id)) == made
    assert await catalog.GetProductBySlug(pb.GetProductBySlugRequest(slug="blue-mug-mug-1")) == made


async def test_a_product_can_start_inactive_and_is_still_found(catalog: Any, create: Create) -> None:
    made = await create(active=False)
    assert not made.active
    assert (await catalog.GetProduct(pb.GetProductRequest(product_id=made.id))).id == made.id


async def test_an_unknown_product_is_not_found(catalog: Any) -> None:
    missing = str(uuid.uuid4())
    for call in (
        catalog.GetProduct(pb.GetProductRequest(product_id=missing)),
        catalog.GetProductBySlug(pb.GetProductBySlugRequest(slug="missing")),
        catalog.UpdateProduct(pb.UpdateProductRequest(product_id=missing, name="x"), metadata=as_staff()),
        catalog.ActivateProduct(pb.ActivateProductRequest(product_id=missing), metadata=as_staff()),
        catalog.DeactivateProduct(pb.DeactivateProductRequest(product_id=missing), metadata=as_staff()),
    ):
        refused = await refusal(call)
        assert (refused.code, refused.reason, refused.domain) == ("NOT_FOUND", "PRODUCT_NOT_FOUND", "catalog.stampede")


async def test_products_whose_derived_slugs_are_equal_get_different_ones(catalog: Any, create: Create) -> None:
    slugs = [(await create(sku, name="Mug")).slug for sku in ("A.1", "A-1", "a_1")]
    assert slugs[0] == "mug-a-1"
    assert len(set(slugs)) == 3

    taken = await create("B", name="Cup", slug="mug-c-1")
    renamed = await create("C.1", name="Cup")
    changed = await catalog.UpdateProduct(update(renamed, "name", "slug", name="Mug"), metadata=as_staff())
    assert changed.slug.startswith(f"{taken.slug}-")


async def test_a_sku_or_slug_that_is_taken_is_refused(catalog: Any, create: Create) -> None:
    await create("MUG-1", slug="mug")
    sku = await refusal(create("MUG-1", slug="other"))
    assert (sku.code, sku.reason, sku.metadata) == ("ALREADY_EXISTS", "SKU_TAKEN", {"sku": "MUG-1"})
    slug = await refusal(create("MUG-2", slug="mug"))
    assert (slug.code, slug.reason, slug.metadata) == ("ALREADY_EXISTS", "SLUG_TAKEN", {"slug": "mug"})

    second = await create("MUG-3")
    sku = await refusal(catalog.UpdateProduct(update(second, sku="MUG-1"), metadata=as_staff()))
    slug = await refusal(catalog.UpdateProduct(update(second, slug="mug"), metadata=as_staff()))
    assert (sku.reason, sku.metadata) == ("SKU_TAKEN", {"sku": "MUG-1"})
    assert (slug.reason, slug.metadata) == ("SLUG_TAKEN", {"slug": "mug"})
    assert await catalog.GetProduct(pb.GetProductRequest(product_id=second.id)) == second


@pytest.mark.usefixtures("full_pool")
async def test_exactly_one_of_many_creations_with_one_sku_succeeds(db: Database, create: Create) -> None:
    outcomes = await asyncio.gather(*(create("RUSH") for _ in range(20)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert len(refused) == 19
    assert {error.code() for error in refused} == {grpc.StatusCode.ALREADY_EXISTS}
    async with db() as tx:
        assert await tx.scalar(select(func.count()).select_from(Product)) == 1


@pytest.mark.usefixtures("full_pool")
async def test_a_repeated_creation_returns_the_first_product(catalog: Any, db: Database) -> None:
    caller, request_id = as_staff(), str(uuid.uuid4())
    request = pb.CreateProductRequest(sku="A", name="A", price=USD_20, request_id=request_id)
    made = await asyncio.gather(*(catalog.CreateProduct(request, metadata=caller) for _ in range(10)))
    assert len({product.id for product in made}) == 1
    async with db() as tx:
        assert await tx.scalar(select(func.count()).select_from(Product)) == 1

    other = pb.CreateProductRequest(sku="B", name="A", price=USD_20, request_id=request_id)
    refused = await refusal(catalog.CreateProduct(other, metadata=caller))
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    # Request ids of different callers are independent.
    assert (await catalog.CreateProduct(other, metadata=as_staff())).sku == "B"


async def test_a_failed_creation_leaves_its_request_id_free(catalog: Any, create: Create) -> None:
    caller, request_id = as_staff(), str(uuid.uuid4())
    await create("A")
    taken = pb.CreateProductRequest(sku="A", name="Z", price=USD_20, request_id=request_id)
    assert (await refusal(catalog.CreateProduct(taken, metadata=caller))).reason == "SKU_TAKEN"
    free = pb.CreateProductRequest(sku="B", name="Z", price=USD_20, request_id=request_id)
    assert (await catalog.CreateProduct(free, metadata=caller)).sku == "B"


async def test_an_update_without_a_mask_changes_what_is_set(catalog: Any, create: Create) -> None:
    made = await create("A", category="kitchen", attributes={"colour": "red"})
    changed = await catalog.UpdateProduct(
        update(made, name="New", category="", price=Money(currency_code="USD", minor_units=5)), metadata=as_staff()
    )
    assert (changed.name, changed.category, changed.price.minor_units) == ("New", "", 5)
    assert (changed.sku, changed.slug, dict(changed.attributes)) == ("A", made.slug, {"colour": "red"})
    assert changed.etag == '"2"'
    assert changed.update_time.ToNanoseconds() > made.update_time.ToNanoseconds()
    assert changed.create_time == made.create_time


async def test_an_update_changes_only_what_its_mask_names(catalog: Any, create: Create) -> None:
    made = await create("A", description="old", attributes={"colour": "red"})
    changed = await catalog.UpdateProduct(update(made, "description", "attributes"), metadata=as_staff())
    assert (changed.name, changed.price, changed.description, dict(changed.attributes)) == (
        made.name, made.price, "", {},
    )  # fmt: skip
    unnamed = update(made, "description", name="not named", price=USD_20)
    assert (await refusal(catalog.UpdateProduct(unnamed, metadata=as_staff()))).fields == ["name", "price"]


async def test_a_star_replaces_every_field(catalog: Any, create: Create) -> None:
    made = await create("A", description="old", category="old", attributes={"a": "b"}, slug="my-own")
    changed = await catalog.UpdateProduct(
        update(made, "*", sku="B", name="Now", price=USD_20, active=False), metadata=as_staff()
    )
    assert (changed.sku, changed.name, changed.description, changed.category) == ("B", "Now", "", "")
    assert (changed.slug, changed.price, dict(changed.attributes), changed.active) == ("now-b", USD_20, {}, False)
    refused = await refusal(catalog.UpdateProduct(update(made, "*", name="Now"), metadata=as_staff()))
    assert (refused.reason, refused.fields) == ("INVALID_FIELDS", ["active", "price", "sku"])


async def test_an_update_of_a_field_that_cannot_change_is_refused(catalog: Any, create: Create) -> None:
    made = await create()
    for path in ("original_price", "originalPrice", "price.minor_units"):
        refused = await refusal(catalog.UpdateProduct(update(made, path), metadata=as_staff()))
        assert (refused.code, refused.reason, refused.fields) == ("INVALID_ARGUMENT", "INVALID_FIELDS", ["updateMask"])
    for field, value in {"id": "", "discount_percent": 0, "original_price": USD_20, "create_time": {}}.items():
        refused = await refusal(catalog.UpdateProduct(update(made, **{field: value}), metadata=as_staff()))
        assert (refused.reason, refused.fields) == ("INVALID_FIELDS", [json_name(field)])


@pytest.mark.parametrize(
    ("currency", "minor_units", "field"),
    [
        ("ZZZ", 500, "price.currencyCode"), ("XAU", 500, "price.currencyCode"), ("KWD", 12345, "price.minorUnits"),
        ("ISK", 150, "price.minorUnits"),
    ],
)  # fmt: skip
async def test_a_price_that_nobody_can_pay_is_refused(
    catalog: Any, create: Create, currency: str, minor_units: int, field: str
) -> None:
    price = Money(currency_code=currency, minor_units=minor_units)
    new = pb.CreateProductRequest(sku="NEW", name="A", price=price)
    for call in (
        catalog.CreateProduct(new, metadata=as_staff()),
        catalog.UpdateProduct(update(await create("OLD"), price=price), metadata=as_staff()),
    ):
        refused = await refusal(call)
        assert (refused.code, refused.reason, refused.fields) == ("INVALID_ARGUMENT", "INVALID_FIELDS", [field])


async def test_a_product_keeps_its_currency(catalog: Any, create: Create) -> None:
    made = await create()
    euros = update(made, price=Money(currency_code="EUR", minor_units=500))
    refused = await refusal(catalog.UpdateProduct(euros, metadata=as_staff()))
    assert (refused.reason, refused.fields) == ("INVALID_FIELDS", ["price.currencyCode"])


async def test_an_update_takes_a_product_off_sale(catalog: Any, create: Create) -> None:
    made = await create()
    for active in (False, True):
        assert (await catalog.UpdateProduct(update(made, active=active), metadata=as_staff())).active is active


async def test_an_update_of_no_field_is_refused(catalog: Any, create: Create) -> None:
    refused = await refusal(catalog.UpdateProduct(update(await create()), metadata=as_staff()))
    assert (refused.reason, refused.fields) == ("INVALID_FIELDS", ["updateMask"])


async def test_an_update_that_changes_nothing_makes_no_new_version(catalog: Any, create: Create) -> None:
    made = await create()
    assert await catalog.UpdateProduct(update(made, name=made.name), metadata=as_staff()) == made


async def test_a_stale_etag_is_refused_and_nothing_changes(catalog: Any, create: Create) -> None:
    made = await create()
    now = await catalog.UpdateProduct(update(made, name="Second", etag=made.etag), metadata=as_staff())
    for call in (
        catalog.UpdateProduct(update(made, name="Third", etag=made.etag), metadata=as_staff()),
        catalog.ActivateProduct(pb.ActivateProductRequest(product_id=made.id, etag=made.etag), metadata=as_staff()),
        catalog.DeactivateProduct(pb.DeactivateProductRequest(product_id=made.id, etag=made.etag), metadata=as_staff()),
    ):
        refused = await refusal(call)
        assert (refused.code, refused.reason, refused.metadata) == ("ABORTED", "STALE_ETAG", {"etag": '"2"'})
    assert await catalog.GetProduct(pb.GetProductRequest(product_id=made.id)) == now


async def test_exactly_one_of_many_updates_of_one_version_succeeds(db: Database, catalog: Any, create: Create) -> None:
    async def all_wait() -> bool:
        query = (
            "SELECT count(*) = 15 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        async with db() as probe:
            return bool(await probe.scalar(text(query)))

    made = await create()
    async with db.begin() as tx:
        await tx.execute(select(Product).with_for_update())
        updates = [
            asyncio.ensure_future(
                catalog.UpdateProduct(update(made, name=f"N{n}", etag=made.etag), metadata=as_staff())
            )
            for n in range(15)
        ]
        await until(all_wait)  # so that none of them starts after the lock is released
    outcomes = await asyncio.gather(*updates, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert [error.code() for error in refused] == [grpc.StatusCode.ABORTED] * 14
    assert (await catalog.GetProduct(pb.GetProductRequest(product_id=made.id))).etag == '"2"'


async def test_a_repeated_update_is_not_stale_and_changes_nothing(catalog: Any, create: Create) -> None:
    made, caller, request_id = await create(), as_staff(), str(uuid.uuid4())
    request = update(made, name="Second", etag=made.etag, request_id=request_id)
    second = await catalog.UpdateProduct(request, metadata=caller)
    third = await catalog.UpdateProduct(update(made, name="Third"), metadata=as_staff())
    assert second.name == "Second"
    assert await catalog.UpdateProduct(request, metadata=caller) == third
    other = update(made, name="Other", request_id=request_id)
    assert (await refusal(catalog.UpdateProduct(other, metadata=caller))).reason == "REQUEST_ID_REUSED"


async def test_a_deactivated_product_leaves_lists_until_it_is_activated(catalog: Any, create: Create) -> None:
    made = await create()
    off = await catalog.DeactivateProduct(pb.DeactivateProductRequest(product_id=made.id), metadata=as_staff())
    assert (off.active, off.etag) == (False, '"2"')
    assert not (await catalog.ListProducts(pb.ListProductsRequest())).products
    repeat = await catalog.DeactivateProduct(pb.DeactivateProductRequest(product_id=made.id), metadata=as_staff())
    assert repeat == off
    on = await catalog.ActivateProduct(
        pb.ActivateProductRequest(product_id=made.id, etag=off.etag, request_id=str(uuid.uuid4())), metadata=as_staff()
    )
    assert on.active
    assert len((await catalog.ListProducts(pb.ListProductsRequest())).products) == 1


async def test_a_discount_shows_until_a_new_price_is_set(catalog: Any, db: Database, create: Create) -> None:
    made = await create("A", 2000)
    async with db.begin() as tx:
        await tx.execute(text("UPDATE products SET price_minor = 1500, original_price_minor = 2000"))
    reduced = await catalog.UpdateProduct(update(made, name="Still reduced"), metadata=as_staff())
    assert (reduced.price.minor_units, reduced.original_price.minor_units, reduced.discount_percent) == (1500, 2000, 25)
    same = await catalog.UpdateProduct(update(made, name="Same price", price=reduced.price), metadata=as_staff())
    assert same.discount_percent == 25
    plain = await catalog.UpdateProduct(update(made, price=USD_20), metadata=as_staff())
    assert not plain.HasField("original_price")
    assert not plain.HasField("discount_percent")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sku": ""}, "sku"),
        ({"sku": "has space"}, "sku"),
        ({"slug": "Upper"}, "slug"),
        ({"slug": "two--hyphens"}, "slug"),
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "nul\0"}, "name"),
        ({"description": "x" * 10_001}, "description"),
        ({"description": "nul\0"}, "description"),
        ({"category": "x" * 101}, "category"),
        ({"price": Money(currency_code="USD", minor_units=-1)}, "price.minorUnits"),
        ({"price": Money(currency_code="USD", minor_units=100_000_000)}, "price.minorUnits"),
        ({"price": Money(currency_code="USD", minor_units=2**63 - 1)}, "price.minorUnits"),
        ({"price": Money(currency_code="usd", minor_units=1)}, "price.currencyCode"),
        ({"price": None}, "price"),
        ({"attributes": {"": "x"}}, 'attributes[""]'),
        ({"attributes": {"nul": "\0"}}, "attributes"),
        ({"attributes": {str(n): "" for n in range(51)}}, "attributes"),
        ({"request_id": "not-a-uuid"}, "requestId"),
    ],
)
async def test_invalid_input_names_its_field(catalog: Any, fields: dict[str, Any], named: str) -> None:
    good: dict[str, Any] = {"sku": "A", "name": "A", "price": USD_20}
    refused = await refusal(catalog.CreateProduct(pb.CreateProductRequest(**(good | fields)), metadata=as_staff()))
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")
    assert refused.fields == [named] or (named.startswith("attributes[") and refused.fields[0].startswith("attributes"))


async def test_prices_at_both_bounds_are_kept(create: Create) -> None:
    assert (await create("FREE", 0)).price.minor_units == 0
    assert (await create("DEAR", 99_999_999)).price.minor_units == 99_999_999


async def test_only_staff_may_change_products(catalog: Any, create: Create) -> None:
    made = await create()
    changes = (
        (catalog.CreateProduct, pb.CreateProductRequest(sku="B", name="B", price=USD_20)),
        (catalog.UpdateProduct, update(made, name="B")),
        (catalog.ActivateProduct, pb.ActivateProductRequest(product_id=made.id)),
        (catalog.DeactivateProduct, pb.DeactivateProductRequest(product_id=made.id)),
    )
    for method, request in changes:
        customer = await refusal(method(request, metadata=as_user(uuid.uuid4())))
        assert (customer.code, customer.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
        nobody = await refusal(method(request))
        assert (nobody.code, nobody.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
        await method(request, metadata=as_user(uuid.uuid4(), "admin"))
