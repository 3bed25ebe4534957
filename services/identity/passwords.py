"""Passwords: bcrypt in a small thread pool of its own, so that many sign-ins slow only sign-ins."""

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import bcrypt

from services.chassis.errors import RateLimited

R = TypeVar("R")


class Passwords:
    """Hashes and verifies passwords. Refuses with `RateLimited` before any work if the queue is full."""

    def __init__(self, *, rounds: int, threads: int = 2, queue_max: int = 200) -> None:
        self._rounds = rounds
        self._pending_max = threads + queue_max
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bcrypt")
        self._pending = 0
        # Compared in place of the hash of an unknown user.
        self._dummy_hash = self._hash(secrets.token_bytes(32)).encode()

    async def hash(self, password: str) -> str:
        return await self._run_in_thread(lambda: self._hash(password.encode()))

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Return whether the password has this hash. Without a hash, return False after the same work."""
        against = password_hash.encode() if password_hash else self._dummy_hash
        same = await self._run_in_thread(lambda: bcrypt.checkpw(password.encode(), against))
        return same and password_hash is not None

    def is_outdated(self, password_hash: str) -> bool:
        """Return whether the hash has another number of rounds than new hashes."""
        return int(password_hash.split("$")[2]) != self._rounds

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _hash(self, password: bytes) -> str:
        return bcrypt.hashpw(password, bcrypt.gensalt(self._rounds)).decode()

    async def _run_in_thread(self, work: Callable[[], R]) -> R:
        if self._pending >= self._pending_max:
            raise RateLimited(what="passwords")
        self._pending += 1
        try:
            # Cancelling the call removes its work from the queue, unless a thread has begun it.
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._pending -= 1
