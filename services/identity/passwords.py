"""Passwords: bcrypt in a few threads of its own, so that a rush of sign-ins slows only sign-ins."""

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import bcrypt

from services.chassis.errors import RateLimited

R = TypeVar("R")


class Passwords:
    """Hashes and verifies. What finds too many waiting already is refused with `RateLimited`, before any work."""

    def __init__(self, *, rounds: int, threads: int = 2, waiting_most: int = 200) -> None:
        self._rounds = rounds
        self._most = threads + waiting_most
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bcrypt")
        self._taken_on = 0
        # Stands in for the hash of a user who does not exist; nobody knows its password.
        self._nobodys = self._hash(secrets.token_bytes(32)).encode()

    async def hash(self, password: str) -> str:
        return await self._off_the_loop(lambda: self._hash(password.encode()))

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Whether the password has that hash; without one, False after the same work."""
        against = password_hash.encode() if password_hash else self._nobodys
        same = await self._off_the_loop(lambda: bcrypt.checkpw(password.encode(), against))
        return same and password_hash is not None

    def outdated(self, password_hash: str) -> bool:
        """Whether the hash was made with other rounds than hashes are made with now."""
        return int(password_hash.split("$")[2]) != self._rounds

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _hash(self, password: bytes) -> str:
        return bcrypt.hashpw(password, bcrypt.gensalt(self._rounds)).decode()

    async def _off_the_loop(self, work: Callable[[], R]) -> R:
        if self._taken_on >= self._most:
            raise RateLimited(what="passwords")
        self._taken_on += 1
        try:
            # A caller who gives up takes the work out of the queue, unless it has begun.
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._taken_on -= 1
