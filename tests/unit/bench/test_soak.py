"""When memory counts as flat."""

import pytest

from tests.bench.soak import GROWTH_MOST, judge


@pytest.mark.parametrize("growth", [0.0, GROWTH_MOST - 0.001, GROWTH_MOST + 0.001])
def test_memory_is_flat_when_it_hardly_grows_in_the_second_half(growth: float) -> None:
    samples = [{"orders": 60_000_000 + n * 10_000_000, "sandbox": n} for n in range(1, 6)]  # it warms up
    jumps = (3_000_000, -3_000_000, 0, 0, -3_000_000, 3_000_000)  # as memory does between two collections
    for n, jump in enumerate(jumps):
        samples.append({"orders": round(110_000_000 * (1 + growth * n / 5)) + jump, "sandbox": 100 + 9 * n})
    orders, sandbox = judge(samples)
    assert orders.met is (growth <= GROWTH_MOST)
    assert (sandbox.met, sandbox.bar) == (True, "")
