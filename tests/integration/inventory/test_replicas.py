"""Two processes of inventory behave as one: sell each unit once, have one leader, and lose nothing when one is lost."""

import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.inventory.conftest import a_sale, books, hold_ended, rows_of, state_of
from tests.integration.inventory.replicas import Crowd, Replicas, State, a_wish, two_processes
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
    """Every unit went to one buyer; the books are in order, and the gate counts no unit left."""
    assert len(crowd.held) == len(set(crowd.held)) == UNITS
    assert await replicas.remaining(sale) == 0
    assert await books(replicas.db) == []
    await replicas.rebuilt(sale)


async def test_two_processes_sell_each_unit_once_though_the_leader_is_killed(replicas: Replicas) -> None:
    sale, leader = await a_sale(replicas.db, units=UNITS), await replicas.leader()
    async with Crowd(replicas, sale, buyers=24).buying() as crowd:
        await crowd.has_bought(UNITS // 3)
        await leader.end()
        await crowd.has_bought(UNITS)
    await assert_sold(replicas, sale, crowd)


async def test_when_the_leader_is_paused_the_other_expires_holds_and_rebuilds(replicas: Replicas) -> None:
    sale, leader = await a_sale(replicas.db, units=5), await replicas.leader()
    heir = replicas.other(leader)
    outcomes = await heir.reserve([a_wish(sale) for _ in range(5)])
    assert outcomes
    held = [uuid.UUID(outcome.reservation.id) for outcome in outcomes]

    leader.send(signal.SIGSTOP)
    await hold_ended(replicas.db, *held[:3])

    async def expired() -> bool:
        return [await state_of(replicas.db, id_) for id_ in held] == ["EXPIRED"] * 3 + ["HELD"] * 2

    await until(expired)
    assert await replicas.leader() is heir
    await replicas.rebuilt(sale)
    leader.send(signal.SIGCONT)

    async def stops_leading() -> bool:
        return '"leads no more"' in leader.log.read_text()

    await until(stops_leading)
    assert await replicas.leader() is heir
    await replicas.rebuilt(sale)
    assert await books(replicas.db) == []


async def test_while_valkey_is_down_the_sale_goes_on(replicas: Replicas) -> None:
    sale = await a_sale(replicas.db, units=UNITS)
    await replicas.rebuilt(sale)
    async with Crowd(replicas, sale).buying() as crowd:
        await crowd.has_bought(UNITS // 3)
        replicas.valkey.kill()
        await crowd.has_bought(UNITS * 2 // 3)
        replicas.valkey.start()
        await crowd.has_bought(UNITS)
    await assert_sold(replicas, sale, crowd)
    # A customer who holds units finds them, although the gate counts no unit left.
    again = []
    for id_, customer in await rows_of(replicas.db, "SELECT id, customer_id FROM reservations WHERE state = 'HELD'"):
        if id_ in (crowd.held[0], crowd.held[UNITS // 2], crowd.held[-1]):
            again.append(a_wish(sale))
            again[-1].id, again[-1].customer_id = str(id_), str(customer)

    async def found() -> bool:
        outcomes = await replicas.both[0].reserve([a_wish(sale), *again])
        assert outcomes
        return [o.reservation.state for o in outcomes] == [0, State.HELD, State.HELD, State.HELD]

    await until(found)
    assert await books(replicas.db) == []
