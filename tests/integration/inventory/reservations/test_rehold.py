"""Released units are held again by the rules of a new order, until the hold's first end."""

import asyncio
import uuid
from dataclasses import replace

import pytest

from services.chassis import ids
from services.chassis.data.db import Database
from services.chassis.errors import AppError, WrongState
from services.inventory import domain, sales
from services.inventory.domain import HoldBounds, Reservation, SaleState, State
from services.inventory.reservations import settle
from services.inventory.reservations.rehold import Rehold, rehold
from services.inventory.reservations.reserve import Outcome
from tests.integration.inventory.conftest import (
    a_product,
    a_sale,
    books,
    hold_ended,
    holding,
    of_sale,
    of_stock,
    rows_of,
    state_of,
)


async def again(db: Database, reservation_id: uuid.UUID, *, number: int = 1, **how: HoldBounds) -> Outcome:
    return (await rehold(db, [Rehold(reservation_id, number)], **how))[0]


async def released(db: Database, held: Reservation, *, reholds: int = 0) -> Outcome:
    return (await settle.release(db, [held.id], reholds={held.id: reholds}))[0]


async def test_released_units_are_held_until_their_first_end(db: Database) -> None:
    sale, plain = await a_sale(db, units=5, per_customer_limit=2), await a_product(db, on_hand=3)
    held = await holding(db, of_sale(sale, 2), of_stock(plain, 3))
    await released(db, held)

    outcome = await again(db, held.id)

    assert isinstance(outcome, Reservation)
    assert (outcome.state, outcome.expire_time) == (State.HELD, held.expire_time)
    assert (await sales.get_sale(db, sale.id)).remaining == 3
    assert await books(db) == []
    (confirmed,) = await settle.confirm(db, [held.id])
    assert isinstance(confirmed, Reservation)
    assert await books(db) == []


async def test_repeats_at_once_take_units_once(db: Database) -> None:
    sale = await a_sale(db, units=5)
    held = await holding(db, of_sale(sale))
    await released(db, held)

    outcomes = await asyncio.gather(*(again(db, held.id) for _ in range(8)))

    assert all(isinstance(o, Reservation) and o.state is State.HELD for o in outcomes)
    assert (await sales.get_sale(db, sale.id)).held == 1
    assert await books(db) == []


async def test_old_release_that_arrives_late_takes_nothing(db: Database) -> None:
    held = await holding(db, of_sale(await a_sale(db)))
    await released(db, held)
    await again(db, held.id)

    late = await released(db, held)

    assert isinstance(late, Reservation)
    assert (late.state, late.repeated) == (State.HELD, True)
    assert await state_of(db, held.id) == "HELD"
    await released(db, held, reholds=1)
    assert await state_of(db, held.id) == "RELEASED"
    assert await books(db) == []


async def test_what_others_bought_meanwhile_is_not_there(db: Database) -> None:
    sale, plain = await a_sale(db, units=1), await a_product(db, on_hand=1)
    flash, ordinary = await holding(db, of_sale(sale)), await holding(db, of_stock(plain))
    await settle.release(db, [flash.id, ordinary.id])
    await holding(db, of_sale(sale))
    await holding(db, of_stock(plain))

    outcomes = await rehold(db, [Rehold(flash.id, 1), Rehold(ordinary.id, 1)])

    assert [o.reason for o in outcomes if isinstance(o, AppError)] == ["SOLD_OUT", "OUT_OF_STOCK"]
    assert await books(db) == []


async def test_rules_of_a_new_order_decide(db: Database) -> None:
    """The sale's end, the customer limit, and the bounds of open orders."""
    customer, ended, limited = ids.new(), await a_sale(db), await a_sale(db, per_customer_limit=1)
    of_ended = await holding(db, of_sale(ended), customer_id=customer)
    of_limited = await holding(db, of_sale(limited), customer_id=customer)
    await settle.release(db, [of_ended.id, of_limited.id])
    await sales.close_sale(db, ended.id, SaleState.ENDED, etag_given="", key=None)
    await holding(db, of_sale(limited), customer_id=customer)
    unbounded = await holding(db, of_stock(await a_product(db)), customer_id=customer)
    await released(db, unbounded)

    outcomes = [await again(db, of_ended.id), await again(db, of_limited.id)]
    outcomes.append(await again(db, unbounded.id, bounds=HoldBounds(orders=1)))

    reasons = [o.reason for o in outcomes if isinstance(o, AppError)]
    assert reasons == ["SALE_NOT_LIVE", "CUSTOMER_LIMIT", "OPEN_ORDERS_LIMIT"]
    assert await books(db) == []


async def test_slot_of_the_hold_is_a_free_one(db: Database) -> None:
    customer, bounds = ids.new(), HoldBounds(orders=2)
    held = [await holding(db, of_stock(await a_product(db)), customer_id=customer) for _ in range(3)]
    await settle.release(db, [r.id for r in held])

    outcomes = await rehold(db, [Rehold(r.id, 1) for r in held], bounds)

    assert [o.reason if isinstance(o, AppError) else o.state for o in outcomes] == ["HELD", "HELD", "OPEN_ORDERS_LIMIT"]
    slots = await rows_of(db, "SELECT slot FROM reservations WHERE state = 'HELD' ORDER BY slot")
    assert slots == [(1,), (2,)]


@pytest.mark.parametrize("expired", [False, True])
async def test_hold_whose_time_is_over_is_not_held_again(db: Database, expired: bool) -> None:
    held = await holding(db, of_sale(await a_sale(db)))
    if not expired:
        await released(db, held)
    await hold_ended(db, held.id)
    await settle.expire(db)

    assert isinstance(await again(db, held.id), domain.ReservationExpired)
    assert await books(db) == []


async def test_held_confirmed_and_unknown_ones_stay_as_they_are(db: Database) -> None:
    held = await holding(db, of_sale(await a_sale(db)))
    assert isinstance(await again(db, held.id), WrongState)
    await settle.confirm(db, [held.id])
    assert await again(db, held.id) == replace(held, state=State.CONFIRMED, repeated=True, lines=held.lines)
    assert isinstance(await again(db, ids.new()), domain.ReservationNotFound)
