"""The admission gate: refuses most losers of a flash sale before they reach PostgreSQL. It never grants.

A gate that is lost, stale or wrong costs speed, never stock. README.md beside this file explains how it works.
"""

import asyncio
import hashlib
import uuid
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import redis.asyncio
import structlog
from prometheus_client import Counter
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisClusterException, RedisError

from services.inventory.domain import Hold, Line, Reservation, SoldOut

log = structlog.get_logger()

LIFETIME_SECONDS = 10
"""How long a sale's keys outlive their last rebuild. take.lua names the same number."""
UNAVAILABLE = (RedisError, RedisClusterException, OSError, TimeoutError)
"""The errors of a Valkey that is unavailable, too slow, or not ready to work."""
_TIMEOUT_SECONDS = 0.25
_RETRY_SECONDS = 1.0
_CONNECTIONS_MOST = 1000
_REFUSED = Counter("stampede_gate_refused_total", "Holds that the gate refused.")
_BYPASSED = Counter("stampede_gate_bypassed_total", "Sales of a batch that passed without the gate's check.", ["why"])
_TOOK = -1


class Script:
    """A Lua script, called by its digest."""

    def __init__(self, name: str) -> None:
        self.source = (Path(__file__).parent / "scripts" / f"{name}.lua").read_bytes()
        self.digest = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


_TAKE, _GIVE_BACK = Script("take"), Script("give_back")


class Gate:
    """The gate of all sales. Never raises to the hot path: while Valkey is unavailable, all holds pass."""

    def __init__(self, url: str, *, cluster: bool = False, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
        """`cluster`: `url` names a node of a Valkey Cluster. Without a `url` the gate is off, and all holds pass.

        A call or a connection that takes longer than `timeout_seconds` makes the gate unavailable.
        """
        self._timeout_seconds = timeout_seconds
        self.available = asyncio.Event()
        """Set while Valkey answers, as far as this process can see."""
        self._returning: asyncio.Task[None] | None = None
        self.valkey: Any = None
        if url:
            kind: Any = redis.asyncio.RedisCluster if cluster else redis.asyncio.Redis
            self.valkey = kind.from_url(
                url,
                # With a timeout, redis-py sends through `asyncio.wait_for`, which in Python 3.11 can swallow a
                # cancellation: a leader would go on leading. All calls here have a timeout of their own.
                socket_timeout=None,
                socket_connect_timeout=timeout_seconds,
                max_connections=_CONNECTIONS_MOST,
                retry=Retry(NoBackoff(), 0),
            )
            self.available.set()

    async def take(self, holds: Sequence[Hold]) -> tuple[list[tuple[Hold, Line]], dict[uuid.UUID, SoldOut]]:
        """Takes units for `holds`. Returns which lines took units, and the holds that are refused, by id."""
        by_sale: dict[uuid.UUID, list[tuple[Hold, Line]]] = defaultdict(list)
        for hold in holds:
            for line in hold.lines:
                if line.sale_id:
                    by_sale[line.sale_id].append((hold, line))
        arguments = {
            sale_id: [value for hold, line in lines for value in (hold.customer_id.bytes, line.quantity)]
            for sale_id, lines in by_sale.items()
        }
        taken: list[tuple[Hold, Line]] = []
        refused: dict[uuid.UUID, SoldOut] = {}
        for lines, answer in zip(by_sale.values(), await self._try(_TAKE, arguments), strict=True):
            if not answer:
                _BYPASSED.labels("unavailable" if answer is None else "no_counter").inc()
                continue
            for (hold, line), left in zip(lines, answer, strict=True):
                if left == _TOOK:
                    taken.append((hold, line))
                elif left >= 0:
                    refused.setdefault(hold.id, SoldOut(flashSaleId=line.sale_id, remaining=left))
        if refused:
            _REFUSED.inc(len(refused))
            # The other lines of a refused hold may have taken units.
            await self.give_back((hold, line) for hold, line in taken if hold.id in refused)
            taken = [(hold, line) for hold, line in taken if hold.id not in refused]
        return taken, refused

    async def give_back(
        self,
        taken: Iterable[tuple[Hold | Reservation, Line]],
        *,
        sold_out: Container[uuid.UUID] = (),
        keep_customers: bool = False,
    ) -> None:
        """Gives units back. In the sales of `sold_out` they do not go on sale: PostgreSQL has just found none left.

        With `keep_customers` the customers still pass when the sale is sold out, because they may hold units.
        """
        arguments: dict[uuid.UUID, list[Any]] = {}
        for hold, line in taken:
            if line.sale_id:
                values = arguments.setdefault(line.sale_id, [0])
                values[0] += 0 if line.sale_id in sold_out else line.quantity
                values += [] if keep_customers else [hold.customer_id.bytes, line.quantity]
        await self._try(_GIVE_BACK, arguments)  # if this fails, the next rebuild corrects the counter

    async def _try(self, script: Script, arguments: dict[uuid.UUID, list[Any]]) -> list[Any]:
        """Returns the answer of `script` for each sale; None for a sale where it failed."""
        if not arguments or not self.available.is_set():
            return [None] * len(arguments)
        try:
            return await self.run(script, arguments)
        except UNAVAILABLE:
            return [None] * len(arguments)

    async def run(
        self, script: Script, arguments: dict[uuid.UUID, list[Any]], *, seconds: float | None = None
    ) -> list[Any]:
        """Runs `script` for each sale in one round trip. Raises `UNAVAILABLE`; then all holds pass for a while.

        If the script fails for one sale, its answer is None. The sale's keys hold something else, so they are deleted,
        and the next rebuild writes them.
        """
        calls = list(arguments.items())
        try:
            async with asyncio.timeout(seconds or self._timeout_seconds):
                answers = await self._send("EVALSHA", script.digest, calls)
                unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
                if unknown:
                    again = await self._send("EVAL", script.source, [calls[i] for i in unknown])
                    for i, answer in zip(unknown, again, strict=True):
                        answers[i] = answer
                failed = [i for i, answer in enumerate(answers) if isinstance(answer, Exception)]
                if failed:
                    log.warning("a sale's gate is unusable", cause=repr(answers[failed[0]])[:200], sales=len(failed))
                    await self.delete([calls[i][0] for i in failed])
        except UNAVAILABLE as error:
            self._lost(error)
            raise
        return [None if isinstance(answer, Exception) else answer for answer in answers]

    async def delete(self, sale_ids: Iterable[uuid.UUID]) -> None:
        """Deletes the keys of sales: all holds pass until the next rebuild writes them. Raises `UNAVAILABLE`."""
        pipeline = self.valkey.pipeline(transaction=False)
        for sale_id in sale_ids:
            pipeline.delete(*keys_of(sale_id))
        async with asyncio.timeout(self._timeout_seconds):
            await pipeline.execute()

    async def _send(self, command: str, script: str | bytes, calls: Sequence[tuple[uuid.UUID, list[Any]]]) -> list[Any]:
        pipeline = self.valkey.pipeline(transaction=False)
        for sale_id, arguments in calls:
            pipeline.execute_command(command, script, 2, *keys_of(sale_id), *arguments)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

    def _lost(self, error: Exception) -> None:
        """Lets all holds pass until Valkey answers again. One task asks it, once a second."""
        if self.available.is_set():
            log.warning("the gate is unavailable; PostgreSQL decides alone", cause=repr(error)[:200])
            self.available.clear()
            self._returning = asyncio.create_task(self._wait_for_valkey())

    async def _wait_for_valkey(self) -> None:
        while True:
            await asyncio.sleep(_RETRY_SECONDS)
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    await self.valkey.aclose()  # the connections from before; the next call opens a new one
                    await self.valkey.exists(keys_of(uuid.UUID(int=0))[0])
            except UNAVAILABLE:
                continue
            log.info("the gate is available again")
            self.available.set()
            return

    async def aclose(self) -> None:
        if self._returning:
            self._returning.cancel()
        if self.valkey:
            await self.valkey.aclose()


def keys_of(sale_id: uuid.UUID) -> tuple[str, str]:
    """The keys of a sale's counter and hash. The braces keep both on one node of a cluster."""
    return f"sale:{{{sale_id}}}:left", f"sale:{{{sale_id}}}:customers"
