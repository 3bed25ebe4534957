"""How the gate is rebuilt from PostgreSQL: exactly, while others take and give back, and under the latest epoch only.

A heal of a sale has five steps, of which 2 and 4 see one and the same snapshot of PostgreSQL:

1. Valkey: `ended0`.
2. PostgreSQL: what remains.
3. Valkey, one script: `net3`, `ended3`, the tokens that are `taken`, and the time.
4. PostgreSQL: what has become of these tokens' reservations.
5. Valkey, one script, which does nothing where a later epoch is known:
   `left = remaining - units of tokens under way + (ended3 - ended0) - (net5 - net3)`.

Why this is right. `left` must be what remains less what was taken and has not reached PostgreSQL. A reservation is
written after its token was taken, and given back at the gate after it has ended in PostgreSQL. So a token counts once:

- Taken after 3: the snapshot cannot know it, and `net` has risen by it.
- Taken before 3, unknown to the snapshot, and young: it is under way, and subtracted, whether it was written since or
  not. If it is given back, `net` falls.
- The same, but older than a transaction lasts: it leaked, because somebody died between gate and PostgreSQL. It counts
  for nothing, and is forgotten, so that nobody can give it back.
- Taken before 3, and in the snapshot: `remaining` knows what became of it. Where it has units, held or sold, it moves
  to `known`. Where it is over it is forgotten; had it been given back between 3 and 5, then `net` has fallen for units
  that `remaining` had counted as free already, and 5 takes them off again.
- Given back before 3, but held in the snapshot: it ended between 2 and 3, and `ended` has risen.

Nothing depends on what `left` was. So two leaders may heal at once, and old, lost or invented data last until the next
heal. A leader that was paused before 5 would write what was true long ago: that is what the epoch is for.

What is left are races, in which one too many may pass to PostgreSQL until the next heal, a second later: a reservation
that ends just before 2, and is given back after 1, may count as free twice; a transaction that takes longer than
`UNDER_WAY_SECONDS` counts as free until it commits. In one case somebody may be refused as long: units that come back
without the gate's knowledge (a correction, a give-back while Valkey was away) are free when the next heal finds them.

`known` is complete where this very server has been healed before. Where it was not (it is new, was emptied, or has
restarted, with old data or none), all HELD reservations are loaded before 2. Holds from times when the gate could not
be asked are found by a walk that looks at some HELD reservations in every heal, those with the longest to go first.
"""

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import structlog
from prometheus_client import Counter, Gauge
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from services.chassis.data.db import Database, run_alone
from services.inventory.domain import State
from services.inventory.gate import LIFETIME_SECONDS, LOST, Gate, Script

log = structlog.get_logger()

HEAL_SECONDS = 1.0
UNDER_WAY_SECONDS = 5.0
_SCRIPT_SECONDS = 2.0
_SALES_AT_ONCE = 200
_LOAD_AT_ONCE = 5_000
_WALK_AT_ONCE = 1_000
# Tokens of units that were sold, beside those of units that are held: for repeats that come late.
_SOLD_MOST = 10_000
_HEALS = Counter(
    "stampede_gate_heals_total", "Heals of one sale's gate: written, or refused by the fence.", ["outcome"]
)
_HEALED = Gauge("stampede_gate_healed_timestamp_seconds", "When this process last healed the gate of all open sales.")
_LEAKED = Counter("stampede_gate_leaked_units_total", "Units that came back from tokens nobody brought to PostgreSQL.")

# KEYS as in `gate`. Answers whether this very server was healed before, and `ended`.
_LOOK = Script("""
local state = redis.call('HMGET', KEYS[1], 'epoch', 'run', 'ended')
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
return {(state[1] and state[2] == run) and 1 or 0, tonumber(state[3]) or 0}
""")
# Answers which server this is, net, ended, milliseconds, the number of tokens known, and those taken:
# id, "units milliseconds", …
_READ = Script("""
local state = redis.call('HMGET', KEYS[1], 'net', 'ended')
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local net, ended = tonumber(state[1]) or 0, tonumber(state[2]) or 0
return {run, net, ended, now, redis.call('HLEN', KEYS[3]), redis.call('HGETALL', KEYS[2])}
""")
# ARGV: epoch, lifetime, which server was read, net3, the rest of the sum for `left`, the limit per customer, how many
# ids of reservations with units follow, these ids, then id, units, … of tokens that count for nothing. Answers 0 where
# the fence refuses, or where this is another server, with other data.
_WRITE = Script("""
local state = redis.call('HMGET', KEYS[1], 'epoch', 'net')
if (tonumber(state[1]) or 0) > tonumber(ARGV[1]) then return 0 end
if string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') ~= ARGV[3] then return 0 end
local net = tonumber(state[2]) or 0
local left = ARGV[5] - (net - ARGV[4])
local first_over = 8 + ARGV[7]
for i = 8, first_over - 1 do
    local taken = redis.call('HGET', KEYS[2], ARGV[i])
    if taken then
        redis.call('HDEL', KEYS[2], ARGV[i])
        redis.call('HSETNX', KEYS[3], ARGV[i], string.match(taken, '%d+'))
    end
end
for i = first_over, #ARGV, 2 do
    local id, units = ARGV[i], 0
    local token = redis.call('HGET', KEYS[2], id) or redis.call('HGET', KEYS[3], id)
    if token then units = tonumber(string.match(token, '%d+')) end
    redis.call('HDEL', KEYS[2], id)
    redis.call('HDEL', KEYS[3], id)
    net = net - units
    left = left - (ARGV[i + 1] - units)
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'left', left, 'net', net, 'run', ARGV[3], 'limit', ARGV[6],
    'over', '')
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[2]) end
return 1
""")
# ARGV: epoch, lifetime, how the sale ended. Tokens are kept for as long as people are turned away: repeats still pass.
_END = Script("""
if tonumber(redis.call('HGET', KEYS[1], 'epoch')) ~= tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'over', ARGV[3])
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[2]) end
return 1
""")
# ARGV: lifetime, then id, units, … of HELD reservations.
_LOAD = Script("""
for i = 2, #ARGV, 2 do redis.call('HSETNX', KEYS[3], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[3], ARGV[1])
return 1
""")
# ARGV: a cursor, about how many. Answers the next cursor, and ids with units of tokens known.
_SCAN = Script("return redis.call('HSCAN', KEYS[3], ARGV[1], 'COUNT', ARGV[2])")
# ARGV: ids.
_FORGET = Script("for _, id in ipairs(ARGV) do redis.call('HDEL', KEYS[3], id) end return 1")

_OPEN = text("""
    SELECT id, held, extract(epoch FROM start_time - clock_timestamp())::double precision AS starts_in
    FROM flash_sales
    WHERE closed_as IS NULL AND end_time > clock_timestamp()
        AND start_time <= clock_timestamp() + make_interval(secs => :ahead)
""")
_ENDS = text("SELECT id, coalesce(closed_as, 'ENDED') AS state FROM flash_sales WHERE id = ANY(CAST(:ids AS uuid[]))")
_REMAINING = text("""
    SELECT id, allocation - held - sold - returned AS remaining, held, per_customer_limit FROM flash_sales
    WHERE id = ANY(CAST(:ids AS uuid[]))
""")
_STATES = text("SELECT id, state FROM reservations WHERE id = ANY(CAST(:ids AS uuid[]))")
_STILL_HELD = text("SELECT id FROM reservations WHERE id = ANY(CAST(:ids AS uuid[])) AND state = 'HELD'")
_PAGE = text("""
    SELECT r.id, r.expire_time, (line->>'sale_id')::uuid AS sale_id, (line->>'quantity')::integer AS units
    FROM (
        SELECT id, expire_time, lines FROM reservations
        WHERE state = 'HELD' AND (expire_time, id) < (CAST(:time AS timestamptz), CAST(:id AS uuid))
        ORDER BY expire_time DESC, id DESC LIMIT :most
    ) r LEFT JOIN LATERAL jsonb_array_elements(r.lines) AS line ON line->>'sale_id' IS NOT NULL
    ORDER BY r.expire_time DESC, r.id DESC
""")
_YOUNGEST: tuple[Any, uuid.UUID] = ("infinity", uuid.UUID(int=2**128 - 1))


@dataclass(frozen=True, slots=True)
class _Token:
    units: int
    young: bool


@dataclass(frozen=True, slots=True)
class _Read:
    """What a sale's gate says in step 3."""

    run: bytes
    net: int
    ended: int
    known: int
    taken: dict[uuid.UUID, _Token]


@dataclass(slots=True)
class _Account:
    """What is found out in steps 1 to 4."""

    run: bytes
    net: int
    sum: int
    """All of `left` but the change of `net`."""
    limit: int
    with_units: list[str] = field(default_factory=list)
    over: list[str | int] = field(default_factory=list)
    """Ids and units of tokens that count for nothing."""


async def keep_healing(db: Database, gate: Gate, epoch: int) -> None:
    """Heals all open sales, again and again. Runs until cancelled; a heal that fails is tried again."""
    healer = Healer(db, gate, epoch)
    while True:
        await gate.there.wait()
        began, pause = time.monotonic(), HEAL_SECONDS
        try:
            pause = await healer.heal()
        except (*LOST, SQLAlchemyError) as error:
            log.warning("the gate is not healed", cause=repr(error)[:200])
        # With very many sales a heal takes its time, and then half of it is left to others.
        await asyncio.sleep(max(pause, time.monotonic() - began))


class Healer:
    """Heals under one epoch."""

    def __init__(self, db: Database, gate: Gate, epoch: int) -> None:
        self._db, self._gate, self._epoch = db, gate, epoch
        self._walked = _YOUNGEST
        self._open: set[uuid.UUID] = set()
        self._scanned: dict[uuid.UUID, bytes] = {}

    async def heal(self) -> float:
        """Heals every open sale once. Returns after how many seconds to come again: in time for a sale that starts."""
        known = await run_alone(self._db, _OPEN, {"ahead": HEAL_SECONDS})
        held = {row.id: row.held for row in known if row.starts_in <= 0}
        await self._end(self._open - held.keys())
        self._open = set(held)
        loaded = False
        for some in _chunks(held, _SALES_AT_ONCE):
            looks = await self._ask(_LOOK, some)
            if not loaded and any(held[sale_id] and not whole for sale_id, (whole, _) in looks.items()):
                await self._load(set(held))
                loaded = True
            accounts, crowded = await self._compare({sale_id: ended for sale_id, (_, ended) in looks.items()})
            await self._write(accounts)
            await self._sweep(crowded)
        await self._walk(set(held))
        _HEALED.set_to_current_time()
        starts: list[float] = [row.starts_in for row in known if row.starts_in > 0]
        return min([HEAL_SECONDS, *starts])

    async def _end(self, sales: set[uuid.UUID]) -> None:
        """Has the gate say that sales are over, which this leader has healed before: else it would say sold out."""
        if not sales:
            return
        ends = {row.id: row.state for row in await run_alone(self._db, _ENDS, {"ids": list(sales)})}
        arguments: dict[uuid.UUID, list[Any]] = {
            id_: [self._epoch, LIFETIME_SECONDS, state] for id_, state in ends.items()
        }
        await self._gate.run(_END, arguments, seconds=_SCRIPT_SECONDS)

    async def _compare(self, ended: dict[uuid.UUID, int]) -> tuple[dict[uuid.UUID, _Account], list[uuid.UUID]]:
        """Steps 2 to 4 for the sales of `ended`, by id: `ended0`. Also those whose gate knows too many tokens."""
        async with self._db() as tx:
            # It spans a call to Valkey, for the sake of its snapshot: it locks nothing, and the call is short.
            await tx.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            sales = (await tx.execute(_REMAINING, {"ids": list(ended)})).all()
            reads = {id_: _read(answer) for id_, answer in (await self._ask(_READ, [s.id for s in sales])).items()}
            tokens = [id_ for read in reads.values() for id_ in read.taken]
            states = {row.id: row.state for row in await tx.execute(_STATES, {"ids": tokens})}
        accounts = {s.id: _account(reads[s.id], s, ended[s.id], states) for s in sales}
        # Every hold has a unit at least.
        return accounts, [s.id for s in sales if reads[s.id].known > s.held + _SOLD_MOST]

    async def _write(self, accounts: dict[uuid.UUID, _Account]) -> None:
        """Step 5."""
        if not accounts:
            return
        arguments: dict[uuid.UUID, list[Any]] = {
            sale_id: [
                self._epoch, LIFETIME_SECONDS, a.run, a.net, a.sum, a.limit, len(a.with_units), *a.with_units, *a.over,
            ]
            for sale_id, a in accounts.items()
        }  # fmt: skip
        written = await self._gate.run(_WRITE, arguments, seconds=_SCRIPT_SECONDS)
        _HEALS.labels("written").inc(sum(written))
        if refused := len(written) - sum(written):
            _HEALS.labels("refused").inc(refused)
            log.warning("a later leader has healed the gate, or it restarted", epoch=self._epoch, sales=refused)

    async def _ask(self, script: Script, sales: Sequence[uuid.UUID]) -> dict[uuid.UUID, Any]:
        if not sales:
            return {}
        answers = await self._gate.run(script, {sale_id: [] for sale_id in sales}, seconds=_SCRIPT_SECONDS)
        return dict(zip(sales, answers, strict=True))

    async def _load(self, sales: set[uuid.UUID]) -> None:
        """Makes tokens of all HELD reservations of `sales`."""
        after: tuple[Any, uuid.UUID] | None = _YOUNGEST
        while after:
            after = await self._page(sales, after, _LOAD_AT_ONCE)
        self._walked = _YOUNGEST  # those that were under way meanwhile are the first that the walk comes by

    async def _walk(self, sales: set[uuid.UUID]) -> None:
        self._walked = await self._page(sales, self._walked, _WALK_AT_ONCE) or _YOUNGEST

    async def _page(
        self, sales: set[uuid.UUID], after: tuple[Any, uuid.UUID], most: int
    ) -> tuple[Any, uuid.UUID] | None:
        """Makes tokens of HELD reservations that expire before `after`. Returns where to go on; None at the end."""
        rows = await run_alone(self._db, _PAGE, {"time": after[0], "id": after[1], "most": most})
        arguments: dict[uuid.UUID, list[Any]] = defaultdict(lambda: [LIFETIME_SECONDS])
        for row in rows:
            if row.sale_id in sales:
                arguments[row.sale_id] += [str(row.id), row.units]
        if arguments:
            await self._gate.run(_LOAD, arguments, seconds=_SCRIPT_SECONDS)
        full = len({row.id for row in rows}) == most
        return (rows[-1].expire_time, rows[-1].id) if full else None

    async def _sweep(self, sales: Sequence[uuid.UUID]) -> None:
        """Forgets some of the known tokens whose reservations are not held any more; nobody gives sold ones back."""
        self._scanned = {sale_id: self._scanned.get(sale_id, b"0") for sale_id in sales}
        if not sales:
            return
        arguments: dict[uuid.UUID, list[Any]] = {
            sale_id: [cursor, _WALK_AT_ONCE] for sale_id, cursor in self._scanned.items()
        }
        found: dict[uuid.UUID, list[str]] = {}
        for sale_id, (cursor, tokens) in zip(
            sales, await self._gate.run(_SCAN, arguments, seconds=_SCRIPT_SECONDS), strict=True
        ):
            self._scanned[sale_id] = cursor
            found[sale_id] = [id_.decode() for id_ in tokens[::2]]
        ids = [id_ for tokens in found.values() for id_ in tokens]
        held = {str(row.id) for row in await run_alone(self._db, _STILL_HELD, {"ids": ids})}
        over = {sale_id: over for sale_id, tokens in found.items() if (over := [i for i in tokens if i not in held])}
        if over:
            await self._gate.run(_FORGET, dict(over), seconds=_SCRIPT_SECONDS)


def _read(answer: Any) -> _Read:
    run, net, ended, now, known, taken = answer
    tokens = {}
    for id_, value in zip(taken[::2], taken[1::2], strict=True):
        units, since, _ = value.split()
        tokens[uuid.UUID(id_.decode())] = _Token(int(units), now - int(since) < UNDER_WAY_SECONDS * 1000)
    return _Read(run, net, ended, known, tokens)


def _account(read: _Read, sale: Any, ended: int, states: dict[uuid.UUID, str]) -> _Account:
    # Where Valkey was emptied between 1 and 3, nothing has ended since.
    account = _Account(read.run, read.net, sale.remaining + max(read.ended - ended, 0), sale.per_customer_limit)
    for id_, token in read.taken.items():
        state = states.get(id_)
        if state is None and token.young:
            account.sum -= token.units
        elif state in (State.HELD, State.CONFIRMED):
            account.with_units.append(str(id_))
        else:
            account.over += [str(id_), token.units]
            _LEAKED.inc(token.units if state is None else 0)
    return account


def _chunks(items: Sequence[uuid.UUID] | dict[uuid.UUID, Any], size: int) -> Iterator[list[uuid.UUID]]:
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some
