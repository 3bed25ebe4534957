"""Turns of provider calls: so many at once and a second, charges before intents, payers in turn."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from services.payments.providers.border import NoAnswer, NotSent
from services.payments.providers.limits import ProviderLimits, Turn
from services.payments.providers.limits.breaker import FAILURES_MOST, PROBE_SECONDS, Breaker
from services.payments.providers.limits.pacer import QUEUE_MOST, SHARES, Endpoint, Pacer, QueueFull


async def _turns(pacer: Pacer, *calls: tuple[str, bool], gone: asyncio.Event) -> list[str]:
    """Let `calls` (payer, whether it is patient) queue while all places are taken; return them in their order."""
    order = list[str]()

    async def call(payer: str, patient: bool) -> None:
        async with pacer.turn(Endpoint.OPEN if patient else Endpoint.CHARGE, payer):
            order.append(payer)

    tasks = [asyncio.create_task(call(*one)) for one in calls]
    await asyncio.sleep(0)
    gone.set()
    await asyncio.gather(*tasks)
    return order


async def _busy(pacer: Pacer) -> asyncio.Event:
    """Take the only place of `pacer` until the event that is returned."""
    gone, taken = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with pacer.turn(Endpoint.CHARGE):
            taken.set()
            await gone.wait()

    pacer.holder = asyncio.create_task(hold())  # type: ignore[attr-defined]  # keeps it alive
    await taken.wait()
    return gone


async def test_a_burst_is_a_tenth_of_a_second() -> None:
    pacer, started, clock = Pacer(calls_per_second=100, concurrency=100), 0, asyncio.get_running_loop().time

    async def call() -> None:
        nonlocal started
        async with pacer.turn(Endpoint.CHARGE):
            started += 1

    began = clock()
    tasks = [asyncio.create_task(call()) for _ in range(30)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert 10 <= started <= 11 + (clock() - began) * 100  # a slow machine takes longer than a turn
    await asyncio.gather(*tasks)


async def test_calls_after_the_burst_keep_the_rate() -> None:
    pacer, clock = Pacer(calls_per_second=100, concurrency=100), asyncio.get_running_loop().time

    async def call() -> None:
        async with pacer.turn(Endpoint.CHARGE):
            pass

    started = clock()
    await asyncio.gather(*(call() for _ in range(30)))
    assert clock() - started >= 0.199  # 10 at once, 20 at 100 a second


async def test_less_than_ten_a_second_still_lets_one_through() -> None:
    async with asyncio.timeout(60), Pacer(calls_per_second=0.5, concurrency=1).turn(Endpoint.CHARGE):
        pass


async def test_a_charge_overtakes_waiting_intents() -> None:
    """Money of a customer at the till goes before secrets for pages that may never be paid."""
    pacer = Pacer(calls_per_second=0, concurrency=1)
    gone = await _busy(pacer)
    intents = [(f"intent {number}", True) for number in range(400)]
    order = await _turns(pacer, *intents, ("charge", False), gone=gone)
    assert order[0] == "charge"
    assert len(order) == 401


async def test_intents_are_not_starved_by_charges() -> None:
    pacer = Pacer(calls_per_second=0, concurrency=1)
    gone = await _busy(pacer)
    charges = [(f"charge {number}", False) for number in range(40)]
    order = await _turns(pacer, *charges, ("intent", True), gone=gone)
    assert order.index("intent") <= 3


async def test_one_payer_with_many_calls_does_not_delay_another() -> None:
    for patient in (False, True):
        pacer = Pacer(calls_per_second=0, concurrency=1)
        gone = await _busy(pacer)
        order = await _turns(pacer, *[("many", patient)] * 400, ("one", patient), gone=gone)
        assert order.index("one") == 1


async def test_calls_at_once_are_bounded() -> None:
    pacer, at_once, most = Pacer(calls_per_second=0, concurrency=3), 0, 0

    async def call() -> None:
        nonlocal at_once, most
        async with pacer.turn(Endpoint.CHARGE):
            at_once, most = at_once + 1, max(most, at_once + 1)
            await asyncio.sleep(0)
            at_once -= 1

    await asyncio.gather(*(call() for _ in range(20)))
    assert most == 3


async def test_a_cancelled_call_gives_its_place_back() -> None:
    """Also if it is cancelled in the moment in which it gets its turn."""
    pacer = Pacer(calls_per_second=0, concurrency=1)

    async def call() -> None:
        async with pacer.turn(Endpoint.CHARGE):
            pass

    gone = await _busy(pacer)
    waiting, next_ = asyncio.create_task(call()), asyncio.create_task(call())
    await asyncio.sleep(0)
    waiting.cancel()
    gone.set()
    await asyncio.sleep(0)
    next_.cancel()
    await asyncio.gather(waiting, next_, return_exceptions=True)
    async with asyncio.timeout(60):
        await call()


async def test_the_hold_that_ends_first_is_charged_first() -> None:
    """Of the first call of each payer. Their other calls come after these, whenever their holds end."""
    pacer, order = Pacer(calls_per_second=0, concurrency=1), list[str]()
    gone = await _busy(pacer)
    moment = datetime(2026, 11, 27, tzinfo=UTC)

    async def call(name: str, payer: str, minutes: int | None) -> None:
        until = None if minutes is None else moment + timedelta(minutes=minutes)
        async with pacer.turn(Endpoint.CHARGE, payer, until=until):
            order.append(name)

    calls = (("never", "a", None), ("late", "b", 9), ("soon", "c", 1), ("second", "c", 0), ("middle", "d", 5))
    tasks = [asyncio.create_task(call(*one)) for one in calls]
    await asyncio.sleep(0)
    gone.set()
    await asyncio.gather(*tasks)
    assert order == ["soon", "middle", "late", "never", "second"]


async def test_an_endpoint_does_not_use_up_the_calls_of_the_others() -> None:
    """Lists and refunds get a quarter each. A charge finds a token however many of them wait."""
    pacer, started = Pacer(calls_per_second=400, concurrency=1000), list[Endpoint]()

    async def call(endpoint: Endpoint) -> None:
        async with pacer.turn(endpoint):
            started.append(endpoint)

    began = asyncio.get_running_loop().time()
    tasks = [asyncio.create_task(call(Endpoint.LIST)) for _ in range(100)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    passed = asyncio.get_running_loop().time() - began
    assert len(started) <= (0.1 + passed) * 400 * SHARES[Endpoint.LIST] + 1
    charge = asyncio.create_task(call(Endpoint.CHARGE))
    await charge
    assert started.count(Endpoint.LIST) < 100
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_full_queue_refuses_at_once() -> None:
    pacer = Pacer(calls_per_second=0, concurrency=1)
    gone = await _busy(pacer)

    async def call(endpoint: Endpoint) -> None:
        async with pacer.turn(endpoint):
            pass

    tasks = [asyncio.create_task(call(Endpoint.OPEN)) for _ in range(QUEUE_MOST)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await call(Endpoint.OPEN)
    charge = asyncio.create_task(call(Endpoint.CHARGE))  # it has a queue of its own
    gone.set()
    await asyncio.gather(charge, *tasks)


async def test_a_provider_that_says_too_many_gets_a_rest() -> None:
    pacer, clock = Pacer(calls_per_second=0, concurrency=10), asyncio.get_running_loop().time
    began = clock()
    pacer.slow_down()
    async with pacer.turn(Endpoint.CHARGE):
        assert clock() - began >= 0.99


class _Provider:
    """Answers, fails, or says that calls are too many, as a test wants."""

    def __init__(self) -> None:
        self.now, self.seen = 0.0, 0
        self.failure: NoAnswer | None = None
        self.limits = ProviderLimits(
            "test", calls_per_second=0, concurrency=10, breaker=Breaker("test", clock=lambda: self.now)
        )

    async def call(self, endpoint: Endpoint = Endpoint.CHARGE) -> str:
        async def send() -> str:
            self.seen += 1
            if self.failure:
                raise self.failure
            return "answer"

        return await self.limits.run(Turn(endpoint), send, repeats=False)

    async def fails(self, *, sent: bool, endpoint: Endpoint = Endpoint.CHARGE) -> None:
        before = self.seen
        with pytest.raises(NoAnswer) as failed:
            await self.call(endpoint)
        assert (self.seen > before) is sent
        assert sent or failed.value.has_ended, "a call that is not sent can take no effect"


async def test_a_silent_provider_is_asked_once_a_second() -> None:
    """Otherwise each charge would wait for its timeout, and all others for its place."""
    provider, recovered = _Provider(), list[bool]()
    provider.limits.breaker.callbacks.append(lambda: recovered.append(True))
    provider.failure = NoAnswer("timeout")
    for _ in range(FAILURES_MOST):
        await provider.fails(sent=True)
    await provider.fails(sent=False)
    provider.now += PROBE_SECONDS
    await provider.fails(sent=True)
    await provider.fails(sent=False)
    provider.failure, provider.now = None, provider.now + PROBE_SECONDS
    assert await provider.call() == "answer"
    assert recovered == [True]
    assert await provider.call() == "answer"


async def test_only_answers_in_a_row_count() -> None:
    provider = _Provider()
    for _ in range(3 * FAILURES_MOST):
        provider.failure = NoAnswer("timeout")
        await provider.fails(sent=True)
        provider.failure = None
        await provider.call()
    assert not provider.limits.breaker.is_open


async def test_lists_neither_open_nor_close_the_circuit() -> None:
    provider = _Provider()
    provider.failure = NoAnswer("timeout")
    for _ in range(2 * FAILURES_MOST):
        await provider.fails(sent=True, endpoint=Endpoint.LIST)
    assert not provider.limits.breaker.is_open
    for _ in range(FAILURES_MOST):
        await provider.fails(sent=True)
    provider.failure = None
    assert await provider.call(Endpoint.LIST) == "answer"
    assert provider.limits.breaker.is_open


async def test_calls_that_wait_while_the_circuit_opens_are_not_sent() -> None:
    provider = _Provider()
    provider.limits.pacer = Pacer(calls_per_second=0, concurrency=1)
    gone = await _busy(provider.limits.pacer)
    waiting = [asyncio.create_task(provider.call()) for _ in range(20)]
    await asyncio.sleep(0)
    for _ in range(FAILURES_MOST):
        provider.limits.breaker.note_failure()
    gone.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(result) for result in results} == {NotSent}
    assert provider.seen == 0


async def test_a_limit_of_the_provider_is_an_answer() -> None:
    provider = _Provider()
    provider.failure = NoAnswer("429", is_limit=True)
    for _ in range(2):
        await provider.fails(sent=True)
    assert not provider.limits.breaker._failures
