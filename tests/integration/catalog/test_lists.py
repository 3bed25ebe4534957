"""Lists of products: pages, sort orders, filters, search."""

import uuid
from typing import Any

import pytest
from google.protobuf import json_format
from sqlalchemy import text

from services.catalog import actions
from services.catalog.domain import Filter
from services.chassis.data.db import Database
from stampede.catalog.v1 import catalog_service_pb2 as pb
from tests.integration.catalog.conftest import Create
from tests.support.serving import refusal

ORDERS = ("", "newest", "price", "-price", "name")


async def many(db: Database, count: int) -> None:
    """Insert products with many equal creation times, prices and names."""
    async with db.begin() as tx:
        await tx.execute(
            text("""
                INSERT INTO products
                    (id, sku, slug, name, description, category, price_minor, currency, attributes, active, create_time)
                SELECT gen_random_uuid(), 'S' || n, 's-' || n, (ARRAY['apple', 'Apple', 'Äpfel', 'zebra'])[n % 4 + 1],
                       '', 'c' || n % 3, n % 5 * 100, 'USD', '{}', true, now() - n / 7 * interval '1 second'
                FROM generate_series(1, :count) AS n
            """),
            {"count": count},
        )


def position(product: pb.Product, order_by: str) -> Any:
    """Return the sort key, ascending."""
    match order_by:
        case "price":
            return product.price.minor_units
        case "-price":
            return -product.price.minor_units
        case "name":
            return product.name.lower()
        case _:
            return -product.create_time.ToNanoseconds()


async def names(catalog: Any, **fields: Any) -> list[str]:
    found = await catalog.ListProducts(pb.ListProductsRequest(**fields))
    assert found.total_size == len(found.products)
    return sorted(product.sku for product in found.products)


@pytest.mark.parametrize("page_size", [1, 7, 60, 61, 200])
@pytest.mark.parametrize("order_by", ORDERS)
async def test_pages_hold_every_product_once_and_in_order(
    db: Database, catalog: Any, order_by: str, page_size: int
) -> None:
    await many(db, 61)
    request = pb.ListProductsRequest(order_by=order_by, page_size=page_size)
    seen: list[pb.Product] = []
    while page := await catalog.ListProducts(request):
        assert 0 < len(page.products) <= page_size
        assert page.total_size == 61
        seen += page.products
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert len({product.id for product in seen}) == len(seen) == 61
    keys = [position(product, order_by) for product in seen]
    assert keys == sorted(keys)


async def test_a_product_made_between_two_pages_moves_no_other(db: Database, catalog: Any, create: Create) -> None:
    await many(db, 10)
    first = await catalog.ListProducts(pb.ListProductsRequest(page_size=5))
    await create("NEW")
    second = await catalog.ListProducts(pb.ListProductsRequest(page_size=5, page_token=first.next_page_token))
    assert len({product.id for product in (*first.products, *second.products)}) == 10
    assert not second.next_page_token


async def test_a_page_holds_50_unless_asked_and_200_at_most(db: Database, catalog: Any) -> None:
    await many(db, 230)
    assert len((await catalog.ListProducts(pb.ListProductsRequest())).products) == 50
    assert len((await catalog.ListProducts(pb.ListProductsRequest(page_size=1000))).products) == 200


async def test_a_page_token_of_another_query_or_secret_is_refused(db: Database, catalog: Any) -> None:
    await many(db, 5)
    token = (await catalog.ListProducts(pb.ListProductsRequest(page_size=2))).next_page_token
    for request in (
        pb.ListProductsRequest(page_token=token, order_by="price"),
        pb.ListProductsRequest(page_token=token, category="c1"),
        pb.ListProductsRequest(page_token="A" + token[1:] if token[0] != "A" else "B" + token[1:]),
        pb.ListProductsRequest(page_token="nonsense"),
    ):
        refused = await refusal(catalog.ListProducts(request))
        assert (refused.code, refused.reason, refused.fields) == ("INVALID_ARGUMENT", "INVALID_FIELDS", ["pageToken"])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"order_by": "popularity"}, "orderBy"),
        ({"page_size": -1}, "pageSize"),
        ({"min_price": -1}, "minPrice"),
        ({"max_price": -1}, "maxPrice"),
        ({"query": "x" * 201}, "query"),
        ({"query": "\0"}, "query"),
        ({"category": "\0"}, "category"),
        ({"attribute": "colour"}, "attribute"),
        ({"attribute": "a:\0"}, "attribute"),
    ],
)
async def test_an_invalid_list_names_its_field(catalog: Any, fields: dict[str, Any], named: str) -> None:
    refused = await refusal(catalog.ListProducts(pb.ListProductsRequest(**fields)))
    assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", [named])


async def test_filters_narrow_the_list(catalog: Any, create: Create) -> None:
    await create("A", 100, category="kitchen", attributes={"colour": "red", "size": "L:1"})
    await create("B", 200, category="kitchen", attributes={"colour": "blue"})
    await create("C", 300, category="garden", attributes={"colour": "red"})
    assert await names(catalog) == ["A", "B", "C"]
    assert await names(catalog, category="kitchen") == ["A", "B"]
    assert await names(catalog, min_price=200) == ["B", "C"]
    assert await names(catalog, max_price=200) == ["A", "B"]
    assert await names(catalog, min_price=300, max_price=100) == []
    assert await names(catalog, min_price=2**63 - 1) == []
    assert await names(catalog, attribute="colour:red") == ["A", "C"]
    assert await names(catalog, attribute="size:L:1") == ["A"]
    assert await names(catalog, attribute="colour:re") == []
    assert await names(catalog, attribute="colour:red", category="garden", min_price=1) == ["C"]


async def test_a_search_finds_words_of_name_description_and_sku(catalog: Any, create: Create) -> None:
    await create("MUG-42", name="Red Mug", description="Keeps tea warm")
    await create("SHOE-7", name="Red running shoe", description="For mugs it is not")
    await create("KÖ1".replace("Ö", "O"), name="Größe XL", description="")
    for query, found in {
        "red": ["MUG-42", "SHOE-7"],
        "RED": ["MUG-42", "SHOE-7"],
        "red mug": ["MUG-42", "SHOE-7"],  # the last word may still be typed: mug is how mugs begins
        '"red mug"': ["MUG-42"],
        "tea red": ["MUG-42"],
        "runn": ["SHOE-7"],
        "runn red": [],
        "red -shoe": ["MUG-42"],
        "tea or shoe": ["MUG-42", "SHOE-7"],
        "MUG-42": ["MUG-42"],
        "mug-4": ["MUG-42"],
        "42": ["MUG-42"],
        "größ": ["KO1"],
        "absent": [],
        "  ": ["KO1", "MUG-42", "SHOE-7"],
    }.items():
        assert await names(catalog, query=query) == found, query


@pytest.mark.parametrize(
    "query", ["'", '"', "\\", "a & b | !c", "(((", "x:*", "a'b", "-", "or", "%_", "!!!", "a\nb", "😀"]
)
async def test_every_search_text_is_accepted(catalog: Any, create: Create, query: str) -> None:
    await create()
    await catalog.ListProducts(pb.ListProductsRequest(query=query))


async def test_counting_stops_at_ten_thousand(db: Database) -> None:
    await many(db, 10_050)
    page = await actions.list_products(db, Filter(), position=None, size=1)
    assert page.total == 10_000


@pytest.mark.parametrize(
    ("order_by", "index"),
    [
        ("create_time DESC, id DESC", "products_by_time"),
        ("price_minor, id", "products_by_price"),
        ("price_minor DESC, id DESC", "products_by_price"),
        ("lower(name), id", "products_by_name"),
    ],
)
async def test_every_order_has_an_index(db: Database, order_by: str, index: str) -> None:
    await many(db, 2_000)
    async with db.begin() as tx:
        await tx.execute(text("ANALYZE products"))
        plan = await tx.scalars(
            text(f"EXPLAIN SELECT * FROM products WHERE active AND deleted_time IS NULL ORDER BY {order_by} LIMIT 51")
        )
        assert index in "\n".join(plan)


async def test_a_deleted_product_is_not_found_or_listed(db: Database, catalog: Any, create: Create) -> None:
    made = await create()
    async with db.begin() as tx:
        await tx.execute(text("UPDATE products SET deleted_time = now()"))
    assert await names(catalog) == []
    assert (await refusal(catalog.GetProduct(pb.GetProductRequest(product_id=made.id)))).code == "NOT_FOUND"
    assert (await refusal(catalog.GetProductBySlug(pb.GetProductBySlugRequest(slug=made.slug)))).code == "NOT_FOUND"
    assert await actions.get_snapshots(db, [uuid.UUID(made.id)]) == []


async def test_largest_products_fit_on_pages_that_the_gateway_can_buffer(catalog: Any, create: Create) -> None:
    """Each has as many bytes as the contract allows; as JSON, `<` has six."""
    texts = {"description": "<" * 10_000, "attributes": {f"{n:064}": "<" * 500 for n in range(50)}}
    made = {(await create(f"S{n}", name="\U0001f45f" * 200, **texts)).id for n in range(60)}

    seen: list[str] = []
    token = ""
    while token or not seen:
        page = await catalog.ListProducts(pb.ListProductsRequest(page_size=200, page_token=token, order_by="name"))
        assert len(json_format.MessageToJson(page)) < 8 << 20
        seen += [product.id for product in page.products]
        token = page.next_page_token

    assert len(seen) == 60
    assert set(seen) == made
