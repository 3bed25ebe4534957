"""Heartbeats: each background task says that it goes on, so that one which ended or hangs does not pass unnoticed.

    async def restock(db: Database) -> None:
        while beat():
            …
            await asyncio.sleep(1)

A task that is silent for a minute, while the database answers, hangs. The process is then not alive. It ends, and
its supervisor starts it again. While the database is unavailable no task counts as silent: a restart would not help.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Coroutine, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

SILENT_SECONDS = 60
_WAITING_SECONDS = 5.0


class TaskEnded(Exception):
    """A task that should run for ever has returned, or was cancelled by nobody in this process."""


class _Heart:
    def __init__(self, name: str, hearts: "Hearts") -> None:
        self.name, self.hearts = name, hearts
        self.silent_seconds = 0.0


_heart: ContextVar[_Heart | None] = ContextVar("heart", default=None)


class Hearts:
    """The hearts of one process."""

    def __init__(self) -> None:
        self._hearts: set[_Heart] = set()

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Gives the current task a heart while it is in the block."""
        heart = _Heart(name, self)
        self._hearts.add(heart)
        token = _heart.set(heart)
        try:
            yield
        finally:
            _heart.reset(token)
            self._hearts.discard(heart)

    def tick(self, seconds: float = 1.0) -> None:
        """Counts time in which tasks could beat. By rounds, not by a clock: a paused process beats no heart."""
        for heart in self._hearts:
            heart.silent_seconds += seconds

    def silent(self) -> list[str]:
        """Returns the names of the tasks that hang."""
        return sorted(heart.name for heart in self._hearts if heart.silent_seconds > SILENT_SECONDS)


def beat(*, rest: float = 0.0) -> bool:
    """Says that the current background task goes on, and may be silent for another `rest` seconds. Returns True.

    Raises `CancelledError` in a task that was cancelled: before Python 3.12, `asyncio.wait_for`, and so nats-py,
    swallows a cancellation that arrives together with the awaited result, and the task would go on for ever.
    """
    with contextlib.suppress(RuntimeError):  # outside of an event loop
        task = asyncio.current_task()
        if task and task.cancelling():
            raise asyncio.CancelledError
    if heart := _heart.get():
        heart.silent_seconds = -rest
    return True


async def waiting(event: Awaitable[T]) -> T:
    """Awaits what may rightly take any time, such as a lease, and beats meanwhile."""
    task = asyncio.ensure_future(event)
    try:
        while beat() and not task.done():
            await asyncio.wait([task], timeout=_WAITING_SECONDS)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
    return task.result()


async def together(works: Mapping[str, Coroutine[Any, Any, None]]) -> None:
    """Runs the named parts of a background task, each under a heart of its own. If one fails or ends, all end.

    A task group alone takes a part that returns or is cancelled for one that is done, and goes on without it.
    """
    outer = _heart.get()

    async def part(name: str, work: Coroutine[Any, Any, None]) -> None:
        with outer.hearts.of(f"{outer.name}: {name}") if outer else contextlib.nullcontext():
            await endless(name, work)

    async def all_parts() -> None:
        async with asyncio.TaskGroup() as group:
            for name, work in works.items():
                group.create_task(part(name, work))

    await waiting(all_parts())


async def endless(name: str, work: Coroutine[Any, Any, None]) -> None:
    """Runs `work`. Raises `TaskEnded` if it returns, or raises `CancelledError` although nobody cancels this task."""
    try:
        await work
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current and current.cancelling():
            raise
    raise TaskEnded(name)
