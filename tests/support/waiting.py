"""Waiting for what publishes no event: databases, processes, pages behind a gateway."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

PAUSE_SECONDS = 0.02
_SHARE, _LONGEST_SECONDS = 0.1, 0.25
"""A look costs processor time that a slow machine needs for what is waited for, so the pauses grow with the wait."""


async def eventually(
    look: Callable[[], Awaitable[T]],
    wanted: Callable[[T], object],
    *,
    seconds: float = 60.0,
    pause_seconds: float = PAUSE_SECONDS,
) -> T:
    """Return what `look` finds, once it is as wanted. Fail after `seconds`, with what was found last.

    The first pauses last `pause_seconds`, later ones a tenth of the time so far.
    """
    began = time.monotonic()
    while not wanted(found := await look()):
        waited = time.monotonic() - began
        assert waited < seconds, f"after {seconds} s still {found!r}"
        await asyncio.sleep(max(pause_seconds, min(waited * _SHARE, _LONGEST_SECONDS)))
    return found


async def until(fact: Callable[[], Awaitable[Any]], *, seconds: float = 60.0) -> Any:
    """Return what `fact` returns, once that is true. Fail after `seconds`."""
    return await eventually(fact, bool, seconds=seconds)
