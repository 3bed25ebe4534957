"""The admission gate: turns losers of a flash sale away before they cost a transaction.

It lives in Valkey and may only say no. What it lets through, PostgreSQL decides; so a gate that is lost, stale or wrong
costs speed, never stock. For each sale it counts the units that nobody has taken, and knows who took some: a *token* is
the id of a hold with its units. Tokens are

- `taken`, with the time by Valkey's clock, until healing finds their reservation in PostgreSQL;
- `known` from then on. Tokens let a repeat pass when the sale is sold out: it must find what it holds, or has bought.

Where a sale has a limit per customer, the gate counts what each has taken. Whoever is over it takes no token, so that
they keep no unit from others; and hears no here for a second after PostgreSQL said so. These counts are only hints:
what they have missed, because Valkey was away or a process died, has somebody ask PostgreSQL who need not, or costs a
token.

Once a sale is over it turns everybody away who has no token, for as long as tokens are kept. Then PostgreSQL says it.

`healing` writes the counters anew from PostgreSQL, under the term of the leader who does it (`chassis.lease`), here
called the epoch. Whoever takes names the epoch it has heard of. A gate without an epoch was emptied, one with an older
epoch holds somebody's old data: it says nothing then, and all pass to PostgreSQL. Their tokens are written down all the
same, so that healing counts them as being under way. A process that has heard of no epoch lately, because PostgreSQL is
away, cannot tell old data from new, so it has nobody refused: better a sale that has to wait than a wrong "sold out".
"""

import asyncio
import hashlib
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import redis.asyncio
import structlog
from prometheus_client import Counter
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisClusterException, RedisError

from services.chassis.errors import AppError
from services.inventory.domain import CustomerLimit, Hold, Line, Reservation, SaleNotLive, SoldOut

log = structlog.get_logger()

LIFETIME_SECONDS = 10
"""How long what nobody heals is kept."""
_TIMEOUT_SECONDS = 0.25
_CONNECT_SECONDS = 0.25
_PAUSE_SECONDS = 1.0
_CONNECTIONS_MOST = 1000
_REFUSED = Counter("stampede_gate_refused_total", "Holds that the gate turned away.")
_BYPASSED = Counter("stampede_gate_bypassed_total", "Batches that the gate had no say in, because it is", ["why"])
LOST = (RedisError, RedisClusterException, OSError, TimeoutError)
"""What is raised where Valkey is away, too slow, or in no state to work."""

# All scripts work on one sale. KEYS: its state, tokens taken, tokens known, customers, customers refused.
#   state: left (units nobody took), net (units taken less units given back), ended (units given back by reservations
#          that are over; of both only changes matter), limit (per customer, 0 for none), epoch, run (which server was
#          healed), over (how the sale ended; empty while it runs)
#   taken: id -> "units milliseconds customer"
#   known: id -> units
#   customers: customer -> units taken, where there is a limit
#   refused: customer -> milliseconds when PostgreSQL last said that they are over the limit
# ARGV: epoch (0: none is known), lifetime, then id, units, customer, id, …
# Answers whether the gate knows the sale, then for each id -1 (pass), how many units are left (too few), -1 less the
# limit (over it), or how the sale ended.
_TAKE = """
local state = redis.call('HMGET', KEYS[1], 'epoch', 'left', 'limit', 'over')
local epoch, mine, left = tonumber(state[1]), tonumber(ARGV[1]), tonumber(state[2])
local limit = tonumber(state[3]) or 0
local knows = mine > 0 and epoch and epoch >= mine
local over = knows and state[4] and state[4] ~= '' and state[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answers, taken = {knows and 1 or 0}, 0
for i = 3, #ARGV, 3 do
    local id, units, customer = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2]
    local before = redis.call('HGET', KEYS[2], id)
    local answer = -1
    if before then
        redis.call('HSET', KEYS[2], id, string.match(before, '%d+') .. ' ' .. now .. ' ' .. customer)
    elseif redis.call('HEXISTS', KEYS[3], id) == 0 then
        if over then
            answer = over
        elseif knows and left < units then
            answer = math.max(left, 0)
        elseif knows and limit > 0 and (tonumber(redis.call('HGET', KEYS[4], customer)) or 0) + units > limit then
            local refused = tonumber(redis.call('HGET', KEYS[5], customer))
            if refused and now - refused < 1000 then answer = -1 - limit end
        else
            redis.call('HSET', KEYS[2], id, units .. ' ' .. now .. ' ' .. customer)
            taken = taken + units
            if left then left = left - units end
            if limit > 0 then redis.call('HINCRBY', KEYS[4], customer, units) end
        end
    end
    answers[#answers + 1] = answer
end
if taken > 0 then
    redis.call('HINCRBY', KEYS[1], 'net', taken)
    if left then redis.call('HSET', KEYS[1], 'left', left) end
    redis.call('EXPIRE', KEYS[1], ARGV[2], 'NX')
    redis.call('EXPIRE', KEYS[2], ARGV[2])
    redis.call('EXPIRE', KEYS[4], ARGV[2])
end
return answers
"""
# ARGV: lifetime, why, then id, customer, id, … Each gives back what it has, once. Why:
#   refused: PostgreSQL said no. A token that is known stays: this was another request under its id.
#   over:    the same, because the customer is over the limit.
#   unsure:  nobody knows what PostgreSQL did. The units come back, the id stays, and passes when it is repeated.
#   ended:   the reservation was released, or expired.
_GIVE_BACK = """
local why, back = ARGV[2], 0
for i = 3, #ARGV, 2 do
    local id, customer, units = ARGV[i], ARGV[i + 1], 0
    local taken = redis.call('HGET', KEYS[2], id)
    if taken then
        units = tonumber(string.match(taken, '%d+'))
        if why == 'unsure' then
            redis.call('HSET', KEYS[2], id, '0' .. string.match(taken, ' .*'))
        else
            redis.call('HDEL', KEYS[2], id)
        end
    end
    if why == 'ended' then
        units = math.max(units, tonumber(redis.call('HGET', KEYS[3], id)) or 0)
        redis.call('HDEL', KEYS[3], id)
        redis.call('HDEL', KEYS[5], customer)
    end
    if why == 'over' then
        local time = redis.call('TIME')
        redis.call('HSET', KEYS[5], customer, time[1] * 1000 + math.floor(time[2] / 1000))
        redis.call('EXPIRE', KEYS[5], ARGV[1])
    end
    if units > 0 and redis.call('HEXISTS', KEYS[4], customer) == 1 then
        redis.call('HINCRBY', KEYS[4], customer, -units)
    end
    back = back + units
end
if back > 0 then
    redis.call('HINCRBY', KEYS[1], 'net', -back)
    if why == 'ended' then redis.call('HINCRBY', KEYS[1], 'ended', back) end
    if redis.call('HEXISTS', KEYS[1], 'left') == 1 then redis.call('HINCRBY', KEYS[1], 'left', back) end
    redis.call('EXPIRE', KEYS[1], ARGV[1], 'NX')
end
return back
"""


class Script:
    """A Lua script, called by its digest."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


_PASS = -1
_TAKE_SCRIPT, _GIVE_BACK_SCRIPT = Script(_TAKE), Script(_GIVE_BACK)


class Gate:
    """The gate of all sales. Never raises to those who take: where Valkey does not answer, everybody passes."""

    def __init__(self, url: str, epoch: Callable[[], int | None], *, cluster: bool = False) -> None:
        """`epoch` is the latest that this process has heard of. `cluster`: `url` names a node of a Valkey Cluster."""
        kind: Any = redis.asyncio.RedisCluster if cluster else redis.asyncio.Redis
        self.valkey = kind.from_url(
            url,
            # With one, redis-py sends through `asyncio.wait_for`, which in Python 3.11 may swallow a cancellation: a
            # leader would go on leading. All calls here have a timeout of their own.
            socket_timeout=None,
            socket_connect_timeout=_CONNECT_SECONDS,
            max_connections=_CONNECTIONS_MOST,
            retry=Retry(NoBackoff(), 0),
        )
        self._epoch = epoch
        self._asking: asyncio.Task[None] | None = None
        self.there = asyncio.Event()
        """Set while Valkey answers, as far as is known."""
        self.there.set()

    async def refused(self, holds: Sequence[Hold]) -> dict[uuid.UUID, AppError]:
        """Takes units for `holds`; returns what those hear who go away empty."""
        by_sale: dict[uuid.UUID, list[tuple[Hold, Line]]] = defaultdict(list)
        for hold in holds:
            for line in hold.lines:
                if line.sale_id:
                    by_sale[line.sale_id].append((hold, line))
        if not by_sale:
            return {}
        arguments = {
            sale_id: [
                self._epoch() or 0,
                LIFETIME_SECONDS,
                *(value for hold, line in wishes for value in (str(hold.id), line.quantity, str(hold.customer_id))),
            ]
            for sale_id, wishes in by_sale.items()
        }
        answers = await self._answers(_TAKE_SCRIPT, arguments)
        if answers is None:
            _BYPASSED.labels("away").inc()
            return {}
        refused: dict[uuid.UUID, AppError] = {}
        empty_handed: set[tuple[uuid.UUID, Line]] = set()
        for wishes, (_, *words) in zip(by_sale.values(), answers, strict=True):
            for (hold, line), word in zip(wishes, words, strict=True):
                if word != _PASS:
                    refused.setdefault(hold.id, _refusal(line, word))
                    empty_handed.add((hold.id, line))
        if not all(knows for knows, *_ in answers):
            _BYPASSED.labels("empty").inc()
        # What a hold of several lines took before one of them was refused must go back.
        half_taken = [(hold, line) for hold in holds if hold.id in refused for line in hold.lines]
        await self.give_back((hold, line) for hold, line in half_taken if (hold.id, line) not in empty_handed)
        _REFUSED.inc(len(refused))
        return refused

    async def give_back(self, taken: Iterable[tuple[Hold, Line]]) -> None:
        """Returns the units of lines that came to nothing."""
        await self._give_back("refused", taken)

    async def give_back_over(self, taken: Iterable[tuple[Hold, Line]]) -> None:
        """The same, where the customers are over the limit: for a second they need not ask again."""
        await self._give_back("over", taken)

    async def give_back_unsure(self, taken: Iterable[tuple[Hold, Line]]) -> None:
        """The same, where nobody knows what PostgreSQL did. If the units are held after all, a repeat finds them."""
        await self._give_back("unsure", taken)

    async def give_back_reservations(self, ended: Iterable[Reservation]) -> None:
        """Returns all units of reservations that are over, once however often it is said."""
        await self._give_back("ended", ((r, line) for r in ended for line in r.lines))

    async def _give_back(self, why: str, taken: Iterable[tuple[Hold | Reservation, Line]]) -> None:
        by_sale: dict[uuid.UUID, list[str | int]] = defaultdict(lambda: [LIFETIME_SECONDS, why])
        for hold, line in taken:
            if line.sale_id:
                by_sale[line.sale_id] += [str(hold.id), str(hold.customer_id)]
        if by_sale:
            await self._answers(_GIVE_BACK_SCRIPT, by_sale)  # where it fails, healing brings them back

    async def _answers(self, script: Script, arguments: dict[uuid.UUID, list[Any]]) -> list[Any] | None:
        """What `script` answers for each sale; None where Valkey is away."""
        if not self.there.is_set():
            return None
        try:
            return await self.run(script, arguments)
        except LOST:
            return None

    async def run(
        self, script: Script, arguments: dict[uuid.UUID, list[Any]], *, seconds: float = _TIMEOUT_SECONDS
    ) -> list[Any]:
        """Runs `script` for each sale, all in one round trip; raises `LOST`, and then nobody asks for a while."""
        calls = list(arguments.items())
        try:
            async with asyncio.timeout(seconds):
                answers = await self._send("EVALSHA", script.digest, calls)
                unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
                if unknown:
                    again = await self._send("EVAL", script.source, [calls[i] for i in unknown])
                    for i, answer in zip(unknown, again, strict=True):
                        answers[i] = answer
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        except LOST as error:
            self._lost(error, calls[0][0])
            raise
        return answers

    async def _send(self, command: str, script: str, calls: Sequence[tuple[uuid.UUID, list[Any]]]) -> list[Any]:
        pipeline = self.valkey.pipeline(transaction=False)
        for sale_id, arguments in calls:
            keys = keys_of(sale_id)
            pipeline.execute_command(command, script, len(keys), *keys, *arguments)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

    def _lost(self, error: Exception, sale_id: uuid.UUID) -> None:
        """Has everybody pass until Valkey answers again; one task asks it, about the sale that found it away."""
        if self.there.is_set():
            log.warning("the gate is away; PostgreSQL decides alone", cause=repr(error)[:200])
            self.there.clear()
            self._asking = asyncio.create_task(self._ask(sale_id))

    async def _ask(self, sale_id: uuid.UUID) -> None:
        while True:
            await asyncio.sleep(_PAUSE_SECONDS)
            try:
                async with asyncio.timeout(_TIMEOUT_SECONDS):
                    await self.valkey.aclose()  # of what was there before; what is asked next opens a new connection
                    await self.valkey.exists(keys_of(sale_id)[0])
            except LOST:
                continue
            log.info("the gate is back")
            self.there.set()
            return

    async def aclose(self) -> None:
        if self._asking:
            self._asking.cancel()
        await self.valkey.aclose()


def keys_of(sale_id: uuid.UUID) -> list[str]:
    """A sale's keys, as the scripts have them. The braces keep them on one node of a cluster."""
    return [f"sale:{{{sale_id}}}:{name}" for name in ("state", "taken", "known", "customers", "refused")]


def _refusal(line: Line, word: int | bytes) -> AppError:
    """What the gate's answer to `line` means."""
    if isinstance(word, bytes):
        return SaleNotLive(flashSaleId=line.sale_id, state=word.decode())
    if word < _PASS:
        return CustomerLimit(flashSaleId=line.sale_id, limit=_PASS - word)
    return SoldOut(flashSaleId=line.sale_id, remaining=word)
