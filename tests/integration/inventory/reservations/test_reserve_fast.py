"""The fast path of reserving does exactly what the slow path does, or nothing."""

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from services.chassis import ids
from services.chassis.data.db import Database, connect
from services.inventory.domain import Hold, HoldBounds, Line, Reservation
from services.inventory.reservations.reserve import reserve_slowly
from services.inventory.sql import reserve_fast
from tests.integration.inventory.conftest import a_sale, books, rows_of, run_sql

_UNITS, _SALES, _CUSTOMERS, _EXAMPLES = 5, 3, 3, 40
_BOUNDS = HoldBounds(orders=4, units=9)
_TABLES = {
    "flash_sales": "SELECT id, held, sold, returned FROM flash_sales ORDER BY id",
    "sale_customers": "SELECT sale_id, customer_id, units FROM sale_customers ORDER BY sale_id, customer_id",
    "reservations": """
        SELECT id, customer_id, state, lines, sale_id, extended, slot, units,
            round(extract(epoch FROM expire_time - create_time))
        FROM reservations ORDER BY id
    """,
    "outbox": "SELECT subject, key, payload FROM outbox ORDER BY key, id",
}
batches = st.lists(
    st.tuples(
        st.integers(0, _SALES - 1), st.integers(0, _CUSTOMERS - 1), st.integers(1, 3), st.sampled_from([30, 600, 900]),
        st.booleans(),
    ),
    min_size=1, max_size=5,
)  # fmt: skip


async def contents(db: Database) -> dict[str, list[Any]]:
    return {name: [tuple(map(str, row)) for row in await rows_of(db, query)] for name, query in _TABLES.items()}


async def both_paths(db: Database, sales: list[Any], customers: list[uuid.UUID], wanted: list[Any]) -> bool:
    """Compare what both paths do with one batch, from the same state; return whether the fast path took it."""
    query = "TRUNCATE reservations, returns, sale_customers, abandoned_holds, outbox"
    await run_sql(db, query)
    abandoned = "INSERT INTO abandoned_holds VALUES (:sale, :customer, 3)"
    await run_sql(db, abandoned, sale=sales[0].id, customer=customers[-1])
    await run_sql(db, "UPDATE flash_sales SET held = 0, sold = 0")
    known = Hold(ids.new(), customers[0], (Line(sales[0].product_id, sales[0].id, 1),), 600)
    async with db.begin() as tx:
        await reserve_slowly(tx, [known], _BOUNDS)
    holds = [
        known if repeats else Hold(ids.new(), customers[c], (Line(sales[s].product_id, sales[s].id, units),), seconds)
        for s, c, units, seconds, repeats in wanted
    ]
    before = await contents(db)
    async with db() as tx:  # never committed
        slow, slow_sold_out = await reserve_slowly(tx, holds, _BOUNDS)
        in_slow = {name: [tuple(map(str, row)) for row in await tx.execute(text(q))] for name, q in _TABLES.items()}
    assert await contents(db) == before

    fast = await reserve_fast.reserve(db, holds, _BOUNDS)

    complete = all(isinstance(outcome, Reservation) and not outcome.repeated for outcome in slow.values())
    if fast is None:
        assert not complete, "the fast path refused a batch that fits"
        assert await contents(db) == before
        return False
    assert complete, "the fast path took a batch that the slow path refuses in part"
    assert await contents(db) == in_slow
    assert fast[1] == slow_sold_out
    for reservation in fast[0]:
        other = slow[reservation.id]
        assert isinstance(other, Reservation)
        assert (reservation.state, reservation.lines) == (other.state, other.lines)
    assert await books(db) == []
    return True


def test_both_paths_do_the_same(infra: Any, template: Callable[[str], Coroutine[Any, Any, str]]) -> None:
    with asyncio.Runner() as runner:
        # Hypothesis calls its function synchronously, so the database is used from a loop of the test's own.
        name = "test_fast_inventory"
        infra.admin(
            f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name} TEMPLATE {runner.run(template('inventory'))}"
        )
        engine, db = connect(infra.database_url(name), pool_size=2)
        terms = [{"per_customer_limit": 0}, {"per_customer_limit": 3}, {"per_customer_limit": 2, "hold_seconds": 60}]
        sales = [runner.run(a_sale(db, units=_UNITS, **each)) for each in terms]
        customers, taken = [ids.new() for _ in range(_CUSTOMERS)], []

        @settings(
            max_examples=_EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(batches)
        def compare(wanted: list[Any]) -> None:
            taken.append(runner.run(both_paths(db, sales, customers, wanted)))

        try:
            compare()
        finally:
            runner.run(engine.dispose())
            infra.admin(f"DROP DATABASE {name} WITH (FORCE)")
        assert 0.1 < sum(taken) / len(taken) < 0.9, "the batches are of both kinds"
