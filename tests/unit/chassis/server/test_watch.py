"""The watch: one fetch for all watchers, and the latest value for slow ones."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

import pytest

from services.chassis import request_context
from services.chassis.errors import RateLimited, Unavailable
from services.chassis.request_context import Call, Caller
from services.chassis.server import watch
from services.chassis.server.watch import Watch


class Shelf:
    """Values that change, and the fetches of them."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {"clock": 0, "mug": 0}
        self.fetches: list[set[str]] = []
        self._fetched = asyncio.Condition()
        self.unavailable = False

    async def fetch(self, keys: Sequence[str]) -> Mapping[str, int]:
        if self.unavailable:
            raise ConnectionError("the shelf is unavailable")
        async with self._fetched:
            self.fetches.append(set(keys))
            self._fetched.notify_all()
        return {key: self.values[key] for key in keys if key in self.values}

    async def wait_for_fetches(self, count: int) -> None:
        """Waits until there were so many fetches, and their values were given to watchers."""
        async with self._fetched:
            await self._fetched.wait_for(lambda: len(self.fetches) >= count)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running(watch: Watch[str, int]) -> AsyncIterator[None]:
    task = asyncio.create_task(watch.run())
    try:
        async with asyncio.timeout(60):
            yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_one_fetch_serves_all_watchers_of_all_keys() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    with views.subscribe("clock") as first, views.subscribe("clock") as second, views.subscribe("mug") as third:
        async with running(views):
            assert [await anext(first), await anext(second), await anext(third)] == [0, 0, 0]
    assert shelf.fetches == [{"clock", "mug"}]


async def test_nudge_fetches_only_its_key() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    with views.subscribe("clock") as clock, views.subscribe("mug") as mug:
        async with running(views):
            await anext(clock), await anext(mug)
            shelf.values["clock"] = 7
            views.nudge("clock")
            assert await anext(clock) == 7
    assert shelf.fetches == [{"clock", "mug"}, {"clock"}]


async def test_many_nudges_are_one_fetch() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    with views.subscribe("clock") as clock:
        async with running(views):
            await anext(clock)
            for value in range(1, 100):
                shelf.values["clock"] = value
                views.nudge("clock")
            assert await anext(clock) == 99
    assert len(shelf.fetches) == 2


async def test_slow_watcher_receives_the_latest_value() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    with views.subscribe("clock") as clock:
        async with running(views):
            await shelf.wait_for_fetches(1)
            for value in (1, 2, 3):
                shelf.values["clock"] = value
                views.nudge("clock")
                await shelf.wait_for_fetches(1 + value)
            assert await anext(clock) == 3


async def test_constantly_nudged_key_does_not_delay_other_keys() -> None:
    shelf = Shelf()
    fetch = shelf.fetch

    async def busy(keys: Sequence[str]) -> Mapping[str, int]:
        views.nudge("clock")  # as an order that changes the sale during each fetch
        await asyncio.sleep(0)  # as a query does
        return await fetch(keys)

    views: Watch[str, int] = Watch(busy, interval_seconds=0.01, watchers_max=10)
    with views.subscribe("clock"), views.subscribe("mug") as mug:
        async with running(views):
            await anext(mug)
            shelf.values["mug"] = 5
            while await anext(mug) != 5:
                pass


async def test_missing_key_has_no_value() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    with views.subscribe("lamp") as lamp, views.subscribe("clock") as clock:
        async with running(views):
            await anext(clock)
            pending = asyncio.ensure_future(anext(lamp))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            assert not pending.done()
            pending.cancel()


async def test_watchers_are_bounded_and_leaving_frees_a_slot() -> None:
    views = Watch(Shelf().fetch, interval_seconds=60, watchers_max=1)
    with views.subscribe("clock"), pytest.raises(RateLimited), views.subscribe("clock"):
        pass
    with views.subscribe("clock"):
        pass


async def test_unwatched_key_is_not_fetched() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    with views.subscribe("mug"):
        pass
    views.nudge("mug")
    with views.subscribe("clock") as clock:
        async with running(views):
            await anext(clock)
    assert shelf.fetches == [{"clock"}]


async def test_unchanged_value_is_given_once() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=0.001, watchers_max=10)
    with views.subscribe("clock") as clock, views.subscribe("mug") as mug:
        async with running(views):
            assert await anext(mug) == 0
            await shelf.wait_for_fetches(10)
            shelf.values["mug"] = 8
            assert await anext(mug) == 8
            assert await anext(clock) == 0
            pending = asyncio.ensure_future(anext(clock))  # type: ignore[arg-type]
            await shelf.wait_for_fetches(len(shelf.fetches) + 10)
            assert not pending.done()
            pending.cancel()


async def test_only_the_compared_part_counts_as_a_change() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=0.001, watchers_max=10, compare=lambda value: value // 10)
    with views.subscribe("clock") as clock:
        async with running(views):
            assert await anext(clock) == 0
            for value in range(1, 11):
                shelf.values["clock"] = value
                await shelf.wait_for_fetches(len(shelf.fetches) + 2)
            assert await anext(clock) == 10


async def test_first_value_is_fetched_at_once() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    async with running(views):
        with views.subscribe("clock", at_once=True) as clock:
            assert await anext(clock) == 0
    assert shelf.fetches == [{"clock"}]


async def test_later_watchers_receive_the_last_value_without_a_fetch() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=100)
    async with running(views), contextlib.AsyncExitStack() as stack:
        for _ in range(50):
            clock = stack.enter_context(views.subscribe("clock", at_once=True))
            assert await anext(clock) == 0
    assert shelf.fetches == [{"clock"}]


async def test_last_value_is_dropped_with_the_last_watcher() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    async with running(views):
        for value in (0, 7):
            shelf.values["clock"] = value
            with views.subscribe("clock", at_once=True) as clock:
                assert await anext(clock) == value


async def test_failed_fetch_fails_only_watchers_without_a_value() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    with views.subscribe("clock", at_once=True) as patient:
        async with running(views):
            assert await anext(patient) == 0
        shelf.unavailable = True
        with views.subscribe("mug", at_once=True) as mug:
            async with running(views):
                with pytest.raises(Unavailable):
                    await anext(mug)
        shelf.unavailable, shelf.values["clock"] = False, 3
        async with running(views):
            assert await anext(patient) == 3


async def does_not_read(views: Watch[str, int], begun: asyncio.Event) -> None:
    """A handler whose client has stopped reading: it is suspended while it sends."""
    with views.subscribe("clock") as clock:
        async for _ in clock:
            begun.set()
            await asyncio.Event().wait()


async def test_watcher_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_UNREAD_SECONDS", 0.02)
    shelf, begun = Shelf(), asyncio.Event()
    views = Watch(shelf.fetch, interval_seconds=0.001, watchers_max=2)
    asleep = asyncio.create_task(does_not_read(views, begun))
    with views.subscribe("clock") as awake:
        async with running(views):
            async for value in awake:
                if begun.is_set():
                    shelf.values["clock"] = value + 1  # there is always a new value
                if asleep.done():
                    break
                shelf.values["clock"] = value + 1
            with pytest.raises(asyncio.CancelledError) as cancelled:
                await asleep
            assert cancelled.value.args == (watch.DROPPED,)
            with views.subscribe("clock") as third:
                await anext(third)
            assert await anext(awake) > 0, "a watcher that reads stays"


@pytest.fixture
def _no_call() -> Iterator[None]:
    yield
    request_context.enter(None)  # type: ignore[arg-type]


def calls_as(user: uuid.UUID | None, address: str = "") -> None:
    metadata = {"x-envoy-external-address": address}
    request_context.enter(Call(method="/m", request_id="r", caller=Caller(user_id=user), metadata=metadata))


@pytest.mark.usefixtures("_no_call")
@pytest.mark.parametrize("signed_in", [True, False])
async def test_client_with_too_many_watchers_loses_the_oldest(signed_in: bool) -> None:
    ada, grace = (uuid.UUID(int=1), uuid.UUID(int=2)) if signed_in else (None, None)
    views = Watch(Shelf().fetch, interval_seconds=60, watchers_max=10, watchers_each_max=2)
    async with running(views):
        calls_as(grace, "192.0.2.2")
        with views.subscribe("clock", at_once=True) as other:
            calls_as(ada, "192.0.2.1")
            with views.subscribe("clock", at_once=True) as oldest, views.subscribe("mug", at_once=True) as second:
                assert await anext(oldest) == 0
                with views.subscribe("clock", at_once=True) as newest:
                    assert [value async for value in oldest] == [], "it ends, and is no error"
                    assert [await anext(view) for view in (second, newest, other)] == [0, 0, 0]
                    assert views._count == 3
    assert (views._count, views._by_client) == (0, {})


@pytest.mark.usefixtures("_no_call")
async def test_calls_without_a_client_share_no_bound() -> None:
    """As those of services, and of a test: only the gateway knows the address of a client."""
    views = Watch(Shelf().fetch, interval_seconds=60, watchers_max=10, watchers_each_max=1)
    async with running(views):
        calls_as(None)
        with views.subscribe("clock", at_once=True) as one, views.subscribe("clock", at_once=True) as two:
            assert [await anext(one), await anext(two)] == [0, 0]


@pytest.mark.usefixtures("_no_call")
async def test_oldest_watcher_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_LAST_WORD_SECONDS", 0.001)
    views = Watch(Shelf().fetch, interval_seconds=0.001, watchers_max=10, watchers_each_max=1)
    async with running(views):
        calls_as(uuid.UUID(int=1))
        begun = asyncio.Event()
        asleep = asyncio.create_task(does_not_read(views, begun))
        await begun.wait()
        with views.subscribe("clock"):
            with pytest.raises(asyncio.CancelledError) as cancelled:
                await asleep
            assert cancelled.value.args == (watch.DROPPED,)


async def test_watcher_without_a_new_value_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_UNREAD_SECONDS", 0.005)
    shelf, begun = Shelf(), asyncio.Event()
    views = Watch(shelf.fetch, interval_seconds=0.001, watchers_max=2)
    asleep = asyncio.create_task(does_not_read(views, begun))
    async with running(views):
        await begun.wait()
        await shelf.wait_for_fetches(len(shelf.fetches) + 50)
    assert not asleep.done()
    asleep.cancel()


async def test_paused_process_drops_no_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a SIGSTOP: there were no rounds, so no watcher has missed any."""
    monkeypatch.setattr(watch, "_UNREAD_SECONDS", 0.002)
    shelf, begun = Shelf(), asyncio.Event()
    views = Watch(shelf.fetch, interval_seconds=0.001, watchers_max=2)
    asleep = asyncio.create_task(does_not_read(views, begun))
    async with running(views):
        await begun.wait()
        shelf.values["clock"] = 1
        await shelf.wait_for_fetches(len(shelf.fetches) + 1)
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + 60)
    async with running(views):
        await shelf.wait_for_fetches(len(shelf.fetches) + 1)
    assert not asleep.done()
    asleep.cancel()


async def test_rounds_become_rarer_with_many_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise many watchers would leave the process no time for orders."""
    monkeypatch.setattr(watch, "_UPDATES_PER_SECOND_MAX", 1)
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=0.001, watchers_max=10)
    with views.subscribe("clock") as first, views.subscribe("clock") as second:
        async with running(views):
            assert [await anext(first), await anext(second)] == [0, 0]
            shelf.values["clock"] = 1
            pending = asyncio.ensure_future(anext(first))  # type: ignore[arg-type]
            await asyncio.wait({pending}, timeout=0.1)
            assert not pending.done()
            views.nudge("clock")  # a nudged key is still fetched at once
            assert await pending == 1
    assert len(shelf.fetches) == 2


async def test_subscription_ends_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_LASTS_SECONDS", 0.01)
    views = Watch(Shelf().fetch, interval_seconds=60, watchers_max=10)
    with views.subscribe("clock") as clock:
        assert [value async for value in clock] == []


# Live: every change is nudged, and rounds are for safety only


async def wait_rounds(count: int) -> None:
    """Waits for as long as another watch needs for so many rounds."""
    shelf = Shelf()
    clock = Watch(shelf.fetch, interval_seconds=0.001, watchers_max=1)
    with clock.subscribe("clock"):
        async with running(clock):
            await shelf.wait_for_fetches(count)


async def test_live_watch_fetches_only_nudged_keys() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=0.001, safety_seconds=60, watchers_max=10)
    views.live = True
    with views.subscribe("clock") as clock, views.subscribe("mug") as mug:
        async with running(views):
            assert [await anext(clock), await anext(mug)] == [0, 0]
            await wait_rounds(50)
            shelf.values["clock"] = 7
            views.nudge("clock")
            assert await anext(clock) == 7
            await wait_rounds(50)
    assert shelf.fetches == [{"clock", "mug"}, {"clock"}]


async def test_live_watch_fetches_all_keys_now_and_then() -> None:
    """A nudge may be lost all the same."""
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=0.001, safety_seconds=0.02, watchers_max=10)
    views.live = True
    with views.subscribe("clock") as clock:
        async with running(views):
            await anext(clock)
            shelf.values["clock"] = 7
            assert await anext(clock) == 7


async def test_watch_catches_up_when_it_becomes_live_again() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, safety_seconds=60, watchers_max=10)
    views.live = True
    with views.subscribe("clock") as clock:
        async with running(views):
            await anext(clock)
            shelf.values["clock"] = 7
            views.live = True
            assert await anext(clock) == 7


async def test_watch_that_is_no_longer_live_fetches_by_itself() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=0.001, safety_seconds=60, watchers_max=10)
    views.live = True
    with views.subscribe("clock") as clock:
        async with running(views):
            await anext(clock)
            views.live = False
            shelf.values["clock"] = 7
            assert await anext(clock) == 7


async def test_nudge_is_skipped_if_the_change_was_already_fetched() -> None:
    shelf = Shelf()
    views = Watch(shelf.fetch, interval_seconds=60, watchers_max=10)
    with views.subscribe("clock") as clock, views.subscribe("mug") as mug:
        async with running(views):
            await anext(clock), await anext(mug)
            shelf.values |= {"clock": 7, "mug": 7}
            views.nudge("clock", unless=lambda value: value >= 0)
            views.nudge("mug", unless=lambda value: value >= 7)
            assert await anext(mug) == 7
    assert shelf.fetches == [{"clock", "mug"}, {"mug"}]


async def test_live_watch_drops_a_watcher_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert len(shelf.fetches) == 2


async def test_watched_is_set_while_there_is_a_watcher() -> None:
    views = Watch(Shelf().fetch, interval_seconds=60, watchers_max=10)
    assert not views.watched.is_set()
    with views.subscribe("clock"):
        with views.subscribe("mug"):
            pass
        assert views.watched.is_set()
    assert not views.watched.is_set()


async def test_quiet_value_comes_again_so_that_proxies_keep_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_QUIET_SECONDS", 0.01)
    views = Watch(Shelf().fetch, interval_seconds=60, watchers_max=1)
    with views.subscribe("clock") as values:
        async with running(views):
            assert [await anext(values) for _ in range(3)] == [0, 0, 0]


async def test_quiet_stream_repeats_what_its_reader_has_sent_before_the_first_fetch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While live, nothing is fetched before a change; an order whose buyer is at the bank has none for minutes."""
    monkeypatch.setattr(watch, "_QUIET_SECONDS", 0.01)
    views = Watch(Shelf().fetch, interval_seconds=60, watchers_max=1)
    with views.subscribe("clock", sent=lambda: 7) as values:
        assert [await anext(values) for _ in range(2)] == [7, 7]
