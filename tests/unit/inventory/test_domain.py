"""Dealing units out: pure rules."""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from services.inventory.domain import Grant, Hold, Line, allot, demand, over_limit, regrant, rounds

POOLS = [uuid.UUID(int=n) for n in range(1, 4)]
CUSTOMERS = [uuid.UUID(int=n) for n in range(10, 13)]

lines = st.lists(st.sampled_from(POOLS), min_size=1, max_size=3, unique=True).flatmap(
    lambda pools: st.tuples(*[st.builds(Line, st.just(pool), st.none(), st.integers(1, 4)) for pool in pools])
)
holds = st.lists(
    st.builds(Hold, st.uuids(), st.sampled_from(CUSTOMERS), lines, st.integers(1, 600)), max_size=8,
    unique_by=lambda hold: hold.id,
)  # fmt: skip


@given(holds, st.dictionaries(st.sampled_from(POOLS), st.integers(0, 9)))
def test_no_unit_is_dealt_twice_or_lost_and_each_hold_gets_all_or_nothing(
    wished: list[Hold], there: dict[uuid.UUID, int]
) -> None:
    dealt = allot(wished, {pool: Grant(units) for pool, units in there.items()})

    given_out = demand(dealt.held)
    for pool in POOLS:
        assert given_out.get(pool, 0) + dealt.leftover.get(pool, 0) == there.get(pool, 0)
    assert [h.id for h in wished if h.id in {x.id for x in dealt.held}] == [h.id for h in dealt.held]
    assert {h.id for h in dealt.held} | {h.id for h, _ in dealt.short} == {h.id for h in wished}
    for hold, lacking in dealt.short:
        assert lacking in hold.lines
        # Even at the end there was too little for it: nobody was sent away for nothing.
        assert any(dealt.leftover.get(line.pool, 0) < line.quantity for line in hold.lines)


@given(holds)
def test_rounds_keep_every_hold_in_order_and_no_customer_twice(wished: list[Hold]) -> None:
    split = rounds(wished)
    assert sorted(h.id for round_ in split for h in round_) == sorted(h.id for h in wished)
    for round_ in split:
        assert len({h.customer_id for h in round_}) == len(round_)
    for customer in CUSTOMERS:
        mine = [h.id for h in wished if h.customer_id == customer]
        assert [h.id for round_ in split for h in round_ if h.customer_id == customer] == mine


def test_a_hold_lasts_no_longer_than_the_shortest_of_its_sales() -> None:
    hold = Hold(uuid.uuid4(), CUSTOMERS[0], (Line(POOLS[0], POOLS[0], 1), Line(POOLS[1], None, 1)), 600)
    dealt = allot([hold], {POOLS[0]: Grant(1, hold_seconds=30), POOLS[1]: Grant(1)})
    assert dealt.held[0].seconds == 30


@given(holds, st.dictionaries(st.sampled_from(POOLS), st.integers(0, 9)), st.data())
def test_what_comes_back_dealt_once_more_leaves_nobody_who_fits(
    wished: list[Hold], there: dict[uuid.UUID, int], data: st.DataObject
) -> None:
    grants = {pool: Grant(units, hold_seconds=30) for pool, units in there.items()}
    first = allot(wished, grants)
    returned = [hold for hold in first.held if data.draw(st.booleans())]
    back = {pool: first.leftover.get(pool, 0) + demand(returned).get(pool, 0) for pool in grants}

    again = allot([hold for hold, _ in first.short], regrant(grants, back))

    given_out = demand([*(hold for hold in first.held if hold not in returned), *again.held])
    for pool, units in there.items():
        assert given_out.get(pool, 0) + again.leftover.get(pool, 0) == units
    for hold, _ in again.short:
        assert any(again.leftover.get(line.pool, 0) < line.quantity for line in hold.lines)
    assert all(hold.seconds <= 30 for hold in again.held)


def test_the_line_over_the_limit_is_the_one_that_is_named() -> None:
    customer, (loose, tight, free) = CUSTOMERS[0], POOLS
    hold = Hold(uuid.uuid4(), customer, tuple(Line(pool, pool, 2) for pool in (loose, tight, free)), 600)
    grants = {loose: Grant(9, per_customer_limit=5), tight: Grant(9, per_customer_limit=3), free: Grant(9)}

    assert over_limit(hold, grants, {}) is None
    assert over_limit(hold, grants, {(tight, customer): 1, (free, customer): 99, (loose, CUSTOMERS[1]): 9}) is None
    assert over_limit(hold, grants, {(tight, customer): 2}) == hold.lines[1]
    assert over_limit(hold, grants, {(tight, customer): 2, (loose, customer): 4}) == hold.lines[0]
    assert over_limit(hold, {}, {(tight, customer): 9}) is None, "a sale that gave nothing has no limit to name"
