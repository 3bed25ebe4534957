"""Passwords: bcrypt in a small thread pool of its own, behind a queue that is as long as callers wait for."""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import TypeVar

import bcrypt

from services.chassis import request_context
from services.chassis.data.limiter import Limiter

R = TypeVar("R")

_ADDRESS_SHARE = 0.5
# Somebody can register many accounts, and is then familiar with all of them.
_FIRST_EACH_MOST = 4
_FIRST_IN_A_ROW = 3
_FAMILIAR_MOST = 100_000


class Passwords:
    """Hashes and verifies passwords, each within a `turn`."""

    def __init__(self, *, rounds: int, threads: int = 2, patience_seconds: float = 2.0) -> None:
        self._rounds = rounds
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bcrypt")
        began = time.perf_counter()
        # Compared in place of the hash of an unknown user.
        self._dummy_hash = self._hash(secrets.token_bytes(32)).encode()
        self._limiter = Limiter(
            "passwords", threads, patience_seconds=patience_seconds, mean_seconds=time.perf_counter() - began,
            first_in_a_row=_FIRST_IN_A_ROW,
        )  # fmt: skip
        self._familiar = Familiar()
        self._waiting_first: dict[bytes, str] = {}
        """The network addresses of those that wait before others."""

    @asynccontextmanager
    async def turn(self, email: str) -> AsyncIterator["Turn"]:
        """Waits for a thread; take it before the first statement. Raises `RateLimited` if that would take too long.

        An e-mail address that signed in lately from the same network address passes others, one attempt at a time, and
        at most four of one network address. The other attempts of one network address have at most half of the queue.
        Every fourth turn goes to those that nobody lets pass.
        """
        pair, address = self._familiar.pair(email), request_context.client_address()
        first = pair in self._familiar and pair not in self._waiting_first
        first = first and list(self._waiting_first.values()).count(address) < _FIRST_EACH_MOST
        if first:
            self._waiting_first[pair] = address
        try:
            await self._limiter.take(first=first, key=None if first else address or None, key_share=_ADDRESS_SHARE)
        finally:
            if first:
                self._waiting_first.pop(pair, None)
        turn, began = Turn(self, self._pool), time.perf_counter()
        try:
            yield turn
        finally:
            turn.when_idle(lambda: self._limiter.give_back(time.perf_counter() - began))

    def remember(self, email: str) -> None:
        """Notes that `email` has just signed in or registered from the network address of the current call."""
        self._familiar.add(self._familiar.pair(email))

    def is_outdated(self, password_hash: str) -> bool:
        """Return whether the hash has another number of rounds than new hashes."""
        return int(password_hash.split("$")[2]) != self._rounds

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _hash(self, password: bytes) -> str:
        return bcrypt.hashpw(password, bcrypt.gensalt(self._rounds)).decode()


class Turn:
    """A thread that its holder may use, one work after the other."""

    def __init__(self, passwords: Passwords, pool: ThreadPoolExecutor) -> None:
        self._passwords, self._pool = passwords, pool
        self._working: Future[object] | None = None

    async def hash(self, password: str) -> str:
        return await self._run_in_thread(lambda: self._passwords._hash(password.encode()))

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Return whether the password has this hash. Without a hash, return False after the same work."""
        against = password_hash.encode() if password_hash else self._passwords._dummy_hash
        same = await self._run_in_thread(lambda: bcrypt.checkpw(password.encode(), against))
        return same and password_hash is not None

    def when_idle(self, then: Callable[[], None]) -> None:
        """Calls `then` when the thread is free: after its work, also if nobody waits for that any more."""
        if self._working is None or self._working.done():
            then()
        else:
            loop = asyncio.get_running_loop()
            self._working.add_done_callback(lambda _: loop.call_soon_threadsafe(then))

    async def _run_in_thread(self, work: Callable[[], R]) -> R:
        future = self._pool.submit(work)
        self._working = future  # type: ignore[assignment]  # only its end is of interest
        return await asyncio.wrap_future(future)


class Familiar:
    """E-mail addresses with the network addresses from which they signed in lately, as keyed hashes, in memory."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._pairs: OrderedDict[bytes, None] = OrderedDict()

    def pair(self, email: str) -> bytes:
        """Returns the hash of `email` and the network address of the current call; empty if that is not known."""
        address = request_context.client_address()
        return blake2b(f"{email}\n{address}".encode(), key=self._key, digest_size=16).digest() if address else b""

    def __contains__(self, pair: bytes) -> bool:
        return pair in self._pairs

    def add(self, pair: bytes) -> None:
        if pair:
            self._pairs[pair] = None
            self._pairs.move_to_end(pair)
            if len(self._pairs) > _FAMILIAR_MOST:
                self._pairs.popitem(last=False)
