"""Waiting for what tells nobody that it has come to pass."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any


async def until(fact: Callable[[], Awaitable[Any]], *, seconds: float = 30.0) -> Any:
    """Returns what `fact` returns, once that is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := await fact()):
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.02)
    return found
