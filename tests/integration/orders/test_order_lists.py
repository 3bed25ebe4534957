"""Lists of orders where there are hundreds of thousands: every page costs about the same."""

import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from services.chassis.data.db import Database, connect
from services.orders.domain import OrderFilter, State
from services.orders.sql import order_lists
from tests.support.infra import Infra

ORDERS, CUSTOMERS, PRODUCTS = 300_000, 6_000, 300
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
PAGE = 50
# Of 8 KiB each. A page of 50 orders that lie apart takes 50 for their rows and some for the ways to them.
BLOCKS_MOST = 300
# Where few of the orders on the way are wanted, 2,000 of them are looked at, and each by its id.
BLOCKS_LOOKED_MOST = 12_000

# Each order a second after the one before. One in a thousand has failed; customer 1 is a shop that buys half of all.
_FILL = f"""
    INSERT INTO orders (id, customer_id, request_id, digest, state, lines, currency, total_minor, hold_expire_time,
        create_time, update_time)
    SELECT lpad(to_hex(n), 32, '0')::uuid,
        lpad(to_hex(CASE WHEN n % 2 = 0 THEN 1 ELSE n % {CUSTOMERS} END), 32, '0')::uuid,
        lpad(to_hex(n), 32, '0')::uuid, '\\x00',
        CASE WHEN n % 1000 = 0 THEN 'FAILED' ELSE 'PAID' END, '[]', 'USD', 100, '{FIRST}',
        timestamptz '{FIRST}' + n * interval '1 second', now()
    FROM generate_series(1, {ORDERS}) n;
    INSERT INTO order_products (product_id, create_time, order_id)
    SELECT lpad(to_hex(CASE WHEN n % 3 = 0 THEN 1 ELSE n % {PRODUCTS} END), 32, '0')::uuid, create_time, id
    FROM (SELECT row_number() OVER (ORDER BY create_time) AS n, create_time, id FROM orders) o;
"""


@pytest.fixture(scope="module")
async def many(infra: Infra, template: Callable[[str], Awaitable[str]]) -> AsyncIterator[Database]:
    """A database with `ORDERS` orders, and the indexes that its migrations made."""
    infra.admin(f"CREATE DATABASE test_many_orders TEMPLATE {await template('orders')}")
    engine, db = connect(infra.database_url("test_many_orders"), pool_size=2)
    async with db.begin() as tx:
        query = "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'orders' AND indexdef NOT LIKE '%UNIQUE%'"
        indexes = (await tx.execute(text(query))).all()
        # To make them afterwards takes a third of the time.
        for name, _ in indexes:
            await tx.execute(text(f"DROP INDEX {name}"))
        await tx.execute(text("ALTER TABLE orders DROP CONSTRAINT orders_one_per_request"))
        await tx.execute(text("ALTER TABLE order_products DROP CONSTRAINT order_products_pkey"))
        await tx.execute(text("SET LOCAL maintenance_work_mem = '256MB'"))
        for statement in _FILL.split(";")[:-1]:
            await tx.execute(text(statement.replace(":", "\\:")))
        for _, definition in indexes:
            await tx.execute(text(definition))
        await tx.execute(text("ALTER TABLE order_products ADD PRIMARY KEY (product_id, create_time, order_id)"))
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(text("VACUUM ANALYZE orders, order_products"))
    yield db
    await engine.dispose()
    infra.admin("DROP DATABASE test_many_orders WITH (FORCE)")


def number(n: int) -> uuid.UUID:
    return uuid.UUID(int=n)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


async def explained(db: Database, query: OrderFilter, after: order_lists.Position | None) -> dict[str, Any]:
    way = order_lists.walk(query, after)
    look = 2_000 if way.condition else PAGE + 1
    async with db() as tx:
        found = await tx.execute(
            text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {way.page}"),
            {**way.arguments, "candidates": look, "most": PAGE + 1},
        )
        plan = found.scalar_one()
    return dict((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])


MIDDLE = FIRST + timedelta(seconds=ORDERS // 2)
QUERIES = {
    "all": (OrderFilter(), BLOCKS_MOST),
    "a time": (OrderFilter(since=MIDDLE, until=MIDDLE + timedelta(days=1)), BLOCKS_MOST),
    "a rare state": (OrderFilter(state=State.FAILED), BLOCKS_MOST),
    "a frequent state": (OrderFilter(state=State.PAID), BLOCKS_MOST),
    "a state there is none of": (OrderFilter(state=State.SHIPPED), BLOCKS_MOST),
    "a customer": (OrderFilter(customer_id=number(7)), BLOCKS_MOST),
    "the largest customer": (OrderFilter(customer_id=number(1)), BLOCKS_MOST),
    "a product": (OrderFilter(product_id=number(7)), BLOCKS_MOST),
    "the most wanted product": (OrderFilter(product_id=number(1)), BLOCKS_MOST),
    "a rare state of the largest customer": (
        OrderFilter(customer_id=number(1), state=State.FAILED), BLOCKS_LOOKED_MOST
    ),
    "a state the largest customer has none of": (
        OrderFilter(customer_id=number(1), state=State.SHIPPED), BLOCKS_LOOKED_MOST
    ),
    "a customer's of the most wanted product": (
        OrderFilter(customer_id=number(9), product_id=number(1)), BLOCKS_LOOKED_MOST
    ),
    "all at once": (
        OrderFilter(number(1), State.FAILED, number(1), MIDDLE, MIDDLE + timedelta(days=1)), BLOCKS_LOOKED_MOST,
    ),
}  # fmt: skip


@pytest.mark.parametrize("deep", [False, True], ids=["first page", "a page far back"])
@pytest.mark.parametrize(("query", "blocks_most"), QUERIES.values(), ids=QUERIES)
async def test_page_walks_an_index_and_never_far(
    many: Database, query: OrderFilter, blocks_most: int, deep: bool
) -> None:
    seconds = ORDERS // 2 + 3600 if query.since else ORDERS // 3
    after = (FIRST + timedelta(seconds=seconds), number(seconds)) if deep else None
    plan = await explained(many, query, after)
    kinds = {node["Node Type"] for node in nodes(plan)}
    assert not kinds & {"Seq Scan", "Bitmap Heap Scan", "Hash Join", "Hash"}, kinds
    # Rows come in the order of the index; nothing is gathered only to be sorted.
    sorted_rows = [node["Actual Rows"] for node in nodes(plan) if node["Node Type"] in ("Sort", "Incremental Sort")]
    assert sum(sorted_rows) <= PAGE + 1, sorted_rows
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] <= blocks_most


async def test_rare_orders_are_all_found_although_pages_are_short(many: Database) -> None:
    query = OrderFilter(
        customer_id=number(1), state=State.FAILED, since=MIDDLE, until=MIDDLE + timedelta(seconds=20_000)
    )
    found: list[int] = []
    pages, after = 0, None
    while True:
        orders, after = await order_lists.page(many, query, after=after, most=PAGE)
        found += [order.id.int for order in orders]
        pages += 1
        if after is None:
            break
    assert found == [n for n in range(ORDERS // 2 + 20_000 - 1, ORDERS // 2 - 1, -1) if n % 1000 == 0]
    assert pages <= 7


async def test_latest_ids_are_found(many: Database) -> None:
    assert await order_lists.recent_ids(many, 3) == [number(ORDERS), number(ORDERS - 1), number(ORDERS - 2)]
