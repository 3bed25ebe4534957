"""Held units become sold ones or go back: once, whatever the order of calls."""

import asyncio
import itertools
import random
import uuid
from collections.abc import Awaitable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from services.chassis import ids
from services.chassis.data.db import Database
from services.chassis.errors import WrongState
from services.inventory import domain, sales, stock
from services.inventory.domain import Line, Reservation, ReservationLost, ReservationNotFound, State
from services.inventory.reservations import settle
from services.inventory.reservations.reserve import Outcome
from stampede.inventory.v1.events_pb2 import ReservationExpired
from tests.integration.inventory.conftest import (
    a_product,
    a_sale,
    books,
    expired_hold,
    hold_ended,
    holding,
    of_sale,
    of_stock,
    rows_of,
    run_sql,
    sale_ended,
    state_of,
)


async def confirm(db: Database, reservation_id: uuid.UUID) -> Outcome:
    return (await settle.confirm(db, [reservation_id]))[0]


async def release(db: Database, reservation_id: uuid.UUID) -> Outcome:
    return (await settle.release(db, [reservation_id]))[0]


async def published(db: Database) -> list[uuid.UUID]:
    """The reservations whose expiry is published, in order."""
    query = "SELECT payload FROM outbox WHERE subject = 'stampede.inventory.reservation.expired' ORDER BY id"
    rows = await rows_of(db, query)
    return [uuid.UUID(ReservationExpired.FromString(bytes(payload)).reservation_id) for (payload,) in rows]


async def test_confirmed_units_are_sold_once_however_often_it_is_said(db: Database) -> None:
    sale, plain = await a_sale(db, units=5), await a_product(db, on_hand=5)
    held = await holding(db, of_sale(sale, 2), of_stock(plain, 3))

    outcomes = [await confirm(db, held.id) for _ in range(3)]

    assert all(isinstance(o, Reservation) and o.state is State.CONFIRMED for o in outcomes)
    now, ordinary = await sales.get_sale(db, sale.id), await stock.get_stock(db, plain)
    assert (now.held, now.sold, now.remaining) == (0, 2, 3)
    assert (ordinary.held, ordinary.on_hand) == (0, 2)
    # A sale's units left the ledger when they were allocated; ordinary ones leave it when sold.
    query = "SELECT product_id, delta, reference_id FROM stock_movements WHERE kind = 'SOLD' ORDER BY id"
    assert await rows_of(db, query) == [(plain, -3, held.id)]
    assert await books(db) == []


async def test_released_units_go_back_once_however_often_it_is_said(db: Database) -> None:
    sale, plain = await a_sale(db, units=5, per_customer_limit=2), await a_product(db, on_hand=5)
    held = await holding(db, of_sale(sale, 2), of_stock(plain, 3))

    outcomes = [await release(db, held.id) for _ in range(3)]

    assert all(isinstance(o, Reservation) and o.state is State.RELEASED for o in outcomes)
    assert (await sales.get_sale(db, sale.id)).remaining == 5
    ordinary = await stock.get_stock(db, plain)
    assert (ordinary.held, ordinary.on_hand) == (0, 5)
    assert await books(db) == []


@pytest.mark.parametrize("moves", list(itertools.permutations(["confirm", "release", "expire"])))
async def test_the_first_of_three_ends_is_the_only_one(db: Database, moves: tuple[str, ...]) -> None:
    """Later words find the end; only a confirmation still moves, from expired, because the customer has paid."""
    sale = await a_sale(db, units=3)
    held = await holding(db, of_sale(sale))
    await hold_ended(db, held.id)
    expected = State.HELD
    for move in moves:
        if move == "confirm":
            outcome = await confirm(db, held.id)
            if expected is State.RELEASED:
                assert isinstance(outcome, ReservationLost)
            else:
                expected = State.CONFIRMED
        elif move == "release":
            outcome = await release(db, held.id)
            if expected is State.CONFIRMED:
                assert isinstance(outcome, WrongState)
            else:
                expected = State.RELEASED
        else:
            await settle.expire(db)
            expected = State.EXPIRED if expected is State.HELD else expected
        assert await state_of(db, held.id) == expected
        assert await books(db) == []


async def test_confirm_release_and_expiry_at_once_end_in_exactly_one(db: Database) -> None:
    """Thirty reservations, each confirmed, released and expired concurrently."""
    sale, plain = await a_sale(db, units=60, per_customer_limit=1000), await a_product(db, on_hand=60)
    held = [await holding(db, of_sale(sale, 2), of_stock(plain)) for _ in range(30)]
    await hold_ended(db, *(r.id for r in held))
    calls = [call for r in held for call in (confirm(db, r.id), release(db, r.id))]
    calls += [settle.expire(db) for _ in range(5)]  # type: ignore[misc]
    random.Random(7).shuffle(calls)

    await asyncio.gather(*calls)

    ends = dict(await rows_of(db, "SELECT state, count(*) FROM reservations GROUP BY 1"))
    assert "HELD" not in ends
    assert sum(ends.values()) == 30
    now, ordinary = await sales.get_sale(db, sale.id), await stock.get_stock(db, plain)
    sold = ends.get("CONFIRMED", 0)
    assert (now.held, now.sold, ordinary.held, ordinary.on_hand) == (0, 2 * sold, 0, 60 - sold)
    assert await books(db) == []


async def test_many_confirmations_of_one_reservation_at_once_sell_once(db: Database) -> None:
    sale = await a_sale(db, units=5)
    held = await holding(db, of_sale(sale))

    outcomes = await asyncio.gather(*(confirm(db, held.id) for _ in range(10)))

    assert all(isinstance(o, Reservation) for o in outcomes)
    assert (await sales.get_sale(db, sale.id)).sold == 1


async def test_many_late_confirmations_of_one_reservation_at_once_retake_once(db: Database) -> None:
    sale = await a_sale(db, units=5)
    held = await expired_hold(db, of_sale(sale, 2))

    outcomes = await asyncio.gather(*(confirm(db, held.id) for _ in range(10)))

    assert all(isinstance(o, Reservation) for o in outcomes)
    assert (await sales.get_sale(db, sale.id)).sold == 2
    assert await books(db) == []


async def test_overlapping_batches_in_parallel_neither_deadlock_nor_count_twice(db: Database) -> None:
    """Six batches, the same reservations in other orders; half confirm and half release."""
    several = [await a_sale(db, units=50, per_customer_limit=100) for _ in range(3)]
    plain = [await a_product(db, on_hand=50) for _ in range(2)]
    held = []
    for n in range(24):
        lines = [of_sale(several[n % 3]), of_stock(plain[n % 2])]
        held.append(await holding(db, *(lines if n % 2 else lines[::-1])))
    chance = random.Random(11)
    batches = [chance.sample([r.id for r in held], 18) for _ in range(6)]

    await asyncio.gather(
        *(settle.confirm(db, batch) if n % 2 else settle.release(db, batch) for n, batch in enumerate(batches))
    )

    assert await books(db) == []
    sold = [(await sales.get_sale(db, sale.id)).sold for sale in several]
    assert sum(sold) == len(await rows_of(db, "SELECT id FROM reservations WHERE state = 'CONFIRMED'"))


async def test_outcomes_come_in_the_order_asked_and_one_refusal_leaves_the_others_alone(db: Database) -> None:
    sale = await a_sale(db, units=5)
    good, gone, again = [await holding(db, of_sale(sale)) for _ in range(3)]
    unknown = ids.new()
    await release(db, gone.id)

    confirmed = await settle.confirm(db, [unknown, good.id, gone.id, again.id, good.id])
    released = await settle.release(db, [good.id, unknown, gone.id])

    assert [type(o) for o in confirmed] == [
        ReservationNotFound, Reservation, ReservationLost, Reservation, Reservation,
    ]  # fmt: skip
    assert [type(o) for o in released] == [WrongState, ReservationNotFound, Reservation]
    assert await books(db) == []


# --- paid after the hold had ended ---


async def test_a_late_payment_retakes_what_the_customer_limit_allows_now(db: Database) -> None:
    """Bank debits placed again as their holds end: however many succeed, the customer gets one unit."""
    sale, customer = await a_sale(db, units=5, per_customer_limit=1, abandoned_hold_limit=0), ids.new()
    late = [await expired_hold(db, of_sale(sale), customer_id=customer) for _ in range(3)]
    held = await holding(db, of_sale(sale), customer_id=customer)

    assert isinstance(await confirm(db, late[0].id), ReservationLost)
    await release(db, held.id)
    outcomes = await settle.confirm(db, [late[1].id, late[2].id])

    assert [type(o) for o in outcomes] == [Reservation, ReservationLost]
    now = await sales.get_sale(db, sale.id)
    assert (now.held, now.sold, now.remaining) == (0, 1, 4)
    assert await books(db) == []


@pytest.mark.parametrize("closed", [True, False])
async def test_a_late_payment_does_not_retake_from_a_sale_that_is_over(db: Database, closed: bool) -> None:
    sale = await a_sale(db, units=5)
    late = await expired_hold(db, of_sale(sale, 2))
    await sale_ended(db, sale.id)
    if closed:
        await sales.close_ended_sales(db)

    assert isinstance(await confirm(db, late.id), ReservationLost)

    assert (await sales.get_sale(db, sale.id)).sold == 0
    assert await state_of(db, late.id) == "RELEASED"
    assert await books(db) == []


async def test_an_expired_hold_retakes_nothing_unless_it_is_asked_to(db: Database) -> None:
    """Orders looks first whether the product is still on sale. The refusal is no verdict."""
    sale = await a_sale(db, units=5)
    late = await expired_hold(db, of_sale(sale, 2))

    (outcome,) = await settle.confirm(db, [late.id], may_retake=False)

    assert isinstance(outcome, domain.ReservationExpired)
    assert await state_of(db, late.id) == "EXPIRED"
    assert isinstance(await confirm(db, late.id), Reservation)


async def test_a_late_payment_is_lost_where_the_units_went_to_others(db: Database) -> None:
    sale, plain = await a_sale(db, units=2), await a_product(db, on_hand=2)
    of_flash = await expired_hold(db, of_sale(sale, 2))
    ordinary = await expired_hold(db, of_stock(plain, 2))
    await holding(db, of_sale(sale))
    await holding(db, of_stock(plain))
    counters = "SELECT held, sold, returned FROM flash_sales", "SELECT on_hand, held FROM stock"
    before = [await rows_of(db, query) for query in counters]

    outcomes = await settle.confirm(db, [of_flash.id, ordinary.id])

    assert [type(o) for o in outcomes] == [ReservationLost, ReservationLost]
    assert [await rows_of(db, query) for query in counters] == before
    assert await state_of(db, of_flash.id) == "RELEASED"
    assert await books(db) == []


async def test_a_reservation_that_was_lost_stays_lost_when_units_come_back(db: Database) -> None:
    """Orders refunds after the verdict; a slow repeat must not take units after that."""
    sale = await a_sale(db, units=1)
    late = await expired_hold(db, of_sale(sale))
    other = await holding(db, of_sale(sale))
    assert isinstance(await confirm(db, late.id), ReservationLost)

    await release(db, other.id)

    assert isinstance(await confirm(db, late.id), ReservationLost)
    assert await books(db) == []


@pytest.mark.parametrize("lacking", [0, 1, 2])
async def test_a_late_payment_retakes_all_of_its_lines_or_none(db: Database, lacking: int) -> None:
    """Whichever line's units are gone, the others are not taken, nor counted, nor written to the ledger."""
    sale, second = [await a_sale(db, units=2, per_customer_limit=5) for _ in range(2)]
    plain = await a_product(db)
    lines = [of_sale(sale, 2), of_sale(second, 2), of_stock(plain, 10)]
    late = await expired_hold(db, *lines)
    rival = [of_sale(sale), of_sale(second), of_stock(plain)][lacking]
    other = await holding(db, rival)
    movements = await rows_of(db, "SELECT count(*) FROM stock_movements")

    assert isinstance(await confirm(db, late.id), ReservationLost)
    assert await rows_of(db, "SELECT count(*) FROM stock_movements") == movements
    assert await books(db) == []
    await release(db, other.id)
    assert await books(db) == []


async def test_late_payments_race_for_the_last_units_and_take_each_once(db: Database) -> None:
    """Ten are late, units for four are there."""
    sale = await a_sale(db, units=10)
    late = [await holding(db, of_sale(sale)) for _ in range(10)]
    await hold_ended(db, *(r.id for r in late))
    await settle.expire(db)
    for _ in range(6):
        await holding(db, of_sale(sale))

    outcomes = await asyncio.gather(*(confirm(db, r.id) for r in late))

    assert sum(isinstance(o, Reservation) for o in outcomes) == 4
    assert sum(isinstance(o, ReservationLost) for o in outcomes) == 6
    assert await books(db) == []


async def test_late_payments_of_crossed_lines_do_not_deadlock(db: Database) -> None:
    """Rows are locked in one order, whatever the order of the lines, and beside any other work."""
    first, second = await a_sale(db, units=40), await a_sale(db, units=40)
    plain = await a_product(db, on_hand=80)
    late, fresh = [], []
    for n in range(16):
        lines = [of_stock(plain), of_sale(second), of_sale(first)]
        late.append(await holding(db, *(lines if n % 2 else lines[::-1])))
        fresh.append(await holding(db, *(lines[::-1] if n % 2 else lines)))
    await hold_ended(db, *(r.id for r in late))
    await settle.expire(db)

    await asyncio.gather(
        *(confirm(db, r.id) for r in late),
        *(release(db, r.id) if n % 2 else confirm(db, r.id) for n, r in enumerate(fresh)),
    )

    assert dict(await rows_of(db, "SELECT state, count(*) FROM reservations GROUP BY 1")) == {
        "CONFIRMED": 24, "RELEASED": 8,
    }  # fmt: skip
    assert await books(db) == []


# --- holds for longer ---


async def extend(db: Database, reservation_id: uuid.UUID) -> Outcome:
    return (await settle.extend(db, [reservation_id]))[0]


async def expire_time(db: Database, reservation_id: uuid.UUID) -> datetime:
    ((found,),) = await rows_of(db, "SELECT expire_time FROM reservations WHERE id = :id", id=reservation_id)
    assert isinstance(found, datetime)
    return found


@pytest.mark.parametrize(("seconds", "more"), [(1, 1), (30, 30), (600, 600), (3600, 600)])
async def test_a_hold_is_extended_once_by_as_long_again_and_ten_minutes_at_most(
    db: Database, seconds: int, more: int
) -> None:
    held = await holding(db, of_stock(await a_product(db)), seconds=seconds)

    outcomes = [await extend(db, held.id) for _ in range(3)]

    expected = replace(held, expire_time=held.expire_time + timedelta(seconds=more))
    assert outcomes == [expected] * 3
    assert await expire_time(db, held.id) == expected.expire_time


async def test_an_extension_is_as_long_as_the_sale_lets_holds_be(db: Database) -> None:
    sale = await a_sale(db, hold_seconds=7)
    held = await holding(db, of_sale(sale), seconds=600)

    outcome = await extend(db, held.id)

    assert isinstance(outcome, Reservation)
    assert outcome.expire_time - held.expire_time == timedelta(seconds=7)


async def test_ten_who_extend_at_once_extend_once(db: Database) -> None:
    held = await holding(db, of_stock(await a_product(db)), seconds=60)

    outcomes = await asyncio.gather(*(extend(db, held.id) for _ in range(10)))

    assert {o.expire_time for o in outcomes if isinstance(o, Reservation)} == {
        held.expire_time + timedelta(seconds=60)
    }  # fmt: skip


async def test_what_is_not_held_is_returned_as_it_is(db: Database) -> None:
    sale = await a_sale(db, units=5)
    sold, back = [await holding(db, of_sale(sale)) for _ in range(2)]
    await confirm(db, sold.id)
    await release(db, back.id)
    gone, alive, unknown = await expired_hold(db, of_sale(sale)), await holding(db, of_sale(sale)), ids.new()
    before = await rows_of(db, "SELECT * FROM reservations WHERE state <> 'HELD' ORDER BY id")

    outcomes = await settle.extend(db, [sold.id, unknown, back.id, alive.id, gone.id, alive.id])

    states = [o.state if isinstance(o, Reservation) else type(o) for o in outcomes]
    assert states == ["CONFIRMED", ReservationNotFound, "RELEASED", "HELD", "EXPIRED", "HELD"]
    assert await rows_of(db, "SELECT * FROM reservations WHERE state <> 'HELD' ORDER BY id") == before
    assert outcomes[3] == outcomes[5] != alive
    assert await books(db) == []


async def test_an_extended_hold_outlives_its_first_time_and_ends_at_its_second(db: Database) -> None:
    sale = await a_sale(db, units=2)
    extended, other = [await holding(db, of_sale(sale), seconds=60) for _ in range(2)]
    await extend(db, extended.id)
    query = "UPDATE reservations SET expire_time = expire_time - interval '61 seconds'"

    await run_sql(db, query)
    assert [r.id for r in await settle.expire(db)] == [other.id]

    await run_sql(db, query)
    assert [r.id for r in await settle.expire(db)] == [extended.id]
    assert isinstance(await extend(db, extended.id), Reservation)
    assert await state_of(db, extended.id) == "EXPIRED"
    assert await books(db) == []


async def test_extension_and_expiry_at_the_same_moment_end_in_one_of_the_two(db: Database) -> None:
    """Forty whose time has just come: each expired and was published, or is extended; never both."""
    sale = await a_sale(db, units=40)
    held = [await holding(db, of_sale(sale), seconds=60) for _ in range(40)]
    await run_sql(db, "UPDATE reservations SET create_time = create_time - interval '61 seconds',"
                      " expire_time = expire_time - interval '61 seconds'")  # fmt: skip
    calls: list[Awaitable[Any]] = [extend(db, r.id) for r in held]
    calls[5:5] = calls[20:20] = [settle.expire(db)]
    calls = [settle.extend(db, [r.id for r in held[:10]]), settle.expire(db), *calls]

    await asyncio.gather(*calls)

    rows = await rows_of(db, "SELECT id, state, extended, expire_time > clock_timestamp() FROM reservations")
    assert {row[1:] for row in rows} <= {("EXPIRED", False, False), ("HELD", True, True)}
    assert sorted(await published(db)) == sorted(row[0] for row in rows if row[1] == "EXPIRED")
    assert await books(db) == []


# --- holds that end by themselves ---


async def test_a_hold_keeps_its_units_for_its_grace_while_orders_asks_for_the_money(db: Database) -> None:
    """For as long again as it lasted, at most thirty seconds; a confirmation meanwhile needs no unit of others."""
    sale = await a_sale(db, units=3)
    paid, long, short = [await holding(db, of_sale(sale)) for _ in range(3)]

    async def ended(hold: Reservation, *, lasted: float, ago: float) -> None:
        query = """
            UPDATE reservations SET expire_time = clock_timestamp() - make_interval(secs => :ago),
                create_time = clock_timestamp() - make_interval(secs => :ago + :lasted) WHERE id = :id
        """
        await run_sql(db, query, id=hold.id, ago=ago, lasted=lasted)

    for hold, lasted in ((paid, 600), (long, 600), (short, 4)):
        await ended(hold, lasted=lasted, ago=3)
    assert await settle.expire(db) == []
    assert isinstance((await settle.confirm(db, [paid.id], may_retake=False))[0], Reservation)
    await ended(short, lasted=4, ago=5)
    assert [r.id for r in await settle.expire(db)] == [short.id]
    await ended(long, lasted=600, ago=31)
    assert [r.id for r in await settle.expire(db)] == [long.id]


async def test_an_expired_hold_returns_its_units_and_tells_orders_once(db: Database) -> None:
    sale, plain = await a_sale(db, units=5, per_customer_limit=2), await a_product(db, on_hand=5)
    customer = ids.new()
    held = await holding(db, of_sale(sale, 2), of_stock(plain, 5), customer_id=customer)
    alive = await holding(db, of_sale(sale))
    await hold_ended(db, held.id)

    assert [r.id for r in await settle.expire(db)] == [held.id]
    assert await settle.expire(db) == []

    assert await published(db) == [held.id]
    assert (await sales.get_sale(db, sale.id)).held == 1
    assert (await stock.get_stock(db, plain)).held == 0
    assert await state_of(db, alive.id) == "HELD"
    await holding(db, of_sale(sale, 2), customer_id=customer)  # the allowance is back too
    assert await books(db) == []


async def test_two_workers_expire_each_hold_once_and_tell_it_once(db: Database) -> None:
    sale = await a_sale(db, units=40)
    held = [await holding(db, of_sale(sale)) for _ in range(40)]
    await hold_ended(db, *(r.id for r in held))

    rounds = await asyncio.gather(*(settle.expire(db) for _ in range(4)))

    assert sorted(r.id for batch in rounds for r in batch) == sorted(r.id for r in held)
    assert sorted(await published(db)) == sorted(r.id for r in held)
    assert (await sales.get_sale(db, sale.id)).remaining == 40
    assert await books(db) == []


async def test_expiry_passes_by_a_hold_that_is_just_being_settled(db: Database) -> None:
    sale = await a_sale(db, units=5)
    busy, idle = [await holding(db, of_sale(sale)) for _ in range(2)]
    await hold_ended(db, busy.id, idle.id)

    async with db.begin() as other, asyncio.timeout(60):
        await other.execute(text("SELECT id FROM reservations WHERE id = :id FOR UPDATE"), {"id": busy.id})
        assert [r.id for r in await settle.expire(db)] == [idle.id]

    assert [r.id for r in await settle.expire(db)] == [busy.id]


async def test_expiry_takes_no_more_than_its_share_at_once(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "EXPIRE_MOST", 3)
    sale = await a_sale(db, units=7)
    held = [await holding(db, of_sale(sale)) for _ in range(7)]
    await hold_ended(db, *(r.id for r in held))

    assert [len(await settle.expire(db)) for _ in range(4)] == [3, 3, 1, 0]


@pytest.mark.parametrize("end", ["release", "expire"])
async def test_units_that_come_back_after_the_close_go_on_to_stock(db: Database, end: str) -> None:
    sale, plain = await a_sale(db, units=5), await a_product(db, on_hand=5)
    held = await holding(db, of_sale(sale, 2), of_stock(plain))
    await sale_ended(db, sale.id)
    await sales.close_ended_sales(db)
    assert (await stock.get_stock(db, sale.product_id)).on_hand == 3

    if end == "release":
        await release(db, held.id)
    else:
        await hold_ended(db, held.id)
        await settle.expire(db)

    now = await sales.get_sale(db, sale.id)
    assert (now.held, now.returned, now.remaining, now.state) == (0, 5, 0, "ENDED")
    assert (await stock.get_stock(db, sale.product_id)).on_hand == 5
    query = "SELECT delta FROM stock_movements WHERE kind = 'RETURNED' AND reference_id = :sale ORDER BY id"
    assert await rows_of(db, query, sale=sale.id) == [(3,), (2,)]
    assert await books(db) == []


async def test_a_hold_confirmed_after_the_close_is_sold_by_the_sale(db: Database) -> None:
    sale = await a_sale(db, units=5)
    held = await holding(db, of_sale(sale, 2))
    await sale_ended(db, sale.id)
    await sales.close_ended_sales(db)

    await confirm(db, held.id)

    now = await sales.get_sale(db, sale.id)
    assert (now.held, now.sold, now.returned) == (0, 2, 3)
    assert (await stock.get_stock(db, sale.product_id)).on_hand == 3
    assert await books(db) == []


async def test_a_batch_that_returns_two_closed_sales_of_one_product_restocks_their_sum(db: Database) -> None:
    product_id = await a_product(db, on_hand=10)
    several = [await a_sale(db, units=4) for _ in range(2)]
    async with db.begin() as tx:  # two sales of one product, one after the other
        await tx.execute(text("UPDATE flash_sales SET product_id = :product"), {"product": product_id})
    held = [await holding(db, Line(product_id, sale.id, 3)) for sale in several]
    await sale_ended(db, *(sale.id for sale in several))
    await sales.close_ended_sales(db)
    assert (await stock.get_stock(db, product_id)).on_hand == 12

    await settle.release(db, [r.id for r in held])

    assert (await stock.get_stock(db, product_id)).on_hand == 18


async def test_units_of_closed_sales_come_back_beside_orders_of_the_same_products(db: Database) -> None:
    """A return that goes on to stock keeps to the one order of locks, too."""
    several = sorted([await a_sale(db, units=40, stock=80) for _ in range(2)], key=lambda sale: sale.product_id)
    low, high = several
    returning = [await holding(db, of_sale(high), of_stock(low.product_id)) for _ in range(20)]
    ordinary = [await holding(db, of_stock(low.product_id), of_stock(high.product_id)) for _ in range(20)]
    await sale_ended(db, low.id, high.id)
    await sales.close_ended_sales(db)

    await asyncio.gather(
        *(release(db, r.id) for r in returning), *(confirm(db, r.id) for r in ordinary), settle.expire(db)
    )

    assert await books(db) == []
