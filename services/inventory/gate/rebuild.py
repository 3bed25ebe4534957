"""Rebuilds the gate from PostgreSQL, once a second, in the process that leads."""

import asyncio
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import structlog
from prometheus_client import Gauge

from services.chassis.data.db import Database
from services.chassis.telemetry.heartbeats import beat, waiting
from services.inventory.gate.gate import LIFETIME_SECONDS, Gate, Script
from services.inventory.sql import reservations
from services.inventory.sql.reservations import HeldUnits
from services.inventory.sql.sales import OpenSale, open_sales

log = structlog.get_logger()

REBUILD_SECONDS = 1.0
_SCRIPT_SECONDS = 2.0
# More holds than two processors make in a second. Older ones are in the hash already, unless Valkey lost its data.
_HOLDS_AT_ONCE = 2_000
_SALES_AT_ONCE = 200
_REBUILT = Gauge("stampede_gate_rebuilt_timestamp_seconds", "When this process last rebuilt the gate.")
_WRITE = Script("write")
_BOTH_KEYS = 2


async def keep_rebuilt(db: Database, gate: Gate) -> None:
    """Rebuilds the gate of all open sales every second, until cancelled. A rebuild that fails is tried again."""
    rebuild = Rebuild(db, gate)
    while beat():
        if not gate.available.is_set():
            await waiting(gate.available.wait())
            rebuild = Rebuild(db, gate)
        began, pause = time.monotonic(), REBUILD_SECONDS
        try:
            pause = await rebuild.run()
        except Exception as error:
            log.warning("the gate was not rebuilt", cause=error)
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
        """Rebuild every open sale. Returns the seconds until the next round, which is in time for a sale's start."""
        found = await open_sales(self._db, ahead_seconds=REBUILD_SECONDS)
        sales = {sale.id: sale for sale in found if sale.starts_in <= 0}
        if over := self._open - sales.keys():
            await self._gate.delete(over)  # a sale that is over must not be called sold out
        self._open, has_all, batch = set(sales), self._has_all, list(sales.values())
        async for held in reservations.newest_holds(self._db, most=_HOLDS_AT_ONCE):
            has_all = await self._write(batch, held) and has_all
            if has_all:
                break
            batch = [sales[sale_id] for sale_id in {units.sale_id for units in held} & sales.keys()]
        else:
            await self._write(list(sales.values()), (), all_added=True)
        self._has_all = True
        _REBUILT.set_to_current_time()
        return min([REBUILD_SECONDS, *(sale.starts_in for sale in found if sale.starts_in > 0)])

    async def _write(self, sales: list[OpenSale], held: Iterable[HeldUnits], *, all_added: bool = False) -> bool:
        """Write the units left of sales, and add customers. Returns whether all their keys existed before.

        A sale that lacks a key gets its counter once all its customers are in the hash: until then all holds pass.
        """
        customers: dict[uuid.UUID, Counter[uuid.UUID]] = defaultdict(Counter)
        for sale_id, customer_id, units in held:
            customers[sale_id][customer_id] += units
        existed = True
        for some in (sales[i : i + _SALES_AT_ONCE] for i in range(0, len(sales), _SALES_AT_ONCE)):
            arguments: dict[uuid.UUID, list[Any]] = {
                sale.id: [
                    sale.remaining,
                    LIFETIME_SECONDS,
                    int(all_added or not sale.held),
                    *(value for id_, units in customers[sale.id].items() for value in (id_.bytes, units)),
                ]
                for sale in some
            }
            keys = await self._gate.run(_WRITE, arguments, seconds=_SCRIPT_SECONDS)
            existed = existed and all(n == _BOTH_KEYS or not sale.held for n, sale in zip(keys, some, strict=True))
        return existed
