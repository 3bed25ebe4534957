"""The demo's plan of attempts, its options, its counters and its report."""

import random
from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from rich.console import Console

from deploy.audit import Report as Audit
from deploy.audit.books import BALANCE, Books
from deploy.audit.findings import Finding
from deploy.audit.reading.rows import Sale, Stock
from deploy.demo import report, screen
from deploy.demo.options import Options, parse
from deploy.demo.report import Outcome
from deploy.demo.rush import BAD_CARD, cards, plan
from deploy.demo.tally import SaleNow, Tally, percentile


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([], 99, 0.0),
        ([7.0], 1, 7.0),
        ([1.0, 2.0, 3.0, 4.0], 50, 2.0),
        ([1.0, 2.0, 3.0, 4.0], 99, 4.0),
        ([float(n) for n in range(1, 101)], 99, 99.0),
        ([float(n) for n in range(1, 101)], 100, 100.0),
    ],
)
def test_percentile(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


@pytest.mark.parametrize(("percent", "declined"), [(0, 0), (10, 100), (33.3, 333), (100, 1000)])
def test_the_requested_share_of_cards_is_declined(percent: float, declined: int) -> None:
    drawn = Counter(islice(cards(percent, random.Random(3)), 1000))
    assert abs(drawn[BAD_CARD] - declined) <= 1


def test_a_seed_fixes_the_plan_and_every_buyer_has_a_turn() -> None:
    options = Options(buyers=50, attempts=300, units=5)
    assert plan(options) == plan(options) != plan(replace(options, seed=2))
    turns = Counter(attempt.buyer for attempt in plan(options))
    assert turns == dict.fromkeys(range(50), 6)


def test_greedy_customers_come_first() -> None:
    first = plan(Options())[:50]
    assert len({attempt.buyer for attempt in first}) == 5


def test_fewer_attempts_than_buyers_are_allowed() -> None:
    assert len(plan(Options(buyers=500, attempts=3))) == 3


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--buyers", "0"], "must be 1 to 100,000"),
        (["--attempts", "many"], "'many' is not a whole number"),
        (["--units", "-1"], "must be 1 to 1,000,000"),
        (["--connections", "99999"], "must be 1 to 4,096"),
        (["--decline-percent", "101"], "must be 0 to 100"),
        (["--decline-percent", "few"], "'few' is not a number"),
        (["--json", "/no/such/folder/file"], "no such folder: /no/such/folder"),
        (["--unknown"], "unrecognized arguments"),
    ],
)
def test_invalid_options_are_refused_with_a_reason(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(arguments)
    assert exit_.value.code == 2
    assert reason in capsys.readouterr().err


def test_options_have_defaults_and_accept_separators() -> None:
    assert parse([]) == Options()
    assert parse(["--attempts", "1_000", "--decline-percent", "25%"]) == Options(attempts=1000, decline_percent=25)


def outcome(**changes: Any) -> Outcome:
    """A demo without a problem: 3 units, two sold after one decline, one left."""
    sale = Sale(id="sale", product_id="shoe", allocation=3, held=0, sold=2, returned=0)
    stock = Stock(product_id="shoe", on_hand=0, held=0, moved={"ADJUSTED": 3, "ALLOCATED": -3})
    books = Books(captured=Counter(USD=3998), ordered=Counter(USD=3998), states=Counter(PAID=2, FAILED=1), confirmed=2)
    audit = Audit(books=books, sales=[sale], stocks=[stock])
    audit.units.add(stock, [sale])
    tally = Tally(placed=3, refused=Counter(CUSTOMER_LIMIT=2), paid=Counter(ann=2), ended=Counter(CARD_DECLINED=1))
    tally.latencies.extend([0.01, 0.02, 0.03, 0.04, 0.05])
    tally.order_latencies.extend([0.01, 0.02, 0.03])
    tally.rush_seconds = 0.5
    known: dict[str, Any] = {
        "options": Options(buyers=5, attempts=5, units=3),
        "tally": tally,
        "sale": {"remaining": 1, "held": 0, "sold": 2},
        "stock": {"onHand": 0},
        "own": audit,
        "all": audit,
    }
    return Outcome(**known | changes)


def test_a_report_ends_with_its_verdict() -> None:
    shown = report.lines(outcome())
    assert shown[-1] == "IT ADDS UP"
    assert [line for line in shown if line[:1].isalpha()] == [
        "Sold",
        "Refused",
        "Declined",
        "Speed",
        "Does it add up?",
        "IT ADDS UP",
    ]
    assert max(map(len, shown)) <= 80
    assert report.as_json(outcome())["addsUp"] is True


BAD_AUDIT = Audit()
BAD_AUDIT.findings.add([Finding(BALANCE, ("o",), "order o: it is PAID, but has no payment")])


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"stock": {"onHand": 1}}, ["units"]),
        ({"sale": {"remaining": 0, "held": 0, "sold": 3}}, ["money", "orders", "answers"]),
        ({"sale": {"remaining": 0, "held": 0, "sold": 2}}, ["units"]),
        ({"tally": Tally(paid=Counter(ann=3))}, ["answers", "limit"]),
        ({"tally": Tally(paid=Counter(ann=1))}, ["answers"]),
        ({"all": BAD_AUDIT}, ["all data"]),
    ],
)
def test_the_verdict_names_broken_checks(changes: dict[str, Any], broken: list[str]) -> None:
    shown = report.lines(outcome(**changes))
    assert shown[-1] == f"IT DOES NOT ADD UP: {', '.join(broken)}"
    assert sum(line.startswith("  ✗") for line in shown) == len(broken)


def test_a_broken_check_shows_the_findings_of_the_audit() -> None:
    assert "      order o: it is PAID, but has no payment" in report.lines(outcome(all=BAD_AUDIT))


def test_an_attempt_without_an_answer_may_have_bought() -> None:
    tally = Tally(paid=Counter(ann=1), refused=Counter(NO_ANSWER=1), unanswered=1)
    assert not outcome(tally=tally).broken


@pytest.mark.parametrize("watched", [False, True])
def test_progress_fits_into_80_columns(watched: bool) -> None:
    tally = Tally(sale=SaleNow("LIVE", 1000, 1000, 1000, int(watched)), refused=Counter(SOLD_OUT=10_000))
    tally.begin("second chance", 10_000, "attempts")
    tally.done = 9_999
    tally.latencies.extend([0.123] * 10)
    console = Console(width=80, record=True, force_terminal=True, file=None)
    with console.capture() as shown:
        console.print(screen.panel(tally))
    assert "second chance" in shown.get()
    assert all(word in shown.get() for word in ("sale", "held", "declined", "p99")) == watched
    tally.phase = "rush"
    assert len(screen.line(tally)) <= 100
