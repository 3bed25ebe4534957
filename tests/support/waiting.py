"""Waiting for what publishes no event: databases, processes, pages behind a gateway."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

PAUSE_SECONDS = 0.02


async def eventually(
    look: Callable[[], Awaitable[T]],
    wanted: Callable[[T], object],
    *,
    seconds: float = 60.0,
    pause_seconds: float = PAUSE_SECONDS,
) -> T:
    """Return what `look` finds, once it is as wanted. Fail after `seconds`, with what was found last."""
    deadline = time.monotonic() + seconds
    while not wanted(found := await look()):
        assert time.monotonic() < deadline, f"after {seconds} s still {found!r}"
        await asyncio.sleep(pause_seconds)
    return found


async def until(fact: Callable[[], Awaitable[Any]], *, seconds: float = 60.0) -> Any:
    """Return what `fact` returns, once that is true. Fail after `seconds`."""
    return await eventually(fact, bool, seconds=seconds)
