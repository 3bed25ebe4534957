"""The check of a rush must be able to fail: each wrong book and each wrong answer is complained about."""

from dataclasses import replace

import pytest

from tests.bench.books import Books, Taken, problems
from tests.bench.load import LOST, SILENT, UNSENT
from tests.bench.rush import STATEMENTS_BESIDE, Plan, answer_problems, statement_verdicts
from tests.bench.statements import Reading

PLAN = Plan(units=3, customers=5, attempts_each=4, limit=1)
HELD = {"r1": Taken("ann", "HELD", 1), "r2": Taken("bob", "HELD", 1), "r3": Taken("cid", "HELD", 1)}
ORDERS = {"r1": "ann", "r2": "bob", "r3": "cid"}
RIGHT = Books(allocation=3, held=3, sold=0, returned=0, reservations=HELD, orders=ORDERS, miscounted=0)
ANSWERS = {"200": 3, "400 SOLD_OUT": 15, "400 CUSTOMER_LIMIT": 2}
IDLE = Reading(seconds=10, for_calls=0, in_background=100, transactions=30)


def complaints(books: Books) -> list[str]:
    return problems(books, allocation=PLAN.units, wanted=PLAN.wanted, limit=PLAN.limit)


def test_right_books_and_answers_are_not_complained_about() -> None:
    assert complaints(RIGHT) == []
    assert answer_problems(PLAN, ANSWERS) == []


def test_some_units_may_have_been_paid_for_meanwhile() -> None:
    paid = HELD | {"r1": Taken("ann", "CONFIRMED", 1)}
    assert complaints(replace(RIGHT, held=2, sold=1, reservations=paid)) == []


@pytest.mark.parametrize(
    ("books", "complaint"),
    [
        pytest.param(
            replace(RIGHT, held=4, reservations=HELD | {"r4": Taken("dan", "HELD", 1)}, orders=ORDERS | {"r4": "dan"}),
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
            replace(RIGHT, reservations=HELD | {"r2": Taken("ann", "HELD", 1)}, orders=ORDERS | {"r2": "ann"}),
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
def test_wrong_books_are_complained_about(books: Books, complaint: str) -> None:
    assert complaints(books) == [complaint]


def test_an_order_of_somebody_elses_units_is_complained_about() -> None:
    assert complaints(replace(RIGHT, orders=ORDERS | {"r1": "bob"})) == [
        "1 reservations have no order of the same customer",
        "1 orders have no reservation of the same customer",
    ]


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (LOST, "1 × connection lost"),
        (SILENT, "1 × no answer"),
        (UNSENT, "1 × never sent"),
        ("500", "1 × 500"),
        ("503 UNAVAILABLE", "1 × 503 UNAVAILABLE"),
        ("429 RATE_LIMITED", "1 × 429 RATE_LIMITED, which is no answer to give in a rush"),
        ("401 UNAUTHENTICATED", "1 × 401 UNAUTHENTICATED, which is no answer to give in a rush"),
    ],
)
def test_wrong_answers_are_complained_about(kind: str, complaint: str) -> None:
    assert answer_problems(PLAN, ANSWERS | {"400 SOLD_OUT": 14, kind: 1}) == [complaint]


def test_an_attempt_without_any_answer_is_missed() -> None:
    assert answer_problems(PLAN, ANSWERS | {"400 SOLD_OUT": 14}) == ["19 of 20 attempts are accounted for"]


@pytest.mark.parametrize("placed", [2, 4])
def test_who_is_told_that_they_have_a_unit_is_counted(placed: int) -> None:
    answers = ANSWERS | {"200": placed, "400 SOLD_OUT": 18 - placed}
    assert answer_problems(PLAN, answers) == [f"{placed} were told that they have a unit, not 3"]


@pytest.mark.parametrize(
    ("more", "background", "met"),
    [(0, 200, [True, True]), (1, 200, [False, True]), (0, 240, [True, True]), (0, 241, [True, False])],
)
def test_statements_are_held_to_two_a_unit_beside_the_usual_background_work(
    more: int, background: int, met: list[bool]
) -> None:
    sent = 2 * PLAN.units + STATEMENTS_BESIDE + more
    spent = Reading(seconds=20, for_calls=sent, in_background=background, transactions=90)
    assert [verdict.met for verdict in statement_verdicts(PLAN, spent, IDLE)] == met


def test_no_more_is_wanted_than_customers_may_have() -> None:
    assert Plan(units=1_000, customers=300, limit=2).wanted == 600
    assert Plan(units=1_000, customers=300, limit=0).wanted == 1_000
