"""Tickets: there exactly when the hold is, found by a repeat, listed oldest first, kept until they are dropped."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.chassis import ids
from services.chassis.data.db import Database
from services.inventory import reserving, settling, tickets, timers
from services.inventory.domain import CustomerLimit, Hold, OutOfStock, Reservation, SoldOut, State
from services.inventory.gate.gate import Gate
from tests.integration.inventory.conftest import (
    a_hold,
    a_product,
    a_sale,
    books,
    hold_ended,
    of_sale,
    of_stock,
    rebuild,
    rows_of,
    run_sql,
    statements,
)
from tests.support.waiting import until


def with_ticket(hold: Hold, ticket: bytes = b"") -> Hold:
    return replace(hold, ticket=ticket or hold.id.bytes)


async def kept(db: Database) -> dict[Any, bytes]:
    """All tickets by reservation, and only such as have one."""
    rows = await rows_of(db, "SELECT reservation_id, ticket FROM tickets t ORDER BY t.id")
    assert await rows_of(db, "SELECT FROM tickets WHERE reservation_id NOT IN (SELECT id FROM reservations)") == []
    return dict(rows)  # type: ignore[arg-type]


def told(outcomes: list[Any]) -> list[Any]:
    """Of each outcome: the ticket, or why there is none."""
    return [outcome.ticket if isinstance(outcome, Reservation) else type(outcome) for outcome in outcomes]


async def test_a_ticket_is_there_exactly_when_its_hold_is(db: Database) -> None:
    """In one batch: who gets what they want, who does not, and who wants to leave none. None is told back."""
    sale, limited = await a_sale(db, units=2), await a_sale(db, units=9, per_customer_limit=1)
    plain, customer = await a_product(db, on_hand=1), ids.new()
    batch = [
        with_ticket(a_hold(of_sale(sale, 2))), with_ticket(a_hold(of_sale(sale))),
        with_ticket(a_hold(of_sale(limited), customer_id=customer)),
        with_ticket(a_hold(of_sale(limited), customer_id=customer)), with_ticket(a_hold(of_stock(plain))),
        with_ticket(a_hold(of_stock(plain))), a_hold(of_sale(limited)),
    ]  # fmt: skip

    outcomes = await reserving.reserve(db, batch)

    assert told(outcomes) == [b"", SoldOut, b"", CustomerLimit, b"", OutOfStock, b""]
    assert await kept(db) == {hold.id: hold.ticket for hold in (batch[0], batch[2], batch[4])}
    assert await books(db) == []


async def test_the_everyday_case_keeps_tickets_in_its_one_statement(db: Database) -> None:
    """And asks for no table of tickets where there are none."""
    sale = await a_sale(db, units=9, per_customer_limit=3)
    some = [with_ticket(a_hold(of_sale(sale))), a_hold(of_sale(sale)), with_ticket(a_hold(of_sale(sale)))]

    with statements(db) as seen:
        await reserving.reserve(db, some)
        await reserving.reserve(db, [a_hold(of_sale(sale))])

    assert (len(seen), ["INTO tickets" in statement for statement in seen]) == (2, [True, False])
    assert list((await kept(db)).items()) == [(hold.id, hold.ticket) for hold in (some[0], some[2])]


async def test_who_goes_away_empty_costs_no_statement_more_for_a_ticket(db: Database) -> None:
    sale = await a_sale(db, units=1)
    await reserving.reserve(db, [a_hold(of_sale(sale))])

    asked = []
    for hold in (a_hold(of_sale(sale)), with_ticket(a_hold(of_sale(sale)))):
        with statements(db) as seen:
            assert isinstance((await reserving.reserve(db, [hold]))[0], SoldOut)
        asked.append(seen)

    assert asked[0][1:] == asked[1][1:]
    assert not any("INTO tickets" in statement for statement in asked[1][1:])


@pytest.mark.parametrize("units", [1, 9])
@pytest.mark.parametrize("flash", [True, False])
async def test_a_repeat_finds_the_first_ticket_until_it_is_dropped(
    db: Database, gate: Gate, flash: bool, units: int
) -> None:
    """Where nothing else is left, and where there is."""
    sale = await a_sale(db, units=units)
    await rebuild(gate, db)
    hold = with_ticket(a_hold(of_sale(sale) if flash else of_stock(await a_product(db, on_hand=units))), b"first")
    again = replace(hold, ticket=b"sealed anew")
    without, unticketed = replace(hold, ticket=b""), a_hold(of_stock(await a_product(db)))
    await reserving.admit(db, gate, [hold, unticketed])

    outcomes = await reserving.admit(db, gate, [again, unticketed])

    assert told(outcomes) == [b"first", b""]
    assert told(await reserving.admit(db, gate, [without])) == [b"first"]
    await tickets.drop(db, [hold.id])
    assert told(await reserving.admit(db, gate, [again])) == [b""]
    assert await kept(db) == {}, "a repeat leaves none"


async def test_the_same_hold_sent_eight_times_at_once_keeps_one_ticket(db: Database) -> None:
    """One is the first, and its ticket is what all others hear of."""
    sale = await a_sale(db, units=10, per_customer_limit=1)
    hold = a_hold(of_sale(sale))
    sent = [with_ticket(hold, b"ticket %d" % n) for n in range(8)]

    outcomes = await asyncio.gather(*(reserving.reserve(db, [one]) for one in sent))

    (ticket,) = (await kept(db)).values()
    first = sent.index(with_ticket(hold, ticket))
    assert [told(outcome) for outcome in outcomes] == [[b"" if n == first else ticket] for n in range(8)]
    assert await books(db) == []


async def test_tickets_outlive_whatever_becomes_of_the_hold(db: Database) -> None:
    sale = await a_sale(db, units=4)
    held = [with_ticket(a_hold(of_sale(sale))) for _ in range(4)]
    await reserving.reserve(db, held)
    await settling.confirm(db, [held[1].id])
    await settling.release(db, [held[2].id])
    await hold_ended(db, held[3].id)
    await settling.expire(db)

    listed = await tickets.oldest(db, limit=10)

    assert [(t.ticket, t.reservation.id, t.reservation.state) for t in listed] == [
        (hold.ticket, hold.id, state)
        for hold, state in zip(held, (State.HELD, State.CONFIRMED, State.RELEASED, State.EXPIRED), strict=True)
    ]
    assert listed[0].reservation.lines[0].sale_price is not None
    assert told(await reserving.reserve(db, held)) == [hold.ticket for hold in held]


async def test_tickets_are_listed_oldest_first_whatever_their_ids_and_places(db: Database) -> None:
    sale, plain = await a_sale(db, units=99), await a_product(db, on_hand=99)
    sent = []
    for n in range(6):
        holds = [with_ticket(a_hold(of_sale(sale) if n % 2 else of_stock(plain))) for _ in range(3)]
        sent += sorted(holds, key=lambda hold: hold.id, reverse=True)
        await reserving.reserve(db, sent[-3:])

    assert [t.reservation.id for t in await tickets.oldest(db, limit=99)] == [hold.id for hold in sent]
    assert [t.reservation.id for t in await tickets.oldest(db, limit=5)] == [hold.id for hold in sent[:5]]
    await tickets.drop(db, [hold.id for hold in sent[:4]])
    assert [t.ticket for t in await tickets.oldest(db, limit=1)] == [sent[4].ticket]
    wanted = [sent[9].id, sent[0].id, ids.new(), sent[7].id]
    assert [t.reservation.id for t in await tickets.of_reservations(db, wanted)] == [sent[7].id, sent[9].id]


async def test_a_ticket_may_be_dropped_twice_and_by_many_at_once(db: Database) -> None:
    plain = await a_product(db, on_hand=40)
    held = [with_ticket(a_hold(of_stock(plain))) for _ in range(40)]
    await reserving.reserve(db, held)
    dropped = [hold.id for hold in held[:30]]

    await asyncio.gather(*(tickets.drop(db, dropped[::step]) for step in (1, -1, 2, -2)))
    await tickets.drop(db, [ids.new(), *dropped[:1]])

    assert list(await kept(db)) == [hold.id for hold in held[30:]]
    assert await rows_of(db, "SELECT DISTINCT state FROM reservations") == [("HELD",)]


async def test_the_largest_ticket_is_kept_as_it_is(db: Database) -> None:
    large = bytes(range(256)) * 64
    hold = with_ticket(a_hold(of_sale(await a_sale(db))), large)
    await reserving.reserve(db, [hold])

    assert [t.ticket for t in await tickets.oldest(db, limit=1)] == [large]


async def test_how_many_are_kept_and_for_how_long_can_be_seen(db: Database) -> None:
    assert await tickets.kept(db) == (0, 0)
    plain = await a_product(db, on_hand=9)
    held = [with_ticket(a_hold(of_stock(plain))) for _ in range(3)]
    await reserving.reserve(db, held)
    query = "UPDATE tickets SET create_time = create_time - CAST(:age AS interval) WHERE reservation_id = :id"
    await run_sql(db, query, id=held[0].id, age=timedelta(minutes=5))

    number, seconds = await tickets.kept(db)
    assert (number, 300 <= seconds < 400) == (3, True)
    measuring = asyncio.create_task(timers.measure(db))

    async def seen() -> bool:
        count = REGISTRY.get_sample_value("stampede_tickets_kept")
        oldest = REGISTRY.get_sample_value("stampede_tickets_oldest_seconds")
        return count == 3 and (oldest or 0) >= 300

    await until(seen)
    measuring.cancel()
    await asyncio.gather(measuring, return_exceptions=True)
