"""The soak judges whether memory is flat."""

import pytest

from tests.bench.soak import GROWTH_MAX, judge


@pytest.mark.parametrize("growth", [0.0, GROWTH_MAX - 0.001, GROWTH_MAX + 0.001])
def test_memory_may_grow_by_3_percent_in_the_second_half(growth: float) -> None:
    samples = [{"orders": 60_000_000 + n * 10_000_000, "sandbox": n} for n in range(1, 6)]  # it warms up
    jumps = (3_000_000, -3_000_000, 0, 0, -3_000_000, 3_000_000)  # as memory does between two collections
    for n, jump in enumerate(jumps):
        samples.append({"orders": round(110_000_000 * (1 + growth * n / 5)) + jump, "sandbox": 100 + 9 * n})
    orders, sandbox = judge(samples)
    assert orders.met is (growth <= GROWTH_MAX)
    assert (sandbox.met, sandbox.bar) == (True, "")
