"""Live views: one look for all who watch, and the latest for those who read slowly."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest

from services.chassis.errors import RateLimited, Unavailable
from services.chassis.server import watch
from services.chassis.server.watch import Watch


class Shelf:
    """Values that change, and what was asked about them."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {"clock": 0, "mug": 0}
        self.looks: list[set[str]] = []
        self.looked = asyncio.Condition()
        self.away = False

    async def fetch(self, keys: Sequence[str]) -> Mapping[str, int]:
        if self.away:
            raise ConnectionError("the shelf is away")
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
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    with views.subscribe("clock") as first, views.subscribe("clock") as second, views.subscribe("mug") as third:
        async with running(views):
            assert [await anext(first), await anext(second), await anext(third)] == [0, 0, 0]
    assert shelf.looks == [{"clock", "mug"}]


async def test_a_nudge_looks_at_what_changed_only() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    with views.subscribe("clock") as clock, views.subscribe("mug") as mug:
        async with running(views):
            await anext(clock), await anext(mug)
            shelf.values["clock"] = 7
            views.nudge("clock")
            assert await anext(clock) == 7
    assert shelf.looks == [{"clock", "mug"}, {"clock"}]


async def test_many_nudges_are_one_look() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    with views.subscribe("clock") as clock:
        async with running(views):
            await anext(clock)
            for value in range(1, 100):
                shelf.values["clock"] = value
                views.nudge("clock")
            assert await anext(clock) == 99
    assert len(shelf.looks) == 2


async def test_a_slow_watcher_misses_what_lies_between_but_never_the_latest() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    with views.subscribe("clock") as clock:
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

    views: Watch[str, int] = Watch(busy, interval_seconds=0.01, watchers_max=10)
    with views.subscribe("clock"), views.subscribe("mug") as mug:
        async with running(views):
            await anext(mug)
            shelf.values["mug"] = 5
            while await anext(mug) != 5:
                pass


async def test_what_does_not_exist_is_not_told() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    with views.subscribe("lamp") as lamp, views.subscribe("clock") as clock:
        async with running(views):
            await anext(clock)
            told = asyncio.ensure_future(anext(lamp))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            assert not told.done()
            told.cancel()


async def test_too_many_watchers_are_refused_and_those_who_leave_make_room() -> None:
    views = Watch(Shelf().fetch, interval_seconds=60, watchers_max=1)
    with views.subscribe("clock"), pytest.raises(RateLimited), views.subscribe("clock"):
        pass
    with views.subscribe("clock"):
        pass


async def test_nobody_is_looked_at_who_is_not_watched() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    with views.subscribe("mug"):
        pass
    views.nudge("mug")
    with views.subscribe("clock") as clock:
        async with running(views):
            await anext(clock)
    assert shelf.looks == [{"clock"}]


async def test_what_has_not_changed_is_told_once() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=0.001, watchers_max=10)
    with views.subscribe("clock") as clock, views.subscribe("mug") as mug:
        async with running(views):
            assert await anext(mug) == 0
            await shelf.look(10)
            shelf.values["mug"] = 8
            assert await anext(mug) == 8
            assert await anext(clock) == 0
            told = asyncio.ensure_future(anext(clock))  # type: ignore[arg-type]
            await shelf.look(len(shelf.looks) + 10)
            assert not told.done()
            told.cancel()


async def test_what_is_not_shown_does_not_count_as_a_change() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=0.001, watchers_max=10, compare=lambda value: value // 10)
    with views.subscribe("clock") as clock:
        async with running(views):
            assert await anext(clock) == 0
            for value in range(1, 11):
                shelf.values["clock"] = value
                await shelf.look(len(shelf.looks) + 2)
            assert await anext(clock) == 10


async def test_who_cannot_wait_for_the_next_look_gets_one_at_once() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    async with running(views):
        with views.subscribe("clock", at_once=True) as clock:
            assert await anext(clock) == 0
    assert shelf.looks == [{"clock"}]


async def test_those_who_come_later_are_told_what_the_first_was_without_another_look() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=100)
    async with running(views), contextlib.AsyncExitStack() as stack:
        for _ in range(50):
            clock = stack.enter_context(views.subscribe("clock", at_once=True))
            assert await anext(clock) == 0
    assert shelf.looks == [{"clock"}]


async def test_what_was_told_is_forgotten_with_the_last_watcher() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    async with running(views):
        for value in (0, 7):
            shelf.values["clock"] = value
            with views.subscribe("clock", at_once=True) as clock:
                assert await anext(clock) == value


async def test_a_look_that_fails_tells_those_who_wait_for_their_first_and_no_others() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    with views.subscribe("clock", at_once=True) as patient:
        async with running(views):
            assert await anext(patient) == 0
        shelf.away = True
        with views.subscribe("mug", at_once=True) as mug:
            async with running(views):
                with pytest.raises(Unavailable):
                    await anext(mug)
        shelf.away, shelf.values["clock"] = False, 3
        async with running(views):
            assert await anext(patient) == 3


async def does_not_read(views: Watch[str, int], begun: asyncio.Event) -> None:
    """A handler whose client has stopped reading: it is suspended where it sends."""
    with views.subscribe("clock") as clock:
        async for _ in clock:
            begun.set()
            await asyncio.Event().wait()


async def test_a_watcher_that_does_not_read_is_dropped_and_its_slot_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_UNREAD_SECONDS", 0.02)
    shelf, begun = Shelf(), asyncio.Event()
    views = Watch(shelf.fetch, interval_seconds=0.001, watchers_max=2)
    asleep = asyncio.create_task(does_not_read(views, begun))
    with views.subscribe("clock") as awake:
        async with running(views):
            async for value in awake:
                if begun.is_set():
                    shelf.values["clock"] = value + 1  # there is news all the time
                if asleep.done():
                    break
                shelf.values["clock"] = value + 1
            with pytest.raises(asyncio.CancelledError) as cancelled:
                await asleep
            assert cancelled.value.args == (watch.DROPPED,)
            with views.subscribe("clock") as third:
                await anext(third)
            assert await anext(awake) > 0, "who reads stays"


async def test_a_watcher_to_whom_there_is_nothing_to_tell_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_UNREAD_SECONDS", 0.005)
    shelf, begun = Shelf(), asyncio.Event()
    views = Watch(shelf.fetch, interval_seconds=0.001, watchers_max=2)
    asleep = asyncio.create_task(does_not_read(views, begun))
    async with running(views):
        await begun.wait()
        await shelf.look(len(shelf.looks) + 50)
    assert not asleep.done()
    asleep.cancel()


async def test_time_that_the_process_missed_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a SIGSTOP: no look was made, so nobody has missed any."""
    monkeypatch.setattr(watch, "_UNREAD_SECONDS", 0.002)
    shelf, begun = Shelf(), asyncio.Event()
    views = Watch(shelf.fetch, interval_seconds=0.001, watchers_max=2)
    asleep = asyncio.create_task(does_not_read(views, begun))
    async with running(views):
        await begun.wait()
        shelf.values["clock"] = 1
        await shelf.look(len(shelf.looks) + 1)
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + 60)
    async with running(views):
        await shelf.look(len(shelf.looks) + 1)
    assert not asleep.done()
    asleep.cancel()


async def test_the_more_are_told_the_rarer_are_the_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a crowd of watchers would leave the process no time for those who buy."""
    monkeypatch.setattr(watch, "_UPDATES_PER_SECOND_MAX", 1)
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=0.001, watchers_max=10)
    with views.subscribe("clock") as first, views.subscribe("clock") as second:
        async with running(views):
            assert [await anext(first), await anext(second)] == [0, 0]
            shelf.values["clock"] = 1
            told = asyncio.ensure_future(anext(first))  # type: ignore[arg-type]
            await asyncio.wait({told}, timeout=0.1)
            assert not told.done()
            views.nudge("clock")  # news of one key is told at once, as ever
            assert await told == 1
    assert len(shelf.looks) == 2


async def test_a_view_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_LASTS_SECONDS", 0.01)
    views = Watch(Shelf().fetch, interval_seconds=60, watchers_max=10)
    with views.subscribe("clock") as clock:
        assert [value async for value in clock] == []


# Live: every change is nudged, so looks are for safety only


async def as_long_as_looks(count: int) -> None:
    """Lasts as long as so many rounds of a view like those of these tests."""
    shelf = Shelf()
    clock = Watch(shelf.fetch, interval_seconds=0.001, watchers_max=1)
    with clock.subscribe("clock"):
        async with running(clock):
            await shelf.look(count)


async def test_while_it_is_live_it_looks_at_what_is_nudged_and_at_nothing_else() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=0.001, safety_seconds=60, watchers_max=10)
    views.live = True
    with views.subscribe("clock") as clock, views.subscribe("mug") as mug:
        async with running(views):
            assert [await anext(clock), await anext(mug)] == [0, 0]
            await as_long_as_looks(50)
            shelf.values["clock"] = 7
            views.nudge("clock")
            assert await anext(clock) == 7
            await as_long_as_looks(50)
    assert shelf.looks == [{"clock", "mug"}, {"clock"}]


async def test_it_looks_now_and_then_even_while_it_is_live() -> None:
    """Should a nudge be lost all the same."""
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=0.001, safety_seconds=0.02, watchers_max=10)
    views.live = True
    with views.subscribe("clock") as clock:
        async with running(views):
            await anext(clock)
            shelf.values["clock"] = 7
            assert await anext(clock) == 7


async def test_it_catches_up_when_it_becomes_live_again() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, safety_seconds=60, watchers_max=10)
    views.live = True
    with views.subscribe("clock") as clock:
        async with running(views):
            await anext(clock)
            shelf.values["clock"] = 7
            views.live = True
            assert await anext(clock) == 7


async def test_it_looks_for_itself_when_it_is_live_no_more() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=0.001, safety_seconds=60, watchers_max=10)
    views.live = True
    with views.subscribe("clock") as clock:
        async with running(views):
            await anext(clock)
            views.live = False
            shelf.values["clock"] = 7
            assert await anext(clock) == 7


async def test_what_it_has_seen_already_is_no_news() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    with views.subscribe("clock") as clock, views.subscribe("mug") as mug:
        async with running(views):
            await anext(clock), await anext(mug)
            shelf.values |= {"clock": 7, "mug": 7}
            views.nudge("clock", unless=lambda value: value >= 0)
            views.nudge("mug", unless=lambda value: value >= 7)
            assert await anext(mug) == 7
    assert shelf.looks == [{"clock", "mug"}, {"mug"}]


async def test_who_does_not_read_is_dropped_though_looks_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_UNREAD_SECONDS", 0.02)
    shelf, begun = Shelf(), asyncio.Event()
    views = Watch(shelf.fetch, interval_seconds=0.001, safety_seconds=60, watchers_max=2)
    views.live = True
    asleep = asyncio.create_task(does_not_read(views, begun))
    async with running(views):
        await begun.wait()
        shelf.values["clock"] = 1
        views.nudge("clock")
        await asyncio.wait({asleep})
    assert asleep.cancelled()
    assert len(shelf.looks) == 2


async def test_it_says_whether_anybody_watches() -> None:
    views = Watch(Shelf().fetch, interval_seconds=60, watchers_max=10)
    assert not views.watched.is_set()
    with views.subscribe("clock"):
        with views.subscribe("mug"):
            pass
        assert views.watched.is_set()
    assert not views.watched.is_set()
