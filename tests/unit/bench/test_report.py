"""The report compares each number with its bar."""

from dataclasses import replace

import pytest

from tests.bench.load.generator import Result
from tests.bench.measure.jobs import Measured
from tests.bench.report import (
    Verdict,
    against_e,
    against_rival,
    against_unwatched,
    bounded,
    cheaper,
    columns,
    median_pair,
    side_by_side,
    table,
    without_gate,
)

E = Measured("E", 256, Result(1.0, 0.1, {"200": 4_000}), "200", {"gateway": 100.0, "empty RPC": 300.0, "load": 30.0})


def row(placed: int = 2_000, *, connections: int = 256, orders_us: float = 700.0, **others: int) -> Measured:
    cpu = {"orders": orders_us, "gateway": 100.0, "identity": 0.2, "load": 40.0}
    return Measured("order placed", connections, Result(1.0, 0.1, {"200": placed, **others}), "200", cpu)


@pytest.mark.parametrize(("placed", "met"), [(2_000, True), (1_999, False)])
def test_a_row_must_reach_its_share_of_e(placed: int, met: bool) -> None:
    verdict = against_e(row(placed), E, 0.5, {})
    assert (verdict.met, verdict.bar) == (met, "at least 0.50 E")
    assert "2.00 × its CPU" in verdict.more


def test_a_row_without_a_bar_never_fails() -> None:
    verdict = against_e(row(10), E, None, {})
    assert (verdict.met, verdict.bar, verdict.found) == (True, "", "0.00 E")


def test_an_e_without_measurable_cpu_is_no_error() -> None:
    verdict = against_e(row(), replace(E, cpu_us={"gateway": 0.0, "empty RPC": 0.0, "load": 30.0}), 0.5, {})
    assert verdict.more == "2,000/s of 4,000/s"


def test_unexpected_answers_fail_a_row() -> None:
    failed = row(1_000, lost=3_000)
    assert failed.per_second == 1_000
    verdict = against_e(failed, E, None, failed.others)
    assert not verdict.met
    assert "but also 3,000 × lost" in verdict.more


@pytest.mark.parametrize(("many_us", "met"), [(600.0, True), (700.0, False)])
def test_cpu_per_unit_must_fall(many_us: float, met: bool) -> None:
    assert cheaper(row(connections=16), row(orders_us=many_us)).met is met


def test_the_cpu_table_leaves_the_load_generator_out() -> None:
    lines = [line.split() for line in side_by_side(row(connections=16), row(orders_us=500.0))]
    assert lines[1:] == [["orders", "700", "500"], ["gateway", "100", "100"], ["all", "800", "600"]]


@pytest.mark.parametrize(("theirs", "met"), [(400, True), (401, False)])
def test_a_row_must_reach_a_multiple_of_a_rivals_rate(theirs: int, met: bool) -> None:
    verdict = against_rival(row(2_000), row(theirs), 5)
    assert (verdict.met, verdict.bar) == (met, "at least 5 ×")
    assert f"2,000/s of {theirs}/s" in verdict.more


@pytest.mark.parametrize(("watched", "met"), [(1_800, True), (1_799, False)])
def test_watchers_may_cost_a_tenth_of_the_rate(watched: int, met: bool) -> None:
    verdict = against_unwatched(row(watched), row(2_000), 0.9, "1,000 streams")
    assert (verdict.met, verdict.found, verdict.bar) == (met, "90%", "at least 90%")


def test_a_row_with_the_gate_off_names_the_row_with_it() -> None:
    verdict = without_gate(row(1_800, orders_us=750.0), E, (row(2_000), E), {})
    assert (verdict.found, verdict.bar, verdict.met) == ("0.45 E", "", True)
    assert verdict.more.startswith("with the gate 0.50 E; 850 µs of CPU, with the gate 800;")


@pytest.mark.parametrize(
    ("answers", "met"),
    [
        ({"429 RATE_LIMITED": 900, "200": 100}, True),
        ({"429 RATE_LIMITED": 900, "200": 99, "503 UNAVAILABLE": 1}, False),
        ({"200": 1_000}, False),
        ({"429 RATE_LIMITED": 1_000}, False),
    ],
    ids=["bounded", "unavailable", "unbounded", "nothing placed"],
)
def test_a_full_backlog_must_place_and_refuse_and_nothing_else(answers: dict[str, int], met: bool) -> None:
    full = Measured("backlog full", 256, Result(1.0, 0.1, answers), "", {"orders": 100.0})
    assert bounded(full).met is met


def test_the_median_pair_counts() -> None:
    pairs = [(row(900), E), (row(2_000), E), (row(1_000), row(100))]
    assert median_pair(pairs) == (row(2_000), E)


def test_a_part_that_a_row_lacks_costs_zero() -> None:
    theirs = replace(row(), cpu_us={"its processes": 9_000.0, "load": 0.0})
    lines = [line.split() for line in columns("CPU", {"ours": row(), "theirs": theirs})]
    assert lines[1:] == [
        ["orders", "700", "0"], ["gateway", "100", "0"], ["its", "processes", "0", "9,000"], ["all", "800", "9,000"],
    ]  # fmt: skip


def test_the_first_column_shows_missed_bars() -> None:
    verdicts = [Verdict("a", "1", "at least 2", False), Verdict("b", "3", "at least 2"), Verdict("c", "4")]
    assert [line[:3].strip() for line in table(verdicts)] == ["NO", "yes", ""]
