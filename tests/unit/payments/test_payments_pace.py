"""Turns of provider calls: so many at once and a second, charges before intents, payers in turn."""

import asyncio

from services.payments.providers.pacer import Pacer


async def _turns(pacer: Pacer, *calls: tuple[str, bool], gone: asyncio.Event) -> list[str]:
    """Let `calls` (payer, whether it is patient) queue while all places are taken; return them in their order."""
    order = list[str]()

    async def call(payer: str, patient: bool) -> None:
        async with pacer.turn(payer, patient=patient):
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
        async with pacer.turn():
            taken.set()
            await gone.wait()

    pacer.holder = asyncio.create_task(hold())  # type: ignore[attr-defined]  # keeps it alive
    await taken.wait()
    return gone


async def test_a_burst_is_a_tenth_of_a_second() -> None:
    pacer, started, clock = Pacer(calls_per_second=100, concurrency=100), 0, asyncio.get_running_loop().time

    async def call() -> None:
        nonlocal started
        async with pacer.turn():
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
        async with pacer.turn():
            pass

    started = clock()
    await asyncio.gather(*(call() for _ in range(30)))
    assert clock() - started >= 0.199  # 10 at once, 20 at 100 a second


async def test_less_than_ten_a_second_still_lets_one_through() -> None:
    async with asyncio.timeout(5), Pacer(calls_per_second=0.5, concurrency=1).turn():
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
        async with pacer.turn():
            at_once, most = at_once + 1, max(most, at_once + 1)
            await asyncio.sleep(0)
            at_once -= 1

    await asyncio.gather(*(call() for _ in range(20)))
    assert most == 3


async def test_a_cancelled_call_gives_its_place_back() -> None:
    """Also if it is cancelled in the moment in which it gets its turn."""
    pacer = Pacer(calls_per_second=0, concurrency=1)

    async def call() -> None:
        async with pacer.turn():
            pass

    gone = await _busy(pacer)
    waiting, next_ = asyncio.create_task(call()), asyncio.create_task(call())
    await asyncio.sleep(0)
    waiting.cancel()
    gone.set()
    await asyncio.sleep(0)
    next_.cancel()
    await asyncio.gather(waiting, next_, return_exceptions=True)
    async with asyncio.timeout(5):
        await call()
