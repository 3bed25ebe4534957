"""Fixtures of the inventory tests: a database, a gate, products and sales."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, text

from services.chassis import ids
from services.chassis.data.db import Database, connect
from services.chassis.money import Money
from services.inventory import sales, stock
from services.inventory.domain import Hold, Line, NewSale, Reservation
from services.inventory.gate.gate import Gate, keys_of
from services.inventory.gate.rebuild import Rebuild
from services.inventory.reservations import reserve, settle
from tests.support.infra import Infra

STAFF = uuid.UUID(int=1)
TABLES = (
    "returns", "reservations", "abandoned_holds", "sale_customers", "flash_sales", "stock_movements", "stock",
    "requests", "outbox", "leases",
)  # fmt: skip


@pytest.fixture(scope="session")
async def one_database(infra: Infra, template: Callable[[str], Awaitable[str]]) -> AsyncIterator[Database]:
    """One for all tests here, emptied before each of them."""
    infra.admin(f"CREATE DATABASE test_all_inventory TEMPLATE {await template('inventory')}")
    engine, sessions = connect(infra.database_url("test_all_inventory"), pool_size=20)
    yield sessions
    await engine.dispose()


@pytest.fixture
async def db(one_database: Database) -> Database:
    async with one_database.begin() as tx:
        await tx.execute(text("SET LOCAL lock_timeout = '5s'"))
        # Few rows: to delete them costs a tenth of a TRUNCATE, which makes new files for all tables and indexes.
        for table in TABLES:
            await tx.execute(text(f"DELETE FROM {table}"))
    return one_database


@pytest.fixture
async def gate(infra: Infra) -> AsyncIterator[Gate]:
    # It waits longer than in production, so that a busy machine is no unavailable gate.
    async with aclosing(Gate(infra.valkey_url, timeout_seconds=30)) as gate:
        await gate.valkey.flushall()
        yield gate


async def rebuild(gate: Gate, db: Database) -> None:
    """Runs the first rebuild of a new leader."""
    await Rebuild(db, gate).run()


async def left(gate: Gate, sale: Any) -> int | None:
    """How many units the gate counts as left; None if it has no counter of the sale."""
    value = await gate.valkey.get(keys_of(sale if isinstance(sale, uuid.UUID) else sale.id)[0])
    return None if value is None else int(value)


async def holders(gate: Gate, sale: Any) -> dict[uuid.UUID, int]:
    """The units by customer that the gate counts."""
    key = keys_of(sale if isinstance(sale, uuid.UUID) else sale.id)[1]
    return {uuid.UUID(bytes=id_): int(units) for id_, units in (await gate.valkey.hgetall(key)).items()}


async def a_product(db: Database, *, on_hand: int = 10) -> uuid.UUID:
    product_id = ids.new()
    await stock.set_stock(db, {product_id: on_hand}, reason="counted", actor=STAFF, key=None)
    return product_id


async def a_sale(db: Database, *, units: int = 10, stock: int | None = None, **terms: Any) -> Any:
    """A live sale of `units`, which are all of the product's stock unless `stock` is larger."""
    product_id = await a_product(db, on_hand=stock or units)
    async with db() as tx:
        now = (await tx.execute(text("SELECT clock_timestamp()"))).scalar_one()
    fields: dict[str, Any] = {
        "product_id": product_id, "title": "A rush", "price": Money("USD", 999), "allocation": units,
        "per_customer_limit": 0, "start_time": None, "end_time": now + timedelta(hours=1), "hold_seconds": 600,
    }  # fmt: skip
    return await sales.create_sale(db, NewSale(**{**fields, **terms}), key=None)


def a_hold(*lines: Line, customer_id: uuid.UUID | None = None, seconds: int = 600) -> Hold:
    return Hold(ids.new(), customer_id or ids.new(), lines, seconds)


def of_sale(sale: Any, quantity: int = 1) -> Line:
    return Line(sale.product_id, sale.id, quantity)


def of_stock(product_id: uuid.UUID, quantity: int = 1) -> Line:
    return Line(product_id, None, quantity)


async def books(db: Database) -> list[str]:
    """Everything that does not add up between counters, reservations, limits and ledger; empty when all is well."""
    # Units that reservations hold, and units sold less returns, line by line.
    taken = """
        WITH l AS (
            SELECT r.state, r.customer_id, (line->>'product_id')::uuid AS product_id,
                (line->>'sale_id')::uuid AS sale_id, (line->>'quantity')::integer AS units
            FROM reservations r, jsonb_array_elements(r.lines) AS line
            UNION ALL
            SELECT r.state, r.customer_id, (line->>'product_id')::uuid, (line->>'sale_id')::uuid,
                -(line->>'quantity')::integer
            FROM returns b JOIN reservations r ON r.id = b.reservation_id, jsonb_array_elements(b.lines) AS line
        )
    """
    checks = {
        "a sale's counters against its reservations": f"""
            {taken} SELECT s.id FROM flash_sales s LEFT JOIN (
                SELECT sale_id, sum(units) FILTER (WHERE state = 'HELD') AS held,
                    sum(units) FILTER (WHERE state = 'CONFIRMED') AS sold
                FROM l GROUP BY 1
            ) l ON l.sale_id = s.id
            WHERE (s.held, s.sold) <> (coalesce(l.held, 0), coalesce(l.sold, 0))
        """,
        "a sale's allocation against the ledger": """
            SELECT s.id FROM flash_sales s LEFT JOIN (
                SELECT reference_id, -sum(delta) AS units FROM stock_movements WHERE kind IN ('ALLOCATED', 'RETURNED')
                GROUP BY 1
            ) m ON m.reference_id = s.id
            WHERE s.allocation - s.returned <> coalesce(m.units, 0)
        """,
        "what is left of a closed sale": """
            SELECT id FROM flash_sales WHERE closed_as IS NOT NULL AND allocation <> held + sold + returned
        """,
        "stock's held units against reservations": f"""
            {taken} SELECT s.product_id FROM stock s LEFT JOIN (
                SELECT product_id, sum(units) AS held FROM l WHERE state = 'HELD' AND sale_id IS NULL GROUP BY 1
            ) l USING (product_id)
            WHERE s.held <> coalesce(l.held, 0)
        """,
        "stock against the sum of its ledger": """
            SELECT s.product_id FROM stock s LEFT JOIN (
                SELECT product_id, sum(delta) AS units FROM stock_movements GROUP BY 1
            ) m USING (product_id)
            WHERE s.on_hand <> coalesce(m.units, 0)
        """,
        "what stock has sold and taken back against reservations": f"""
            {taken} SELECT s.product_id FROM stock s LEFT JOIN (
                SELECT product_id, -sum(delta) AS sold FROM stock_movements WHERE kind IN ('SOLD', 'RESTOCKED')
                GROUP BY 1
            ) m USING (product_id) LEFT JOIN (
                SELECT product_id, sum(units) AS units FROM l WHERE state = 'CONFIRMED' AND sale_id IS NULL GROUP BY 1
            ) l USING (product_id)
            WHERE coalesce(m.sold, 0) <> coalesce(l.units, 0)
        """,
        "customers' counts against their reservations": f"""
            {taken} SELECT c.customer_id FROM sale_customers c LEFT JOIN (
                SELECT sale_id, customer_id, sum(units) AS units FROM l WHERE state IN ('HELD', 'CONFIRMED')
                GROUP BY 1, 2
            ) l USING (sale_id, customer_id)
            WHERE c.units <> coalesce(l.units, 0)
        """,
    }
    wrong = []
    async with db() as tx:
        for name, query in checks.items():
            if rows := (await tx.execute(text(query))).all():
                wrong.append(f"{name}: {rows}")
    return wrong


Books = Callable[[Database], Any]


async def hold_ended(db: Database, *reservation_ids: uuid.UUID) -> None:
    """Lets the time of holds run out, and their grace, which is as long as they were held; without waiting for it."""
    async with db.begin() as tx:
        await tx.execute(
            text("UPDATE reservations SET expire_time = create_time - interval '1 second' WHERE id = ANY(:ids)"),
            {"ids": list(reservation_ids)},
        )


async def sale_ended(db: Database, *sale_ids: uuid.UUID) -> None:
    """Lets the time of sales run out; nobody has closed them yet."""
    async with db.begin() as tx:
        await tx.execute(
            text("""
                UPDATE flash_sales SET start_time = clock_timestamp() - interval '2 hours',
                    end_time = clock_timestamp() - interval '1 second' WHERE id = ANY(:ids)
            """),
            {"ids": list(sale_ids)},
        )


async def state_of(db: Database, reservation_id: uuid.UUID) -> str:
    async with db() as tx:
        query = text("SELECT state FROM reservations WHERE id = :id")
        return str((await tx.execute(query, {"id": reservation_id})).scalar_one())


async def rows_of(db: Database, query: str, **arguments: Any) -> list[tuple[Any, ...]]:
    async with db() as tx:
        return [tuple(row) for row in await tx.execute(text(query), arguments)]


async def run_sql(db: Database, query: str, **arguments: Any) -> None:
    async with db.begin() as tx:
        await tx.execute(text(query), arguments)


async def holding(db: Database, *lines: Line, **fields: Any) -> Reservation:
    """A hold of these lines, which must be there to take."""
    (outcome,) = await reserve.reserve(db, [a_hold(*lines, **fields)])
    assert isinstance(outcome, Reservation), outcome
    return outcome


async def expired_hold(db: Database, *lines: Line, **fields: Any) -> Reservation:
    """A hold whose units went back because it took too long."""
    held = await holding(db, *lines, **fields)
    await hold_ended(db, held.id)
    assert held.id in {r.id for r in await settle.expire(db)}
    return held


@contextmanager
def statements(db: Database) -> Iterator[list[str]]:
    """The statements sent to a database meanwhile."""
    seen: list[str] = []
    engine = db.kw["bind"].sync_engine

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)
