"""Lists and live views of sales, and their cost in statements."""

import asyncio
import importlib
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, text

from services.chassis.data.db import Database
from services.chassis.errors import Unavailable
from services.chassis.server.watch import Watch
from services.inventory import sales
from services.inventory.background import sale_watch as watching
from services.inventory.domain import FlashSaleNotFound, SaleState
from services.inventory.reservations import reserve, settle
from services.inventory.sql import reservations
from tests.integration.inventory.conftest import (
    a_hold,
    a_product,
    a_sale,
    hold_ended,
    holding,
    of_sale,
    of_stock,
    rows_of,
    sale_ended,
    statements,
)

Plan = dict[str, Any]
MANY = 3000
OPEN = 310


async def next_hold(db: Database, sale: Any) -> datetime | None:
    found: datetime | None = (await sales.get_sale(db, sale.id)).next_hold_expire_time
    return found


async def plan_of(db: Database, call: Awaitable[Any]) -> Plan:
    """How PostgreSQL carries out the last statement of `call`, which reads every table by an index if it can."""
    asked: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    engine = db.kw["bind"].sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        await call
    finally:
        event.remove(engine, "before_cursor_execute", note)
    statement, parameters = asked[-1]
    async with db() as tx:
        await tx.execute(text("SET LOCAL enable_seqscan = off"))
        connection = await tx.connection()
        explained = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
        found = explained.scalar_one()
        await tx.rollback()
    plan: Plan = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    return plan


def nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def touched(plan: Plan, table: str) -> float:
    """How many rows of `table` were looked at."""
    return sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for node in nodes(plan)
        if node.get("Relation Name") == table and node["Node Type"] != "ModifyTable"
    )


# --- when units may come back ---


async def test_the_next_hold_to_expire_is_the_earliest_of_those_that_are_held(db: Database) -> None:
    sale, other = await a_sale(db, units=20), await a_sale(db, units=5)
    assert await next_hold(db, sale) is None

    late = await holding(db, of_sale(sale), seconds=500)
    soon = await holding(db, of_sale(sale), seconds=100)
    sooner = await holding(db, of_sale(sale), seconds=50)
    await holding(db, of_sale(other), seconds=10)
    assert await next_hold(db, sale) == sooner.expire_time

    await settle.confirm(db, [sooner.id])
    assert await next_hold(db, sale) == soon.expire_time
    await settle.release(db, [soon.id])
    assert await next_hold(db, sale) == late.expire_time
    await hold_ended(db, late.id)
    await settle.expire(db)
    assert await next_hold(db, sale) is None


async def test_an_order_over_several_sales_is_counted_with_its_first(db: Database) -> None:
    first, second = await a_sale(db), await a_sale(db)
    plain = await a_product(db)

    held = await holding(db, of_stock(plain), of_sale(first), of_sale(second))
    await holding(db, of_stock(plain))

    assert await next_hold(db, first) == held.expire_time
    assert await next_hold(db, second) is None


async def test_a_closed_sale_still_tells_when_its_last_holds_end(db: Database) -> None:
    sale = await a_sale(db)
    held = await holding(db, of_sale(sale))

    closed = await sales.close_sale(db, sale.id, SaleState.CANCELLED, etag_given="", key=None)

    assert closed.next_hold_expire_time == held.expire_time


async def test_reservations_from_before_the_column_are_filled_in(db: Database) -> None:
    first, second, plain = await a_sale(db), await a_sale(db), await a_product(db)
    for lines in ([of_stock(plain), of_sale(second), of_sale(first)], [of_sale(first)], [of_stock(plain)]):
        await holding(db, *lines)
    query = "SELECT id, sale_id FROM reservations ORDER BY id"
    written = await rows_of(db, query)
    assert [sale_id for _, sale_id in written] == [second.id, first.id, None]

    async with db.begin() as tx:
        await tx.execute(text("UPDATE reservations SET sale_id = NULL"))
        await tx.execute(text(importlib.import_module("services.inventory.migrations.0002_sale_views").FILL))

    assert await rows_of(db, query) == written


async def test_among_many_holds_the_next_to_expire_is_found_at_once(db: Database) -> None:
    sale = await a_sale(db, units=10)
    async with db.begin() as tx:
        query = text("""
            INSERT INTO reservations (id, customer_id, state, lines, sale_id, expire_time)
            SELECT gen_random_uuid(), gen_random_uuid(), 'HELD', '[]', :sale, now() + i * interval '1 second'
            FROM generate_series(1, :many) AS i
        """)
        await tx.execute(query, {"sale": sale.id, "many": 10 * MANY})

    plan = await plan_of(db, sales.get_sales(db, [sale.id]))

    assert touched(plan, "reservations") == 1
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 20


# --- lists and ticks among many sales ---


async def many_sales(db: Database, *, to_come: int) -> None:
    """A long history, many sales to come, and a few that matter, the newest of which is older than all others."""
    few = [await a_sale(db, units=2) for _ in range(9)]
    await holding(db, of_sale(few[0], 2))
    await sales.close_sale(db, few[1].id, SaleState.CANCELLED, etag_given="", key=None)
    await sales.close_sale(db, few[2].id, SaleState.ENDED, etag_given="", key=None)
    await sale_ended(db, few[3].id)  # nobody has closed it yet
    async with db.begin() as tx:
        query = text("""
            WITH products AS (
                INSERT INTO stock (product_id, on_hand) SELECT gen_random_uuid(), 0 FROM generate_series(1, :many)
                RETURNING product_id
            )
            INSERT INTO flash_sales (id, product_id, title, price_minor, currency, allocation, per_customer_limit,
                start_time, end_time, hold_seconds, returned, closed_as)
            SELECT uuidv7(), product_id, 'Another', 1, 'USD', 1, 0, now() + shift, now() + shift + interval '1 hour',
                60, CASE WHEN closed_as IS NULL THEN 0 ELSE 1 END, closed_as
            FROM (SELECT product_id, row_number() OVER () AS n FROM products) p
            JOIN (VALUES (interval '-2 days', 'CANCELLED', :many), (interval '2 days', NULL, :to_come))
                AS t (shift, closed_as, most) ON n <= most
        """)
        await tx.execute(query, {"many": MANY, "to_come": to_come})
    async with db.kw["bind"].execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(text("ANALYZE flash_sales"))


async def test_a_list_of_one_state_looks_at_few_sales_of_the_others(db: Database) -> None:
    await many_sales(db, to_come=300)
    product_id = (await sales.list_sales(db, state=SaleState.LIVE, product_id=None, before=None, limit=1))[0].product_id

    for state, expected in (
        (SaleState.LIVE, 5), (SaleState.SOLD_OUT, 1), (SaleState.ENDED, 2), (SaleState.SCHEDULED, 21),
        (SaleState.CANCELLED, 21), (None, 21),
    ):  # fmt: skip
        rows = await sales.list_sales(db, state=state, product_id=None, before=None, limit=21)
        assert len(rows) == expected, state
        assert {row.state for row in rows} <= {state, *([] if state else SaleState)}
        for asked in ({}, {"before": rows[-1].id}, {"product_id": product_id}):
            arguments = {"state": state, "product_id": None, "before": None, "limit": 21, **asked}
            plan = await plan_of(db, sales.list_sales(db, **arguments))
            assert touched(plan, "flash_sales") <= OPEN, (state, asked)
            assert touched(plan, "reservations") <= 21


async def test_the_sale_clock_looks_at_ended_sales_only_and_expiry_at_expired_holds_only(db: Database) -> None:
    """They ask four times a second, and nearly always there is nothing to do."""
    await many_sales(db, to_come=MANY)
    sale = await a_sale(db, units=50)
    held = [await holding(db, of_sale(sale)) for _ in range(30)]
    await sales.close_ended_sales(db)

    assert touched(await plan_of(db, sales.close_ended_sales(db)), "flash_sales") <= 1
    async with db() as tx:
        plan = await plan_of(db, reservations.lock_expired(tx, most=500))
    assert touched(plan, "reservations") == 0
    await hold_ended(db, held[0].id)
    assert [r.id for r in await settle.expire(db)] == [held[0].id]


# --- live views ---


@pytest.fixture
async def watch(db: Database) -> AsyncIterator[Watch[uuid.UUID, Any]]:
    watch = watching.sale_watch(db)
    looking = asyncio.create_task(watch.run())
    yield watch
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


async def test_two_thousand_watchers_of_a_hot_sale_all_see_its_end_at_the_price_of_one(
    db: Database, watch: Watch[uuid.UUID, Any]
) -> None:
    sale, loop = await a_sale(db, units=500), asyncio.get_running_loop()
    sent: Counter[int] = Counter()

    everybody = asyncio.Event()

    async def follow(number: int) -> Any:
        seen = None
        async for seen in watching.changes(watch, sale.id):  # noqa: B007  # the last one is what counts
            sent[number] += 1
            if len(sent) == 2000:
                everybody.set()
        return seen

    began = loop.time()
    with statements(db) as seen:
        crowd = [asyncio.create_task(follow(number)) for number in range(2000)]
        await everybody.wait()
        for _ in range(40):  # it stays hot
            await reserve.reserve(db, [a_hold(of_sale(sale)) for _ in range(10)])
        await sales.close_sale(db, sale.id, SaleState.ENDED, etag_given="", key=None)
        async with asyncio.timeout(60):
            last = await asyncio.gather(*crowd)
    periods = (loop.time() - began) / 0.25

    assert {(row.state, row.held, row.remaining) for row in last} == {("ENDED", 400, 0)}
    looks = [statement for statement in seen if "ANY" in statement and "next_hold_expire_time" in statement]
    assert len(looks) <= periods + 3
    assert max(sent.values()) <= periods + 1, "more than four a second"
    with watch.subscribe(sale.id):
        assert watch._count == 1, "those who have left hold no slot"


async def test_a_message_keeps_its_distance_from_the_one_before(
    db: Database, watch: Watch[uuid.UUID, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_FETCH_SECONDS", 60)
    sale = await a_sale(db)
    seen = watching.changes(watch, sale.id)
    assert (await anext(seen)).held == 0
    following = asyncio.ensure_future(anext(seen))  # type: ignore[arg-type]
    await holding(db, of_sale(sale))
    with watch.subscribe(sale.id) as looks:
        while (await anext(looks)).held == 0:
            pass
        await asyncio.sleep(0)

    assert not following.done(), "although the sale changed"
    following.cancel()


async def test_a_watcher_sees_all_that_becomes_of_a_sale(db: Database, watch: Watch[uuid.UUID, Any]) -> None:
    ((now,),) = await rows_of(db, "SELECT clock_timestamp()")
    sale = await a_sale(db, units=2, start_time=now + timedelta(minutes=30), end_time=now + timedelta(hours=1))
    seen = watching.changes(watch, sale.id)
    async with asyncio.timeout(60):
        assert (await anext(seen)).state == "SCHEDULED"
        ((now,),) = await rows_of(db, "SELECT clock_timestamp()")
        soon = sales.SaleChanges(start_time=now + timedelta(seconds=0.6))
        await sales.update_sale(db, sale.id, soon, etag_given="", key=None)
        while (latest := await anext(seen)).state == "SCHEDULED":
            pass
        assert latest.state == "LIVE"

        held = await holding(db, of_sale(sale, 2))
        sold_out = await anext(seen)
        assert (sold_out.state, sold_out.held, sold_out.remaining) == ("SOLD_OUT", 2, 0)
        assert sold_out.next_hold_expire_time == held.expire_time

        await settle.release(db, [held.id])
        back = await anext(seen)
        assert (back.state, back.held, back.remaining, back.next_hold_expire_time) == ("LIVE", 0, 2, None)

        bought = await holding(db, of_sale(sale))
        await settle.confirm(db, [bought.id])
        while (latest := await anext(seen)).sold == 0:
            pass
        assert (latest.state, latest.remaining) == ("LIVE", 1)

        await sales.close_sale(db, sale.id, SaleState.CANCELLED, etag_given="", key=None)
        assert [(row.state, row.sold, row.remaining) async for row in seen] == [("CANCELLED", 1, 0)]


async def test_a_watcher_sees_a_scheduled_sale_change_its_terms(db: Database, watch: Watch[uuid.UUID, Any]) -> None:
    ((now,),) = await rows_of(db, "SELECT clock_timestamp()")
    sale = await a_sale(db, start_time=now + timedelta(hours=1), end_time=now + timedelta(hours=2))
    seen = watching.changes(watch, sale.id)
    async with asyncio.timeout(60):
        assert (await anext(seen)).title == "A rush"
        changes = sales.SaleChanges(title="Another rush", allocation=4)
        await sales.update_sale(db, sale.id, changes, etag_given="", key=None)
        latest = await anext(seen)
    assert (latest.title, latest.remaining, latest.state) == ("Another rush", 4, "SCHEDULED")


async def test_what_is_not_there_cannot_be_watched(db: Database, watch: Watch[uuid.UUID, Any]) -> None:
    with pytest.raises(FlashSaleNotFound):
        await anext(watching.changes(watch, uuid.uuid4()))


async def test_who_comes_while_the_database_is_away_is_told_so(db: Database) -> None:
    sale = await a_sale(db)
    watch = watching.sale_watch(db)
    async with db.begin() as tx:
        await tx.execute(text("ALTER TABLE flash_sales RENAME TO away"))
    try:
        looking = asyncio.create_task(watch.run())
        with pytest.raises(Unavailable):
            await anext(watching.changes(watch, sale.id))
    finally:
        async with db.begin() as tx:
            await tx.execute(text("ALTER TABLE away RENAME TO flash_sales"))
    await asyncio.gather(looking, return_exceptions=True)
