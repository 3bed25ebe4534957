"""Rebuilds the gate from PostgreSQL, once a second, in the process that leads."""

import asyncio
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from typing import Any

import structlog
from prometheus_client import Gauge
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from services.chassis.data.db import Database, run_autocommit
from services.inventory.gate.gate import LIFETIME_SECONDS, UNAVAILABLE, Gate, Script

log = structlog.get_logger()

REBUILD_SECONDS = 1.0
_SCRIPT_SECONDS = 2.0
# More holds than two processors make in a second. Older ones are in the hash already, unless Valkey lost its data.
_HOLDS_AT_ONCE = 2_000
_SALES_AT_ONCE = 200
_REBUILT = Gauge("stampede_gate_rebuilt_timestamp_seconds", "When this process last rebuilt the gate.")
_WRITE = Script("write")
_BOTH_KEYS = 2

_OPEN = text("""
    SELECT id, allocation - held - sold - returned AS remaining, held,
        extract(epoch FROM start_time - clock_timestamp())::double precision AS starts_in
    FROM flash_sales
    WHERE closed_as IS NULL AND end_time > clock_timestamp()
        AND start_time <= clock_timestamp() + make_interval(secs => :ahead)
""")
# The holds with the longest time to go first: these are the newest, because a sale's holds all last equally long.
_NEWEST_HOLDS = text("""
    SELECT r.id, r.expire_time, r.customer_id, (line->>'sale_id')::uuid AS sale_id,
        (line->>'quantity')::integer AS units
    FROM (
        SELECT id, expire_time, customer_id, lines FROM reservations
        WHERE state = 'HELD' AND (expire_time, id) < (CAST(:time AS timestamptz), CAST(:id AS uuid))
        ORDER BY expire_time DESC, id DESC LIMIT :most
    ) r LEFT JOIN LATERAL jsonb_array_elements(r.lines) AS line ON line->>'sale_id' IS NOT NULL
    ORDER BY r.expire_time DESC, r.id DESC
""")
_END_OF_TIME: tuple[Any, uuid.UUID] = ("infinity", uuid.UUID(int=2**128 - 1))
_Customers = dict[uuid.UUID, Counter[uuid.UUID]]


async def keep_rebuilt(db: Database, gate: Gate) -> None:
    """Rebuilds the gate of all open sales every second, until cancelled. A rebuild that fails is tried again."""
    rebuild = Rebuild(db, gate)
    while True:
        if not gate.available.is_set():
            await gate.available.wait()
            rebuild = Rebuild(db, gate)
        began, pause = time.monotonic(), REBUILD_SECONDS
        try:
            pause = await rebuild.run()
        except (*UNAVAILABLE, SQLAlchemyError) as error:
            log.warning("the gate was not rebuilt", cause=repr(error)[:200])
            rebuild = Rebuild(db, gate)
        # With very many sales a rebuild is slow; then half of the time is left to other work.
        await asyncio.sleep(max(pause, time.monotonic() - began))


class Rebuild:
    """Writes counters and hashes from PostgreSQL.

    A round adds the customers of the newest holds to the hashes. The first round adds those of all holds, as does a
    round that finds keys of a sale missing. Customers leave a hash when they give their units back at the gate.
    """

    def __init__(self, db: Database, gate: Gate) -> None:
        self._db, self._gate = db, gate
        self._open: set[uuid.UUID] = set()
        self._has_all = False

    async def run(self) -> float:
        """Rebuilds every open sale. Returns the seconds until the next round, which is in time for a sale's start."""
        rows = await run_autocommit(self._db, _OPEN, {"ahead": REBUILD_SECONDS})
        sales = {row.id: row for row in rows if row.starts_in <= 0}
        if over := self._open - sales.keys():
            await self._gate.delete(over)  # a sale that is over must not be called sold out
        self._open, has_all, batch = set(sales), self._has_all, list(sales)
        async for customers in self._pages():
            for some in (batch[i : i + _SALES_AT_ONCE] for i in range(0, len(batch), _SALES_AT_ONCE)):
                existed = await self._write({id_: sales[id_].remaining for id_ in some}, customers)
                has_all = has_all and all(existed[id_] == _BOTH_KEYS or not sales[id_].held for id_ in some)
            if has_all:
                break
            batch = [id_ for id_ in customers if id_ in sales]
        self._has_all = True
        _REBUILT.set_to_current_time()
        starts: list[float] = [row.starts_in for row in rows if row.starts_in > 0]
        return min([REBUILD_SECONDS, *starts])

    async def _write(self, left: dict[uuid.UUID, int], customers: _Customers) -> dict[uuid.UUID, int | None]:
        """Writes the units left, and adds `customers`, by sale. Returns how many of each sale's keys existed."""
        arguments: dict[uuid.UUID, list[Any]] = {
            sale_id: [units, LIFETIME_SECONDS, *(v for id_, n in customers[sale_id].items() for v in (id_.bytes, n))]
            for sale_id, units in left.items()
        }
        if not arguments:
            return {}
        answers = await self._gate.run(_WRITE, arguments, seconds=_SCRIPT_SECONDS)
        return dict(zip(arguments, answers, strict=True))

    async def _pages(self) -> AsyncIterator[_Customers]:
        """Units held by customer and sale, of the newest holds first; at least one page."""
        time_, id_ = _END_OF_TIME
        while True:
            arguments = {"time": time_, "id": id_, "most": _HOLDS_AT_ONCE}
            customers: _Customers = defaultdict(Counter)
            rows = await run_autocommit(self._db, _NEWEST_HOLDS, arguments)
            for row in rows:
                if row.sale_id:
                    customers[row.sale_id][row.customer_id] += row.units
            yield customers
            if len({row.id for row in rows}) < _HOLDS_AT_ONCE:
                return
            time_, id_ = rows[-1].expire_time, rows[-1].id
