"""The admission gate: turns losers of a flash sale away before they cost a transaction.

It lives in Valkey and may only say no. What it lets through, PostgreSQL decides; so a gate that is lost, stale or
wrong costs speed, never stock. Every `HEAL_SECONDS` its counters are written anew from PostgreSQL, which also brings
back units that leaked: taken here by a process that died before it wrote them there.
"""

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence

import redis.asyncio
import redis.exceptions
import structlog
from prometheus_client import Counter
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from services.chassis.db import Database
from services.inventory.domain import Hold, Line, Reservation

log = structlog.get_logger()

HEAL_SECONDS = 1.0
_PAUSE_SECONDS = 1.0
_TIMEOUT_SECONDS = 0.25
# A key that nobody heals any more says nothing, rather than something old.
_LIFETIME_SECONDS = 10
_REFUSED = Counter("stampede_gate_refused_total", "Holds that the gate turned away.")
_BYPASSED = Counter("stampede_gate_bypassed_total", "Batches that went without the gate.")

# One call per sale and batch. KEYS: units left, holders. ARGV: id, quantity, id, quantity, …
# Answers for each -1 (pass), or how many units are left (too few); nothing at all where the sale is not known here.
# An id that holds units already passes: it is a repeat, and PostgreSQL will find its reservation.
_TAKE = """
local left = redis.call('GET', KEYS[1])
if not left then return {} end
left = tonumber(left)
local answers = {}
for i = 1, #ARGV, 2 do
    local units = tonumber(ARGV[i + 1])
    if redis.call('HEXISTS', KEYS[2], ARGV[i]) == 1 then
        answers[#answers + 1] = -1
    elseif left >= units then
        left = left - units
        redis.call('HSET', KEYS[2], ARGV[i], units)
        answers[#answers + 1] = -1
    else
        answers[#answers + 1] = left
    end
end
redis.call('SET', KEYS[1], left, 'KEEPTTL')
return answers
"""
# KEYS as above. ARGV: ids. Each gives back what it holds, once.
_GIVE_BACK = """
local back = 0
for i = 1, #ARGV do
    local units = redis.call('HGET', KEYS[2], ARGV[i])
    if units then
        redis.call('HDEL', KEYS[2], ARGV[i])
        back = back + tonumber(units)
    end
end
if back > 0 and redis.call('EXISTS', KEYS[1]) == 1 then redis.call('INCRBY', KEYS[1], back) end
return back
"""
# KEYS as above. ARGV: units left, lifetime, then id, quantity, … of those who hold units.
_HEAL = """
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
for i = 3, #ARGV, 2 do redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1
"""


class Gate:
    """The gate of all sales. Never raises: where Valkey does not answer, everybody passes."""

    def __init__(self, url: str) -> None:
        self._valkey = redis.asyncio.Redis.from_url(
            url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS
        )
        self._take = self._valkey.register_script(_TAKE)
        self._give_back = self._valkey.register_script(_GIVE_BACK)
        self._heal = self._valkey.register_script(_HEAL)
        self._away_until = 0.0

    async def refused(self, holds: Sequence[Hold]) -> dict[uuid.UUID, tuple[Line, int]]:
        """Takes units for `holds`; returns those that go away empty: the line that is short, and the units left."""
        by_sale: dict[uuid.UUID, list[tuple[Hold, Line]]] = defaultdict(list)
        for hold in holds:
            for line in hold.lines:
                if line.sale_id:
                    by_sale[line.sale_id].append((hold, line))
        if not by_sale or time.monotonic() < self._away_until:
            return {}
        refused: dict[uuid.UUID, tuple[Line, int]] = {}
        try:
            for sale_id, wishes in by_sale.items():
                arguments = [x for hold, line in wishes for x in (str(hold.id), line.quantity)]
                answers = await self._take(keys=_keys(sale_id), args=arguments)
                for (hold, line), left in zip(wishes, answers, strict=False):
                    if left >= 0:
                        refused[hold.id] = line, left
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            self._lost(error)
            return {}
        # What a hold of several lines took before one of them was refused must go back.
        half_taken = [(hold.id, line) for hold in holds if hold.id in refused for line in hold.lines]
        await self.give_back((id_, line) for id_, line in half_taken if line != refused[id_][0])
        _REFUSED.inc(len(refused))
        return refused

    async def give_back(self, taken: Iterable[tuple[uuid.UUID, Line]]) -> None:
        """Returns the units of (hold id, line) pairs, once however often it is said."""
        by_sale: dict[uuid.UUID, list[str]] = defaultdict(list)
        for hold_id, line in taken:
            if line.sale_id:
                by_sale[line.sale_id].append(str(hold_id))
        if time.monotonic() < self._away_until:
            return  # healing brings them back
        try:
            for sale_id, hold_ids in by_sale.items():
                await self._give_back(keys=_keys(sale_id), args=hold_ids)
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            self._lost(error)

    async def give_back_reservations(self, reservations: Iterable[Reservation]) -> None:
        """Returns all units of `reservations`."""
        await self.give_back((r.id, line) for r in reservations for line in r.lines)

    async def keep_healing(self, db: Database) -> None:
        """Writes every open sale's counter anew from PostgreSQL, again and again. Runs until cancelled.

        A unit on its way from here to PostgreSQL counts as free in between: the gate then lets one too many through,
        and PostgreSQL refuses it.
        """
        known: set[uuid.UUID] = set()
        while True:
            try:
                known = await self._heal_once(db, known)
            except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
                self._lost(error)
                known = set()  # it may come back empty
            except SQLAlchemyError as error:
                log.warning("the gate cannot be healed", cause=repr(error)[:200])
            await asyncio.sleep(HEAL_SECONDS)

    async def _heal_once(self, db: Database, known: set[uuid.UUID]) -> set[uuid.UUID]:
        open_sales = text("""
            SELECT id, allocation - held - sold - returned AS units FROM flash_sales
            WHERE closed_as IS NULL AND start_time <= clock_timestamp() AND end_time > clock_timestamp()
        """)
        async with db() as tx:
            left = {row.id: row.units for row in await tx.execute(open_sales)}
        for sale_id, units in left.items():
            fresh = sale_id not in known or not await self._valkey.exists(_keys(sale_id)[1])
            holders = await self._holders(db, sale_id) if fresh else []
            await self._heal(keys=_keys(sale_id), args=[units, _LIFETIME_SECONDS, *holders])
        return set(left)

    async def _holders(self, db: Database, sale_id: uuid.UUID) -> list[str | int]:
        query = text("""
            SELECT r.id, (line->>'quantity')::integer AS units
            FROM reservations r, jsonb_array_elements(r.lines) AS line
            WHERE r.state = 'HELD' AND line->>'sale_id' = :sale
        """)
        async with db() as tx:
            return [x for row in await tx.execute(query, {"sale": str(sale_id)}) for x in (str(row.id), row.units)]

    def _lost(self, error: Exception) -> None:
        _BYPASSED.inc()
        self._away_until = time.monotonic() + _PAUSE_SECONDS
        log.warning("the gate is away; PostgreSQL decides alone", cause=repr(error)[:200])

    async def close(self) -> None:
        await self._valkey.aclose()


def _keys(sale_id: uuid.UUID) -> list[str]:
    # The braces make all keys of a sale live on one node of a cluster.
    return [f"sale:{{{sale_id}}}:left", f"sale:{{{sale_id}}}:holders"]
