"""Two processes of inventory behave as one: sell each unit once, have one leader, and lose nothing when one is lost."""

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from services.inventory import settling
from services.inventory.domain import Reservation
from services.inventory.gate import Gate, keys_of
from stampede.inventory.v1 import reservation_service_pb2 as pb
from tests.integration.inventory.conftest import (
    a_hold,
    a_sale,
    books,
    hold_ended,
    of_sale,
    rows_of,
    sale_ended,
    state_of,
)
from tests.integration.inventory.replicas import ORDERS, Crowd, Replica, Replicas, State, a_wish, two_processes
from tests.support.infra import Infra
from tests.support.waiting import until

UNITS = 120


@pytest.fixture(scope="module")
async def running(
    infra: Infra, template: Callable[[str], Awaitable[str]], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Replicas]:
    home: Path = tmp_path_factory.mktemp("replicas")
    async with two_processes(infra, await template("inventory"), home) as replicas:
        yield replicas


@pytest.fixture
async def replicas(running: Replicas) -> Replicas:
    await running.recover()
    return running


async def assert_sold(replicas: Replicas, sale: Any, crowd: Crowd) -> None:
    """Every unit went to one buyer; the books are in order, and the gate knows that nothing is left."""
    assert len(crowd.held) == len(set(crowd.held)) == UNITS
    assert await replicas.remaining(sale) == 0
    assert await books(replicas.db) == []
    await replicas.healed(sale)


async def test_both_sell_at_once_and_no_unit_twice(replicas: Replicas) -> None:
    sale = await a_sale(replicas.db, units=UNITS)
    async with Crowd(replicas, sale, buyers=24).buying() as crowd:
        await crowd.has_bought(UNITS)
        await replicas.healed(sale)
    await assert_sold(replicas, sale, crowd)
    # What one of them takes back, the other sells.
    await settling.release(replicas.db, crowd.held[:1])
    first, second = replicas.both
    wishes = [a_wish(sale) for _ in range(2)]

    async def sold() -> bool:
        outcomes = [await first.reserve(wishes[:1]), await second.reserve(wishes[1:])]
        return any(o[0].HasField("reservation") for o in outcomes if o)

    await until(sold)
    assert await replicas.remaining(sale) == 0
    assert await books(replicas.db) == []


async def test_a_ticket_that_one_kept_the_other_finds_lists_and_drops(replicas: Replicas) -> None:
    sale, (first, second) = await a_sale(replicas.db, units=9), replicas.both
    wishes = [a_wish(sale, ticket=b"ticket %d" % n) for n in range(3)]
    ids = [wish.id for wish in wishes]

    def call(replica: Replica, method: str, **fields: Any) -> Awaitable[Any]:
        request = getattr(pb, f"{method}Request")(**fields)
        return getattr(replica.reservations, method)(request, metadata=ORDERS, timeout=5)  # type: ignore[no-any-return]

    assert [o.reservation.ticket for o in await first.reserve(wishes) or ()] == [b""] * 3
    assert [o.reservation.ticket for o in await second.reserve(wishes[::-1]) or ()] == [w.ticket for w in wishes[::-1]]
    listed = (await call(second, "ListTickets")).tickets
    assert [(t.ticket, t.reservation.id) for t in listed] == [(wish.ticket, wish.id) for wish in wishes]
    assert (listed[0].reservation.state, listed[0].reservation.ticket) == (State.HELD, b"")
    await call(second, "DropTickets", reservation_ids=[ids[0], str(uuid.uuid4())])
    assert [t.ticket for t in (await call(first, "GetTickets", reservation_ids=ids)).tickets] == [
        b"ticket 1",
        b"ticket 2",
    ]
    assert len((await call(first, "ListTickets", page_size=1)).tickets) == 1
    await call(first, "DropTickets", reservation_ids=ids)
    assert (await first.reserve(wishes[:1]) or ())[0].reservation.ticket == b""


async def test_whoever_is_killed_leaves_a_ticket_for_each_hold_and_none_without(replicas: Replicas) -> None:
    """Buyers bring tickets to both, and both are killed while they do."""
    sale = await a_sale(replicas.db, units=UNITS)
    async with Crowd(replicas, sale, buyers=16, ticket=b"sealed").buying() as crowd:
        for killed, bought in zip(replicas.both, (UNITS // 10, UNITS // 3), strict=True):
            await crowd.has_bought(bought)
            await killed.end()
            await killed.start()
        await crowd.has_bought(UNITS)

    query = "SELECT id FROM reservations WHERE sale_id = :sale"
    held = {id_ for (id_,) in await rows_of(replicas.db, query, sale=sale.id)}
    kept = {id_ for (id_,) in await rows_of(replicas.db, "SELECT reservation_id FROM tickets")}
    assert kept == held == set(crowd.held)
    assert len(held) == UNITS
    assert await books(replicas.db) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
async def test_when_the_leader_is_lost_the_other_ends_holds_and_heals(replicas: Replicas, how: signal.Signals) -> None:
    sale, (leader, term) = await a_sale(replicas.db, units=5), (await replicas.leader(), await replicas.term())
    heir = replicas.other(leader)
    outcomes = await heir.reserve([a_wish(sale) for _ in range(5)])
    assert outcomes
    held = [uuid.UUID(outcome.reservation.id) for outcome in outcomes]
    await replicas.healed(sale, epoch=term)

    if how == signal.SIGSTOP:
        leader.send(how)
    else:
        await leader.end(how)
    await hold_ended(replicas.db, *held[:3])

    async def expired() -> bool:
        return [await state_of(replicas.db, id_) for id_ in held] == ["EXPIRED"] * 3 + ["HELD"] * 2

    await until(expired)
    assert await replicas.leader() is heir
    assert await replicas.term() == term + 1
    await replicas.healed(sale, epoch=term + 1)
    assert (await replicas.gate(sale))["left"] == 3
    if how == signal.SIGSTOP:
        leader.send(signal.SIGCONT)

        async def stands_back() -> bool:
            return '"leads no more"' in leader.log.read_text()

        await until(stands_back)
        assert await replicas.leader() is heir
        await replicas.healed(sale, epoch=term + 1)
    assert await books(replicas.db) == []


async def test_the_leader_closes_sales_and_ends_many_holds(replicas: Replicas) -> None:
    sale, ended = await a_sale(replicas.db, units=1500), await a_sale(replicas.db, units=7, stock=9)
    held = []
    for _ in range(12):
        outcomes = await replicas.both[0].reserve([a_wish(sale) for _ in range(100)])
        assert outcomes
        held += [uuid.UUID(outcome.reservation.id) for outcome in outcomes]

    await hold_ended(replicas.db, *held)
    await sale_ended(replicas.db, ended.id)

    async def done() -> bool:
        query = "SELECT closed_as, returned FROM flash_sales WHERE id = :id"
        closed = await rows_of(replicas.db, query, id=ended.id) == [("ENDED", 7)]
        return closed and await replicas.remaining(sale) == 1500

    await until(done)
    await replicas.healed(sale)
    assert await books(replicas.db) == []


async def test_units_taken_by_a_process_that_died_are_on_sale_again(replicas: Replicas) -> None:
    """It had taken tokens, and never came to PostgreSQL."""
    sale, term = await a_sale(replicas.db, units=UNITS), await replicas.term()
    await replicas.healed(sale)
    async with aclosing(Gate(replicas.valkey.url, lambda: term)) as gate:
        assert await gate.refused([a_hold(of_sale(sale)) for _ in range(UNITS)]) == {}
    outcomes = await replicas.both[0].reserve([a_wish(sale)])
    assert outcomes
    assert outcomes[0].refusal.reason == "SOLD_OUT"

    async with Crowd(replicas, sale).buying() as crowd:
        await crowd.has_bought(UNITS)
    await assert_sold(replicas, sale, crowd)


async def test_a_process_killed_in_the_rush_strands_nothing(replicas: Replicas) -> None:
    sale, leader = await a_sale(replicas.db, units=UNITS), await replicas.leader()
    async with Crowd(replicas, sale, buyers=24).buying() as crowd:
        await crowd.has_bought(UNITS // 3)
        await leader.end()
        await crowd.has_bought(UNITS)
    await assert_sold(replicas, sale, crowd)


async def flush(replicas: Replicas, _crowd: Crowd) -> None:
    async with redis.asyncio.Redis.from_url(replicas.valkey.url) as client:
        await client.flushall()


async def restart_empty(replicas: Replicas, _crowd: Crowd) -> None:
    replicas.valkey.kill()
    replicas.valkey.start()


async def restart_with_an_old_dump(replicas: Replicas, crowd: Crowd) -> None:
    async with redis.asyncio.Redis.from_url(replicas.valkey.url) as client:
        await client.save()
    await crowd.has_bought(UNITS * 2 // 3)
    replicas.valkey.kill()
    replicas.valkey.start()
    replicas.valkey.forget()


async def away(replicas: Replicas, crowd: Crowd) -> None:
    replicas.valkey.kill()
    await crowd.has_bought(UNITS * 2 // 3)
    replicas.valkey.start()


async def pause(replicas: Replicas, crowd: Crowd) -> None:
    replicas.valkey.pause()
    await crowd.has_bought(UNITS * 2 // 3)
    replicas.valkey.go_on()


async def replace_by_another(replicas: Replicas, _crowd: Crowd) -> None:
    """At the same address, and full of what somebody else put there under the same keys."""
    replicas.valkey.kill()
    replicas.valkey.start()
    async with redis.asyncio.Redis.from_url(replicas.valkey.url) as client:
        for _, sale_id in await rows_of(replicas.db, "SELECT title, id FROM flash_sales"):
            state = {"left": 0, "net": 99, "epoch": 1, "run": "another"}
            await client.hset(keys_of(sale_id)[0], mapping=state)


@pytest.mark.parametrize("fault", [flush, restart_empty, restart_with_an_old_dump, away, pause, replace_by_another])
async def test_whatever_becomes_of_valkey_the_sale_goes_on(
    replicas: Replicas, fault: Callable[[Replicas, Crowd], Awaitable[None]]
) -> None:
    sale = await a_sale(replicas.db, units=UNITS)
    await replicas.healed(sale)
    async with Crowd(replicas, sale).buying() as crowd:
        await crowd.has_bought(UNITS // 3)
        await fault(replicas, crowd)
        await crowd.has_bought(UNITS)
        await replicas.healed(sale)
    await assert_sold(replicas, sale, crowd)
    # Who holds units finds them, although the gate says that nothing is left.
    again = [a_wish(sale)]
    for id_, customer in await rows_of(replicas.db, "SELECT id, customer_id FROM reservations WHERE state = 'HELD'"):
        if id_ in (crowd.held[0], crowd.held[UNITS // 2], crowd.held[-1]):
            again.append(a_wish(sale))
            again[-1].id, again[-1].customer_id = str(id_), str(customer)

    async def found() -> bool:
        outcomes = await replicas.both[0].reserve(again)
        assert outcomes
        return [o.reservation.state for o in outcomes] == [0, State.HELD, State.HELD, State.HELD]

    await until(found)
    # And units that come back can be bought.
    (back,) = await settling.release(replicas.db, crowd.held[:1])
    assert isinstance(back, Reservation)
    async with Crowd(replicas, sale, buyers=1).buying() as late:
        await late.has_bought(1)
    assert await books(replicas.db) == []


async def test_a_process_paused_in_the_rush_holds_nobody_up_for_long(replicas: Replicas) -> None:
    """It may have locked the sale; then PostgreSQL ends its transaction."""
    sale, leader = await a_sale(replicas.db, units=UNITS), await replicas.leader()
    follower = replicas.other(leader)
    async with Crowd(replicas, sale, buyers=16).buying() as crowd:
        await crowd.has_bought(UNITS // 3)
        follower.send(signal.SIGSTOP)
        await crowd.has_bought(UNITS)
        follower.send(signal.SIGCONT)
    await assert_sold(replicas, sale, crowd)
    assert await replicas.leader() is leader
    await asyncio.gather(*(replica.ready() for replica in replicas.both))
