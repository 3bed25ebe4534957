"""Dealing units out: pure rules."""

import uuid
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.inventory.domain import Grant, Hold, Line, Pool, allot, units_by_pool

PRODUCTS = [uuid.UUID(int=n) for n in range(1, 4)]
SALES = {product: uuid.UUID(int=product.int + 100) for product in PRODUCTS}
POOLS: list[Pool] = [*((product, None) for product in PRODUCTS), *SALES.items()]
CUSTOMERS = [uuid.UUID(int=n) for n in range(10, 13)]

lines = st.lists(st.sampled_from(PRODUCTS), min_size=1, max_size=3, unique=True).flatmap(
    lambda products: st.tuples(
        *[st.builds(Line, st.just(p), st.sampled_from([None, SALES[p]]), st.integers(1, 4)) for p in products]
    )
)
holds = st.lists(
    st.builds(Hold, st.uuids(), st.sampled_from(CUSTOMERS), lines, st.integers(1, 600)), max_size=8,
    unique_by=lambda hold: hold.id,
)  # fmt: skip


counts = st.dictionaries(
    st.tuples(st.sampled_from(list(SALES.values())), st.sampled_from(CUSTOMERS)), st.integers(0, 4)
)


@given(holds, st.dictionaries(st.sampled_from(POOLS), st.integers(0, 9)), st.integers(0, 4), counts, st.data())
def test_no_unit_is_dealt_twice_or_lost_and_nobody_goes_away_for_nothing(
    wished: list[Hold],
    there: dict[Pool, int],
    limit: int,
    counted: dict[tuple[uuid.UUID, uuid.UUID], int],
    data: st.DataObject,
) -> None:
    grants = {pool: Grant(units, hold_seconds=30, per_customer_limit=limit) for pool, units in there.items()}
    known = {hold.id for hold in wished if data.draw(st.booleans())}

    dealt = allot(wished, grants, counted=counted, known=known)

    given_out, had = units_by_pool(line for hold in dealt.held for line in hold.lines), Counter(counted)
    for pool in POOLS:
        assert given_out.get(pool, 0) + dealt.leftover.get(pool, 0) == there.get(pool, 0)
    got = {hold.id for hold in dealt.held}
    assert [h.id for h in wished if h.id in got] == [h.id for h in dealt.held], "each in turn"
    for hold in dealt.held:
        assert hold.seconds <= 30
        had.update({(line.sale_id, hold.customer_id): line.quantity for line in hold.lines if line.sale_id})
    if limit:
        assert all(had[key] <= max(limit, counted.get(key, 0)) for key in had)
    refused = [*dealt.short, *dealt.over]
    assert sorted([*got, *(hold.id for hold, _ in refused)]) == sorted({hold.id for hold in wished} - known)
    for hold, lacking in dealt.short:
        assert lacking in hold.lines
        # Even at the end there was too little for it.
        assert any(dealt.leftover.get(line.pool, 0) < line.quantity for line in hold.lines)
    for hold, above in dealt.over:
        assert above in hold.lines
        assert limit < had[above.sale_id, hold.customer_id] + above.quantity
        # There was enough for it when its turn came.
        assert all(line.pool in there for line in hold.lines)


def test_an_id_that_stands_twice_in_a_batch_takes_once() -> None:
    hold = Hold(uuid.uuid4(), CUSTOMERS[0], (Line(*POOLS[0], 2),), 600)
    dealt = allot([hold, hold], {POOLS[0]: Grant(4)}, counted={}, known=())
    assert (len(dealt.held), dealt.leftover) == (1, {POOLS[0]: 2})


def test_a_hold_lasts_no_longer_than_the_shortest_of_its_sales() -> None:
    hold = Hold(uuid.uuid4(), CUSTOMERS[0], (Line(*POOLS[3], 1), Line(*POOLS[0], 1)), 600)
    dealt = allot([hold], {POOLS[3]: Grant(1, hold_seconds=30), POOLS[0]: Grant(1)}, counted={}, known=())
    assert dealt.held[0].seconds == 30


def test_the_line_over_the_limit_is_the_one_that_is_named() -> None:
    customer, pools, (loose, tight, free) = CUSTOMERS[0], POOLS[3:], SALES.values()
    hold = Hold(uuid.uuid4(), customer, tuple(Line(*pool, 2) for pool in pools), 600)
    limits = (5, 3, 0)
    grants = {pool: Grant(9, per_customer_limit=limit) for pool, limit in zip(pools, limits, strict=True)}

    def above(counted: dict[tuple[uuid.UUID, uuid.UUID], int]) -> list[Line]:
        return [line for _, line in allot([hold], grants, counted=counted, known=()).over]

    assert above({}) == []
    assert above({(tight, customer): 1, (free, customer): 99, (loose, CUSTOMERS[1]): 9}) == []
    assert above({(tight, customer): 2}) == [hold.lines[1]]
    assert above({(tight, customer): 2, (loose, customer): 4}) == [hold.lines[0]]


def test_a_customers_holds_in_one_batch_count_together() -> None:
    sale = POOLS[3]
    batch = [Hold(uuid.uuid4(), CUSTOMERS[0], (Line(*sale, units),), 600) for units in (2, 2, 1, 1)]
    dealt = allot(batch, {sale: Grant(9, per_customer_limit=3)}, counted={}, known=())
    assert [hold.id for hold in dealt.held] == [batch[0].id, batch[2].id]
    assert [hold.id for hold, _ in dealt.over] == [batch[1].id, batch[3].id]
