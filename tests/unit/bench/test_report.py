"""What the report says of numbers, and of the bars that they are held to."""

from dataclasses import replace

import pytest

from tests.bench.load import Result
from tests.bench.measure import Measured
from tests.bench.report import Verdict, against_e, beside, cheaper, columns, middle, shared, side_by_side, table

E = Measured("E", 256, Result(1.0, 0.1, {"200": 4_000}), "200", {"gateway": 100.0, "bare": 300.0, "load": 30.0})


def row(right: int = 2_000, *, connections: int = 256, orders_us: float = 700.0, **others: int) -> Measured:
    cpu = {"orders": orders_us, "gateway": 100.0, "identity": 0.2, "load": 40.0}
    return Measured("order placed", connections, Result(1.0, 0.1, {"200": right, **others}), "200", cpu)


@pytest.mark.parametrize(("right", "met"), [(2_000, True), (1_999, False)])
def test_a_row_is_held_to_its_share_of_e(right: int, met: bool) -> None:
    verdict = against_e(row(right), E, 0.5, {})
    assert (verdict.met, verdict.bar) == (met, "at least 0.50 E")
    assert "2.00 × its CPU" in verdict.more


def test_a_row_without_a_bar_is_only_told() -> None:
    verdict = against_e(row(10), E, None, {})
    assert (verdict.met, verdict.bar, verdict.found) == (True, "", "0.00 E")


def test_an_e_too_short_to_cost_anything_is_no_error() -> None:
    verdict = against_e(row(), replace(E, cpu_us={"gateway": 0.0, "bare": 0.0, "load": 30.0}), 0.5, {})
    assert verdict.more == "2,000/s of 4,000/s"


def test_wrong_answers_do_not_make_a_row_fast() -> None:
    spoilt = row(1_000, lost=3_000)
    assert spoilt.per_second == 1_000
    verdict = against_e(spoilt, E, None, spoilt.others)
    assert not verdict.met
    assert "but also 3,000 × lost" in verdict.more


@pytest.mark.parametrize(("many_us", "met"), [(600.0, True), (700.0, False)])
def test_cpu_per_unit_must_fall(many_us: float, met: bool) -> None:
    assert cheaper(row(connections=16), row(orders_us=many_us)).met is met


def test_cpu_stands_side_by_side_without_the_load_generator() -> None:
    lines = [line.split() for line in side_by_side(row(connections=16), row(orders_us=500.0))]
    assert lines[1:] == [["orders", "700", "500"], ["gateway", "100", "100"], ["all", "800", "600"]]


@pytest.mark.parametrize(("theirs", "met"), [(400, True), (401, False)])
def test_a_rival_is_held_to_so_many_times_its_rate(theirs: int, met: bool) -> None:
    verdict = beside(row(2_000), row(theirs), 5)
    assert (verdict.met, verdict.bar) == (met, "at least 5 ×")
    assert f"2,000/s of {theirs}/s" in verdict.more


@pytest.mark.parametrize(("watched", "met"), [(1_800, True), (1_799, False)])
def test_those_who_watch_may_cost_a_tenth(watched: int, met: bool) -> None:
    verdict = shared(row(watched), row(2_000), 0.9, "1,000 streams")
    assert (verdict.met, verdict.found, verdict.bar) == (met, "90%", "at least 90%")


def test_the_pair_in_the_middle_counts() -> None:
    pairs = [(row(900), E), (row(2_000), E), (row(1_000), row(100))]
    assert middle(pairs) == (row(2_000), E)


def test_what_others_do_not_have_costs_them_nothing() -> None:
    theirs = replace(row(), cpu_us={"its processes": 9_000.0, "load": 0.0})
    lines = [line.split() for line in columns("CPU", {"ours": row(), "theirs": theirs})]
    assert lines[1:] == [
        ["orders", "700", "0"], ["gateway", "100", "0"], ["its", "processes", "0", "9,000"], ["all", "800", "9,000"],
    ]  # fmt: skip


def test_a_missed_bar_is_seen_at_once() -> None:
    verdicts = [Verdict("a", "1", "at least 2", False), Verdict("b", "3", "at least 2"), Verdict("c", "4")]
    assert [line[:3].strip() for line in table(verdicts)] == ["NO", "yes", ""]
