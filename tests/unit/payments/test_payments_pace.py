"""The limit of provider calls: so many a second, a tenth of a second's worth at once."""

import asyncio

from services.payments.providers.stripe import pace


async def test_a_burst_is_a_tenth_of_a_second() -> None:
    limiter = pace(100)
    for _ in range(10):
        assert limiter.has_capacity()
        await limiter.acquire()
    assert not limiter.has_capacity()


async def test_calls_after_the_burst_keep_the_rate() -> None:
    limiter, clock = pace(100), asyncio.get_running_loop().time
    started = clock()
    await asyncio.gather(*(limiter.acquire() for _ in range(30)))
    assert clock() - started >= 0.199  # 10 at once, 20 at 100 a second


async def test_less_than_ten_a_second_still_lets_one_through() -> None:
    limiter = pace(0.5)
    await limiter.acquire()
    assert not limiter.has_capacity()
