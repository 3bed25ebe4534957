"""Holding units: the race, the repeat, the limit, the mixture."""

import asyncio
import itertools
import uuid
from collections import Counter
from dataclasses import replace

import pytest

from services.chassis import ids
from services.chassis.data.db import Database
from services.chassis.errors import AppError, RequestIdReused
from services.inventory import sales, stock
from services.inventory.domain import (
    CustomerLimit,
    FlashSaleNotFound,
    Hold,
    Line,
    OutOfStock,
    Reservation,
    SaleNotLive,
    SoldOut,
    State,
    StockNotFound,
)
from services.inventory.reservations import reserve, settle
from tests.integration.inventory.conftest import (
    a_hold,
    a_product,
    a_sale,
    books,
    hold_ended,
    of_sale,
    of_stock,
    statements,
)


async def reserve_one(db: Database, hold: Hold) -> Reservation | AppError:
    return (await reserve.reserve(db, [hold]))[0]


async def test_a_rush_on_a_sale_sells_each_unit_once(db: Database) -> None:
    """60 buyers, 10 units, all at once, one by one: 10 get one, 50 are refused, none is lost."""
    sale = await a_sale(db, units=10)

    outcomes = await asyncio.gather(*(reserve_one(db, a_hold(of_sale(sale))) for _ in range(60)))

    assert sum(isinstance(o, Reservation) for o in outcomes) == 10
    assert sum(isinstance(o, SoldOut) for o in outcomes) == 50
    now = await sales.get_sale(db, sale.id)
    assert (now.held, now.remaining, now.state) == (10, 0, "SOLD_OUT")
    assert await books(db) == []


async def test_a_rush_on_ordinary_stock_sells_each_unit_once(db: Database) -> None:
    product_id = await a_product(db, on_hand=10)

    outcomes = await asyncio.gather(*(reserve_one(db, a_hold(of_stock(product_id))) for _ in range(60)))

    assert sum(isinstance(o, Reservation) for o in outcomes) == 10
    assert sum(isinstance(o, OutOfStock) for o in outcomes) == 50
    assert (await stock.get_stock(db, product_id)).held == 10
    assert await books(db) == []


async def test_batches_in_parallel_sell_each_unit_once(db: Database) -> None:
    sale = await a_sale(db, units=25)
    batches = [[a_hold(of_sale(sale, 1 + n % 3)) for n in range(20)] for _ in range(6)]

    answers = await asyncio.gather(*(reserve.reserve(db, batch) for batch in batches))

    outcomes = [outcome for answer in answers for outcome in answer]
    held = sum(o.lines[0].quantity for o in outcomes if isinstance(o, Reservation))
    now = await sales.get_sale(db, sale.id)
    assert held == now.held <= 25
    # A single unit always finds a buyer in such a crowd, so nothing may be left over.
    assert now.remaining == 0
    assert await books(db) == []


async def test_mixed_lines_in_crossed_order_neither_deadlock_nor_oversell(db: Database) -> None:
    first, second = await a_sale(db, units=15), await a_sale(db, units=15)
    plain = await a_product(db, on_hand=15)
    lines = [of_sale(first), of_stock(plain), of_sale(second)]
    holds = [a_hold(*(lines if n % 2 else lines[::-1])) for n in range(60)]

    outcomes = await asyncio.gather(*(reserve_one(db, hold) for hold in holds))

    assert sum(isinstance(o, Reservation) for o in outcomes) == 15
    assert await books(db) == []


async def test_a_hold_is_all_or_nothing_over_its_lines(db: Database) -> None:
    plenty, scarce = await a_sale(db, units=10), await a_product(db, on_hand=1)

    outcome = await reserve_one(db, a_hold(of_sale(plenty, 2), of_stock(scarce, 2)))

    assert isinstance(outcome, OutOfStock)
    assert (await sales.get_sale(db, plenty.id)).held == 0
    assert (await stock.get_stock(db, scarce)).held == 0


async def test_the_same_hold_sent_eight_times_at_once_takes_once(db: Database) -> None:
    """A client that times out and retries races its own first attempt."""
    sale = await a_sale(db, units=10, per_customer_limit=1)
    hold = a_hold(of_sale(sale))

    outcomes = await asyncio.gather(*(reserve_one(db, hold) for _ in range(8)))

    assert all(isinstance(o, Reservation) and o.id == hold.id for o in outcomes)
    assert (await sales.get_sale(db, sale.id)).held == 1
    assert await books(db) == []


async def test_a_repeat_finds_its_hold_when_everything_is_sold_out(db: Database) -> None:
    sale = await a_sale(db, units=1)
    hold = a_hold(of_sale(sale))
    first = await reserve_one(db, hold)

    assert isinstance(first, Reservation)
    assert await reserve_one(db, hold) == replace(first, repeated=True)
    assert isinstance(await reserve_one(db, a_hold(of_sale(sale))), SoldOut)


async def test_an_id_cannot_be_reused_for_other_lines(db: Database) -> None:
    sale = await a_sale(db, units=10)
    hold = a_hold(of_sale(sale))
    await reserve_one(db, hold)

    assert isinstance(await reserve_one(db, Hold(hold.id, hold.customer_id, (of_sale(sale, 2),), 600)), RequestIdReused)
    assert isinstance(await reserve_one(db, Hold(hold.id, ids.new(), hold.lines, 600)), RequestIdReused)
    assert (await sales.get_sale(db, sale.id)).held == 1


async def test_one_customer_gets_no_more_than_the_limit_over_all_orders(db: Database) -> None:
    sale, customer = await a_sale(db, units=100, per_customer_limit=3), ids.new()

    outcomes = await asyncio.gather(*(reserve_one(db, a_hold(of_sale(sale), customer_id=customer)) for _ in range(20)))

    assert sum(isinstance(o, Reservation) for o in outcomes) == 3
    assert sum(isinstance(o, CustomerLimit) for o in outcomes) == 17
    assert await books(db) == []


async def test_the_limit_holds_within_one_batch_too(db: Database) -> None:
    sale, customer = await a_sale(db, units=100, per_customer_limit=3), ids.new()

    outcomes = await reserve.reserve(db, [a_hold(of_sale(sale, 2), customer_id=customer) for _ in range(4)])

    assert [type(o) for o in outcomes] == [Reservation, CustomerLimit, CustomerLimit, CustomerLimit]
    assert await books(db) == []


@pytest.mark.parametrize("ordinary", [False, True], ids=["flash alone", "with ordinary lines"])
async def test_forty_orders_of_one_customer_in_one_batch_get_what_the_limit_lets(db: Database, ordinary: bool) -> None:
    """Their neighbours in the batch get theirs all the same."""
    sale, plain, greedy = await a_sale(db, units=20, per_customer_limit=2), await a_product(db, on_hand=99), ids.new()
    also = [of_stock(plain)] if ordinary else []
    batch = [a_hold(of_sale(sale), *also, customer_id=ids.new() if n % 5 == 4 else greedy) for n in range(50)]

    outcomes = await reserve.reserve(db, batch)

    mine = [o for hold, o in zip(batch, outcomes, strict=True) if hold.customer_id == greedy]
    others = [o for hold, o in zip(batch, outcomes, strict=True) if hold.customer_id != greedy]
    assert Counter(map(type, mine)) == {Reservation: 2, CustomerLimit: 38}
    assert Counter(map(type, others)) == {Reservation: 10}
    assert (await sales.get_sale(db, sale.id)).held == 12
    assert await books(db) == []


async def test_what_a_batch_costs_does_not_grow_with_it(db: Database) -> None:
    """Whatever is in it: one customer's two hundred tries must not keep the sale locked for everybody."""
    limited, scarce = await a_sale(db, units=90, per_customer_limit=2), await a_sale(db, units=3)
    plain, greedy = await a_product(db, on_hand=5), ids.new()
    known = [a_hold(of_sale(limited)) for _ in range(5)]
    await reserve.reserve(db, known)
    batch = [a_hold(of_sale(limited), of_stock(plain), customer_id=greedy) for _ in range(100)]
    batch += [*known, *(a_hold(of_sale(scarce)) for _ in range(50)), a_hold(of_stock(ids.new()))]
    batch += [a_hold(of_sale(limited), customer_id=greedy) for _ in range(100)]

    with statements(db) as seen:
        outcomes = await reserve.reserve(db, batch)

    assert Counter(map(type, outcomes)) == {Reservation: 2 + 5 + 3, CustomerLimit: 198, SoldOut: 47, StockNotFound: 1}
    assert len(seen) <= 13, seen
    assert await books(db) == []


async def test_an_id_that_stands_twice_in_a_batch_takes_once(db: Database) -> None:
    sale = await a_sale(db, units=9, per_customer_limit=9)
    hold = a_hold(of_sale(sale, 2))

    outcomes = await reserve.reserve(db, [hold, hold, a_hold(of_sale(sale))])

    assert all(isinstance(o, Reservation) for o in outcomes)
    assert (await sales.get_sale(db, sale.id)).held == 3
    assert await books(db) == []


async def test_many_orders_of_one_customer_in_many_batches_at_once_get_what_the_limit_lets(db: Database) -> None:
    several = [await a_sale(db, units=50, per_customer_limit=2) for _ in range(2)]
    greedy = [ids.new() for _ in range(2)]
    batches = [
        [
            a_hold(of_sale(several[(n + b) % 2]), customer_id=greedy[n % 3] if n % 3 < 2 else ids.new())
            for n in range(12)
        ]
        for b in range(8)
    ]  # fmt: skip

    answers = await asyncio.gather(*(reserve.reserve(db, batch) for batch in batches))

    got: Counter[tuple[uuid.UUID, uuid.UUID | None]] = Counter()
    for hold, outcome in zip(itertools.chain(*batches), itertools.chain(*answers), strict=True):
        if isinstance(outcome, Reservation):
            got[hold.customer_id, hold.lines[0].sale_id] += 1
        else:
            assert isinstance(outcome, CustomerLimit)
            assert hold.customer_id in greedy
    assert {got[customer, sale.id] for customer in greedy for sale in several} == {2}
    assert sum(units for (customer, _), units in got.items() if customer not in greedy) == 8 * 4
    assert await books(db) == []


@pytest.mark.parametrize(
    ("end", "back"), [("cancelled", 2), ("expired", 2), ("lost", 2), ("paid", 0), ("paid late", 0), ("extended", 0)]
)
async def test_an_order_that_does_not_come_to_be_gives_the_allowance_back(db: Database, end: str, back: int) -> None:
    """However it ends, parallel orders get just what is free again."""
    sale, customer = await a_sale(db, units=10, per_customer_limit=2), ids.new()
    held = [await reserve_one(db, a_hold(of_sale(sale), customer_id=customer)) for _ in range(2)]
    first = [outcome.id for outcome in held if isinstance(outcome, Reservation)]
    if end in ("expired", "lost", "paid late"):
        await hold_ended(db, *first)
        await settle.expire(db)
    if end == "lost":  # somebody else was faster, and has released them since
        rivals = [a_hold(of_sale(sale)) for _ in range(10)]
        await reserve.reserve(db, rivals)
    if end == "cancelled":
        await settle.release(db, first)
    elif end == "extended":
        await settle.extend(db, first)
    elif end != "expired":
        await settle.confirm(db, first)
    if end == "lost":
        await settle.release(db, [rival.id for rival in rivals])

    outcomes = await asyncio.gather(*(reserve_one(db, a_hold(of_sale(sale), customer_id=customer)) for _ in range(6)))

    assert Counter(map(type, outcomes)) == Counter({Reservation: back, CustomerLimit: 6 - back}) + Counter()
    assert await books(db) == []


async def test_a_released_hold_gives_the_allowance_back(db: Database) -> None:
    sale, customer = await a_sale(db, units=10, per_customer_limit=1), ids.new()
    hold = a_hold(of_sale(sale), customer_id=customer)
    await reserve_one(db, hold)
    await settle.release(db, [hold.id])

    assert isinstance(await reserve_one(db, a_hold(of_sale(sale), customer_id=customer)), Reservation)
    assert await books(db) == []


async def test_one_bad_item_leaves_its_neighbours_alone(db: Database) -> None:
    sale = await a_sale(db, units=10)
    unknown = ids.new()
    batch = [
        a_hold(of_sale(sale)),
        a_hold(of_stock(unknown)),
        a_hold(of_sale(sale, 11)),
        a_hold(of_stock(sale.product_id)),
        a_hold(of_sale(sale)),
    ]

    outcomes = await reserve.reserve(db, batch)

    assert [type(o) for o in outcomes] == [Reservation, StockNotFound, SoldOut, OutOfStock, Reservation]
    assert await books(db) == []


async def test_a_sale_is_refused_under_another_product_or_out_of_its_time(db: Database) -> None:
    sale = await a_sale(db, units=10)
    other = await a_product(db)
    line = of_sale(sale)
    later = await a_sale(db, start_time=sale.end_time, end_time=sale.end_time.replace(year=2100))

    assert isinstance(await reserve_one(db, a_hold(type(line)(other, sale.id, 1))), FlashSaleNotFound)
    assert isinstance(await reserve_one(db, a_hold(type(line)(other, uuid.uuid4(), 1))), FlashSaleNotFound)
    outcome = await reserve_one(db, a_hold(of_sale(later)))
    assert isinstance(outcome, SaleNotLive)
    assert outcome.metadata["state"] == "SCHEDULED"


@pytest.mark.parametrize("quantity", [1, 7])
async def test_the_price_and_the_time_of_a_hold_are_the_sales(db: Database, quantity: int) -> None:
    sale = await a_sale(db, hold_seconds=30)

    held = await reserve_one(db, a_hold(of_sale(sale, quantity), seconds=600))

    assert isinstance(held, Reservation)
    assert held.state is State.HELD
    assert held.lines[0].sale_price is not None
    assert held.lines[0].sale_price.minor == 999
    assert 25 < (held.expire_time - sale.server_time).total_seconds() < 60


@pytest.mark.parametrize(("quantity", "also_stock", "seconds"), [(1, False, 1800), (7, False, 1800), (1, True, 600)])
async def test_a_long_sale_holds_as_long_as_it_says(
    db: Database, quantity: int, also_stock: bool, seconds: int
) -> None:
    """Ordinary units of the same order are held for ten minutes, and so is all of it."""
    sale = await a_sale(db, hold_seconds=1800)
    lines = (of_sale(sale, quantity), *([of_stock(await a_product(db))] if also_stock else []))

    held = await reserve_one(db, a_hold(*lines, seconds=3600))

    assert isinstance(held, Reservation)
    assert seconds - 5 < (held.expire_time - sale.server_time).total_seconds() < seconds + 30


@pytest.mark.parametrize("first", [True, False])
async def test_sale_price_applies_to_no_other_product_of_the_batch(db: Database, first: bool) -> None:
    sale, dear = await a_sale(db, units=10), await a_product(db)
    thief, honest = a_hold(Line(dear, sale.id, 1)), a_hold(of_sale(sale))

    outcomes = dict(
        zip(
            ("thief", "honest") if first else ("honest", "thief"),
            await reserve.reserve(db, [thief, honest] if first else [honest, thief]),
            strict=True,
        )
    )

    assert isinstance(outcomes["thief"], FlashSaleNotFound), outcomes["thief"]
    assert isinstance(outcomes["honest"], Reservation), outcomes["honest"]
    assert (await sales.get_sale(db, sale.id)).held == 1
    assert await books(db) == []


async def test_a_customers_second_hold_in_a_batch_takes_no_lock_out_of_order(db: Database) -> None:
    """Holds of one customer are counted one after the other, so two batches could meet crosswise."""
    several = [await a_sale(db, units=200, per_customer_limit=50) for _ in range(2)]
    plain = await a_product(db, on_hand=200)
    batches = []
    for n in range(16):
        customer = ids.new()
        lines = [of_sale(several[0]), of_stock(plain), of_sale(several[1])]
        batches.append([a_hold(line, customer_id=customer) for line in (lines if n % 2 else lines[::-1])])

    answers = await asyncio.gather(*(reserve.reserve(db, batch) for batch in batches))

    assert all(isinstance(outcome, Reservation) for answer in answers for outcome in answer)
    assert await books(db) == []


# --- what a batch gives back, it deals again ---


async def test_a_unit_that_an_over_limit_hold_gives_back_goes_to_its_neighbour(db: Database) -> None:
    """Otherwise the neighbour is refused although a unit is left."""
    sale, regular = await a_sale(db, units=2, per_customer_limit=1), ids.new()
    await reserve_one(db, a_hold(of_sale(sale), customer_id=regular))
    batch = [a_hold(of_sale(sale), customer_id=regular), a_hold(of_sale(sale))]

    outcomes = await reserve.reserve(db, batch)

    assert [type(o) for o in outcomes] == [CustomerLimit, Reservation]
    assert (await sales.get_sale(db, sale.id)).remaining == 0
    assert await books(db) == []


async def test_a_unit_that_a_repeat_gives_back_goes_to_its_neighbour(db: Database) -> None:
    sale, plain = await a_sale(db, units=2), await a_product(db, on_hand=2)
    first, second = a_hold(of_sale(sale)), a_hold(of_stock(plain))
    held = await reserve.reserve(db, [first, second])
    batch = [first, second, a_hold(of_sale(sale)), a_hold(of_stock(plain)), a_hold(of_sale(sale))]

    outcomes = await reserve.reserve(db, batch)

    assert outcomes[:2] == [replace(outcome, repeated=True) for outcome in held if isinstance(outcome, Reservation)]
    assert [type(o) for o in outcomes[2:]] == [Reservation, Reservation, SoldOut]
    assert await books(db) == []


async def test_units_that_come_back_pass_by_those_who_may_not_have_them(db: Database) -> None:
    """One unit, and in front of the only one who may have it: two over the limit, and a repeat."""
    sale, regulars = await a_sale(db, units=4, per_customer_limit=1), [ids.new() for _ in range(3)]
    known = [a_hold(of_sale(sale), customer_id=customer) for customer in regulars]
    await reserve.reserve(db, known)
    greedy = [a_hold(of_sale(sale), customer_id=customer) for customer in regulars[:2]]

    outcomes = await reserve.reserve(db, [*greedy, known[2], a_hold(of_sale(sale)), a_hold(of_sale(sale))])

    assert [type(o) for o in outcomes] == [CustomerLimit, CustomerLimit, Reservation, Reservation, SoldOut]
    assert await books(db) == []


async def test_who_is_over_the_limit_hears_of_the_limit_where_units_are_left(db: Database) -> None:
    """The second in the batch found nothing at first; but a unit is left, and sold out it is not."""
    sale, regulars = await a_sale(db, units=3, per_customer_limit=1), [ids.new() for _ in range(2)]
    await reserve.reserve(db, [a_hold(of_sale(sale), customer_id=customer) for customer in regulars])

    outcomes = await reserve.reserve(db, [a_hold(of_sale(sale), customer_id=customer) for customer in regulars])

    assert [type(o) for o in outcomes] == [CustomerLimit, CustomerLimit]
    assert (await sales.get_sale(db, sale.id)).remaining == 1
    assert await books(db) == []


async def test_what_comes_back_of_one_pool_serves_a_hold_of_several_all_or_nothing(db: Database) -> None:
    limited, other = await a_sale(db, units=3, per_customer_limit=2), await a_sale(db, units=2, per_customer_limit=2)
    regular = ids.new()
    await reserve_one(db, a_hold(of_sale(limited, 2), customer_id=regular))
    batch = [
        a_hold(of_sale(limited), of_sale(other, 2), customer_id=regular),  # over the limit of the first
        a_hold(of_sale(other), of_sale(limited)),  # fits once that is given back
        a_hold(of_sale(other, 2)),  # and then there is one too few for this
        a_hold(of_sale(other)),
    ]

    outcomes = await reserve.reserve(db, batch)

    assert [type(o) for o in outcomes] == [CustomerLimit, Reservation, SoldOut, Reservation]
    assert [(await sales.get_sale(db, sale.id)).remaining for sale in (limited, other)] == [0, 0]
    assert await books(db) == []


async def test_batches_full_of_repeats_and_greed_refuse_nobody_while_a_unit_is_left(db: Database) -> None:
    """Several at once: in the end each unit that could be sold was sold, or somebody may still have it."""
    sale, regulars = await a_sale(db, units=30, per_customer_limit=1), [ids.new() for _ in range(10)]
    known = [a_hold(of_sale(sale), customer_id=customer) for customer in regulars]
    await reserve.reserve(db, known)
    batches = []
    for n in range(5):
        greedy = [a_hold(of_sale(sale), customer_id=customer) for customer in regulars[::2]]
        fresh = [a_hold(of_sale(sale)) for _ in range(6)]
        batches.append([*greedy, *known[n : n + 4], *fresh])

    answers = await asyncio.gather(*(reserve.reserve(db, batch) for batch in batches))

    new = [outcome for answer in answers for outcome in answer[-6:]]
    assert sum(isinstance(o, Reservation) for o in new) == 20
    assert sum(isinstance(o, SoldOut) for o in new) == 10
    assert await books(db) == []


@pytest.mark.parametrize("full", [0, 1])
async def test_the_limit_that_refuses_is_the_one_that_is_named(db: Database, full: int) -> None:
    several = [await a_sale(db, units=9, per_customer_limit=limit) for limit in (2, 3)]
    customer = ids.new()
    await reserve_one(db, a_hold(of_sale(several[full], 2 + full), customer_id=customer))

    outcome = await reserve_one(db, a_hold(of_sale(several[0]), of_sale(several[1]), customer_id=customer))

    assert isinstance(outcome, CustomerLimit)
    assert outcome.metadata == {"flashSaleId": str(several[full].id), "limit": str(2 + full)}
    assert await books(db) == []
