"""Live views: one look for all who watch, and the latest for those who read slowly."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest

from services.chassis import watch
from services.chassis.errors import RateLimited
from services.chassis.watch import Watch


class Shelf:
    """Values that change, and what was asked about them."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {"clock": 0, "mug": 0}
        self.looks: list[set[str]] = []
        self.looked = asyncio.Condition()

    async def fetch(self, keys: Sequence[str]) -> Mapping[str, int]:
        async with self.looked:
            self.looks.append(set(keys))
            self.looked.notify_all()
        return {key: self.values[key] for key in keys if key in self.values}

    async def look(self, count: int) -> None:
        """Waits until there were so many looks, and their values were told."""
        async with self.looked:
            await self.looked.wait_for(lambda: len(self.looks) >= count)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running(watch: Watch[str, int]) -> AsyncIterator[None]:
    task = asyncio.create_task(watch.run())
    try:
        async with asyncio.timeout(3):
            yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_one_look_serves_all_watchers_of_all_keys() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, seconds=60, most=10)
    with views.subscribed("clock") as first, views.subscribed("clock") as second, views.subscribed("mug") as third:
        async with running(views):
            assert [await anext(first), await anext(second), await anext(third)] == [0, 0, 0]
    assert shelf.looks == [{"clock", "mug"}]


async def test_a_nudge_looks_at_what_changed_only() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, seconds=60, most=10)
    with views.subscribed("clock") as clock, views.subscribed("mug") as mug:
        async with running(views):
            await anext(clock), await anext(mug)
            shelf.values["clock"] = 7
            views.nudge("clock")
            assert await anext(clock) == 7
    assert shelf.looks == [{"clock", "mug"}, {"clock"}]


async def test_many_nudges_are_one_look() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, seconds=60, most=10)
    with views.subscribed("clock") as clock:
        async with running(views):
            await anext(clock)
            for value in range(1, 100):
                shelf.values["clock"] = value
                views.nudge("clock")
            assert await anext(clock) == 99
    assert len(shelf.looks) == 2


async def test_a_slow_watcher_misses_what_lies_between_but_never_the_latest() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, seconds=60, most=10)
    with views.subscribed("clock") as clock:
        async with running(views):
            await shelf.look(1)
            for value in (1, 2, 3):
                shelf.values["clock"] = value
                views.nudge("clock")
                await shelf.look(1 + value)
            assert await anext(clock) == 3


async def test_a_key_that_is_nudged_all_the_time_leaves_the_others_their_looks() -> None:
    shelf = Shelf()
    looked = shelf.fetch

    async def busy(keys: Sequence[str]) -> Mapping[str, int]:
        views.nudge("clock")  # as an order that changes the hot sale during each look
        await asyncio.sleep(0)  # a database takes its time
        return await looked(keys)

    views: Watch[str, int] = Watch(busy, seconds=0.01, most=10)
    with views.subscribed("clock"), views.subscribed("mug") as mug:
        async with running(views):
            await anext(mug)
            shelf.values["mug"] = 5
            while await anext(mug) != 5:
                pass


async def test_what_does_not_exist_is_not_told() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, seconds=60, most=10)
    with views.subscribed("lamp") as lamp, views.subscribed("clock") as clock:
        async with running(views):
            await anext(clock)
            told = asyncio.ensure_future(anext(lamp))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            assert not told.done()
            told.cancel()


async def test_too_many_watchers_are_refused_and_those_who_leave_make_room() -> None:
    views = Watch(Shelf().fetch, seconds=60, most=1)
    with views.subscribed("clock"), pytest.raises(RateLimited), views.subscribed("clock"):
        pass
    with views.subscribed("clock"):
        pass


async def test_nobody_is_looked_at_who_is_not_watched() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, seconds=60, most=10)
    with views.subscribed("mug"):
        pass
    views.nudge("mug")
    with views.subscribed("clock") as clock:
        async with running(views):
            await anext(clock)
    assert shelf.looks == [{"clock"}]


async def test_a_view_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_LASTS_SECONDS", 0.01)
    views = Watch(Shelf().fetch, seconds=60, most=10)
    with views.subscribed("clock") as clock:
        assert [value async for value in clock] == []
