"""The checks of a rush can fail: each wrong record and each wrong answer is reported."""

from dataclasses import replace

import pytest

from tests.bench.load.generator import LOST, SILENT, UNSENT
from tests.bench.measure.sale_records import HeldUnits, SaleRecords, problems
from tests.bench.measure.statements import Reading
from tests.bench.rows.rush import STATEMENTS_EXTRA, RushPlan, answer_problems, statement_verdicts

PLAN = RushPlan(units=3, customers=5, attempts_each=4, limit=1)
HELD = {"r1": HeldUnits("ann", "HELD", 1), "r2": HeldUnits("bob", "HELD", 1), "r3": HeldUnits("cid", "HELD", 1)}
ORDERS = {"r1": "ann", "r2": "bob", "r3": "cid"}
RIGHT = SaleRecords(allocation=3, held=3, sold=0, returned=0, reservations=HELD, orders=ORDERS, miscounted=0)
ANSWERS = {"200": 3, "400 SOLD_OUT": 15, "400 CUSTOMER_LIMIT": 2}
IDLE = Reading(seconds=10, for_calls=0, in_background=100, transactions=30)


def problems_of(records: SaleRecords) -> list[str]:
    return problems(records, allocation=PLAN.units, wanted=PLAN.wanted, limit=PLAN.limit)


def test_correct_records_and_answers_have_no_problems() -> None:
    assert problems_of(RIGHT) == []
    assert answer_problems(PLAN, ANSWERS) == []


def test_units_that_were_paid_during_the_rush_are_no_problem() -> None:
    paid = HELD | {"r1": HeldUnits("ann", "CONFIRMED", 1)}
    assert problems_of(replace(RIGHT, held=2, sold=1, reservations=paid)) == []


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        pytest.param(
            replace(
                RIGHT, held=4, reservations=HELD | {"r4": HeldUnits("dan", "HELD", 1)}, orders=ORDERS | {"r4": "dan"}
            ),
            "reservations take 4 units, not 3",
            id="oversold",
        ),
        pytest.param(
            replace(
                RIGHT, held=2, reservations={"r1": HELD["r1"], "r2": HELD["r2"]}, orders={"r1": "ann", "r2": "bob"}
            ),
            "reservations take 2 units, not 3",
            id="undersold",
        ),
        pytest.param(
            replace(RIGHT, held=2), "the sale counts 2 held and 0 sold, reservations 3 and 0", id="counter too low"
        ),
        pytest.param(
            replace(RIGHT, sold=1), "the sale counts 3 held and 1 sold, reservations 3 and 0", id="sold without a row"
        ),
        pytest.param(replace(RIGHT, returned=1), "3 units are allocated, 1 went back to stock", id="returned"),
        pytest.param(
            replace(RIGHT, reservations=HELD | {"r2": HeldUnits("ann", "HELD", 1)}, orders=ORDERS | {"r2": "ann"}),
            "1 customers have more than 1",
            id="over the limit",
        ),
        pytest.param(replace(RIGHT, miscounted=2), "2 customers are miscounted", id="limit miscounted"),
        pytest.param(
            replace(RIGHT, orders={"r1": "ann", "r2": "bob"}),
            "1 reservations have no order of the same customer",
            id="order lost",
        ),
        pytest.param(
            replace(RIGHT, orders=ORDERS | {"o4": "dan"}),
            "1 orders have no reservation of the same customer",
            id="order without stock",
        ),
    ],
)
def test_wrong_records_are_reported(records: SaleRecords, problem: str) -> None:
    assert problems_of(records) == [problem]


def test_an_order_of_another_customers_units_is_reported() -> None:
    assert problems_of(replace(RIGHT, orders=ORDERS | {"r1": "bob"})) == [
        "1 reservations have no order of the same customer",
        "1 orders have no reservation of the same customer",
    ]


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (LOST, "1 × connection lost"),
        (SILENT, "1 × no answer"),
        (UNSENT, "1 × never sent"),
        ("500", "1 × 500"),
        ("503 UNAVAILABLE", "1 × 503 UNAVAILABLE"),
        ("429 RATE_LIMITED", "1 × 429 RATE_LIMITED, which a rush must not answer"),
        ("401 UNAUTHENTICATED", "1 × 401 UNAUTHENTICATED, which a rush must not answer"),
    ],
)
def test_wrong_answers_are_reported(kind: str, problem: str) -> None:
    assert answer_problems(PLAN, ANSWERS | {"400 SOLD_OUT": 14, kind: 1}) == [problem]


def test_a_missing_answer_is_reported() -> None:
    assert answer_problems(PLAN, ANSWERS | {"400 SOLD_OUT": 14}) == ["19 of 20 attempts are accounted for"]


@pytest.mark.parametrize("placed", [2, 4])
def test_the_number_of_placed_orders_is_checked(placed: int) -> None:
    answers = ANSWERS | {"200": placed, "400 SOLD_OUT": 18 - placed}
    assert answer_problems(PLAN, answers) == [f"{placed} attempts were answered with an order, not 3"]


@pytest.mark.parametrize(
    ("more", "background", "met"),
    [(0, 200, [True, True]), (1, 200, [False, True]), (0, 240, [True, True]), (0, 241, [True, False])],
)
def test_statements_are_bounded_by_units_and_idle_background_work(more: int, background: int, met: list[bool]) -> None:
    sent = 2 * PLAN.units + STATEMENTS_EXTRA + more
    spent = Reading(seconds=20, for_calls=sent, in_background=background, transactions=90)
    assert [verdict.met for verdict in statement_verdicts(PLAN, spent, IDLE)] == met


def test_wanted_units_respect_the_customer_limit() -> None:
    assert RushPlan(units=1_000, customers=300, limit=2).wanted == 600
    assert RushPlan(units=1_000, customers=300, limit=0).wanted == 1_000
