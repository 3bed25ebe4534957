"""A background task that ends or hangs is noticed; one that waits for something is not."""

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from services.chassis.telemetry import heartbeats
from services.chassis.telemetry.heartbeats import SILENT_SECONDS, Hearts, TaskEnded, beat, endless, together, waiting
from tests.support.waiting import until


@pytest.fixture
def hearts() -> Iterator[Hearts]:
    hearts = Hearts()
    with hearts.of("work"):
        yield hearts


async def speaks(hearts: Hearts, name: str) -> bool:
    return name not in hearts.silent()


def test_a_task_without_a_beat_for_a_minute_is_silent(hearts: Hearts) -> None:
    hearts.tick(SILENT_SECONDS)
    assert hearts.silent() == []
    hearts.tick()
    assert hearts.silent() == ["work"]
    with hearts.of("other"):
        beat()
        assert hearts.silent() == ["work"]


def test_a_rest_that_was_announced_is_not_silence() -> None:
    hearts = Hearts()
    with hearts.of("cleanup"):
        beat(rest=3600)
        hearts.tick(3600 + SILENT_SECONDS)
        assert hearts.silent() == []
        hearts.tick()
        assert hearts.silent() == ["cleanup"]
        beat()
        assert hearts.silent() == []
    assert not hearts._hearts


async def test_waiting_beats_and_passes_on_result_and_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "_WAITING_SECONDS", 0.001)
    hearts, go, cancelled = Hearts(), asyncio.Event(), asyncio.Event()

    async def work() -> str:
        try:
            await go.wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "done"

    with hearts.of("work"):
        for ends in (True, False):
            task = asyncio.create_task(waiting(work()))
            await asyncio.sleep(0)
            hearts.tick(SILENT_SECONDS + 1)
            await until(lambda: speaks(hearts, "work"))
            if ends:
                go.set()
                assert await task == "done"
                go.clear()
            else:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                assert cancelled.is_set()


async def _returns() -> None:
    pass


async def _is_cancelled_by_a_library() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("work", [_returns, _is_cancelled_by_a_library])
async def test_a_part_that_ends_silently_ends_all_parts(work: type) -> None:
    """A task group alone would go on without it: events would no longer be consumed, and nothing would say so."""
    with pytest.raises(TaskEnded):
        await endless("part", work())
    forever = asyncio.Event()
    with pytest.raises(BaseExceptionGroup) as caught:
        await together({"other": endless("other", _wait(forever)), "part": work()})
    assert caught.group_contains(TaskEnded)


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def test_each_part_has_a_heart_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "_WAITING_SECONDS", 0.001)
    hearts, forever = Hearts(), asyncio.Event()

    async def beats() -> None:
        await waiting(forever.wait())

    with hearts.of("events"):
        task = asyncio.create_task(together({"relay": beats(), "consumer": _wait(forever)}))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        hearts.tick(SILENT_SECONDS + 1)
        await until(lambda: speaks(hearts, "events: relay"))
        assert "events: consumer" in hearts.silent()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert not hearts._hearts


async def test_task_whose_cancellation_was_swallowed_ends_at_its_next_beat() -> None:
    async def consume() -> None:
        while beat():
            with contextlib.suppress(asyncio.CancelledError):  # as `asyncio.wait_for` does before Python 3.12
                await asyncio.Event().wait()

    task = asyncio.create_task(consume())
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(60):
        await asyncio.wait([task])
    assert task.cancelled()
