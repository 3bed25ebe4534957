"""The admission gate: it may only refuse, and whatever becomes of it, PostgreSQL decides."""

import asyncio
import contextlib
import socket
import uuid
from typing import Any

import pytest

from services.chassis import ids
from services.chassis.db import Database
from services.inventory import actions, reserving, settling
from services.inventory import gate as gates
from services.inventory.domain import CustomerLimit, FlashSaleNotFound, Hold, OutOfStock, Reservation, SoldOut
from services.inventory.gate import Gate
from tests.integration.inventory.conftest import (
    a_hold,
    a_product,
    a_sale,
    books,
    hold_ended,
    holding,
    of_sale,
    of_stock,
    statements,
)


async def heal(gate: Gate, db: Database) -> None:
    """One round of healing, as a process that has just started does it."""
    await gate._heal_once(db, set())


async def left(gate: Gate, sale: Any) -> int | None:
    value = await gate._valkey.get(gates._keys(sale.id)[0])
    return None if value is None else int(value)


async def holders(gate: Gate, sale: Any) -> set[uuid.UUID]:
    return {uuid.UUID(key.decode()) for key in await gate._valkey.hkeys(gates._keys(sale.id)[1])}


async def set_left(gate: Gate, sale: Any, units: int) -> None:
    await gate._valkey.set(gates._keys(sale.id)[0], units)


@pytest.fixture
async def no_gate() -> Any:
    """A gate whose Valkey nobody runs: bound, so that nobody else can listen there either."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        gate = Gate(f"redis://127.0.0.1:{port.getsockname()[1]}/0")
        yield gate
        await gate.close()


async def test_whom_the_gate_refuses_costs_no_statement(db: Database, gate: Gate) -> None:
    sale = await a_sale(db, units=2)
    await holding(db, of_sale(sale, 2))
    await heal(gate, db)

    with statements(db) as seen:
        outcomes = await reserving.admit(db, gate, [a_hold(of_sale(sale)) for _ in range(50)])

    assert all(
        isinstance(o, SoldOut) and o.metadata == {"flashSaleId": str(sale.id), "remaining": "0"} for o in outcomes
    )
    assert seen == []


async def test_a_rush_through_the_gate_sells_each_unit_once_and_troubles_postgresql_little(
    db: Database, gate: Gate
) -> None:
    sale = await a_sale(db, units=10)
    await heal(gate, db)

    with statements(db) as seen:
        outcomes = await asyncio.gather(*(reserving.admit(db, gate, [a_hold(of_sale(sale))]) for _ in range(100)))

    assert sum(isinstance(batch[0], Reservation) for batch in outcomes) == 10
    assert sum("INSERT INTO reservations" in statement for statement in seen) == 10
    assert await left(gate, sale) == 0
    assert await books(db) == []


async def test_a_holder_who_repeats_passes_a_sold_out_gate(db: Database, gate: Gate) -> None:
    sale = await a_sale(db, units=1)
    await heal(gate, db)
    hold = a_hold(of_sale(sale))
    (first,) = await reserving.admit(db, gate, [hold])

    again, other = await reserving.admit(db, gate, [hold, a_hold(of_sale(sale))])

    assert again == first
    assert isinstance(other, SoldOut)
    assert await left(gate, sale) == 0


async def test_what_a_hold_of_several_lines_half_took_goes_back(db: Database, gate: Gate) -> None:
    plenty, scarce, more = [await a_sale(db, units=units) for units in (5, 1, 5)]
    plain = await a_product(db)
    await heal(gate, db)
    hold = a_hold(of_sale(plenty, 2), of_stock(plain), of_sale(scarce, 2), of_sale(more, 3))

    (outcome,) = await reserving.admit(db, gate, [hold])

    assert isinstance(outcome, SoldOut)
    assert outcome.metadata == {"flashSaleId": str(scarce.id), "remaining": "1"}
    assert [await left(gate, sale) for sale in (plenty, scarce, more)] == [5, 1, 5]
    assert await holders(gate, plenty) == set()


async def test_whom_postgresql_refuses_gives_the_gate_its_units_back(db: Database, gate: Gate) -> None:
    sale, empty = await a_sale(db, units=5, per_customer_limit=1), await a_product(db, on_hand=1)
    await heal(gate, db)
    customer = ids.new()

    outcomes = await reserving.admit(
        db, gate,
        [
            a_hold(of_sale(sale), customer_id=customer), a_hold(of_sale(sale), customer_id=customer),
            a_hold(of_sale(sale), of_stock(empty, 2)),
        ],
    )  # fmt: skip

    assert [type(o) for o in outcomes] == [Reservation, CustomerLimit, OutOfStock]
    assert await left(gate, sale) == 4
    assert await books(db) == []


async def test_units_are_given_back_once_however_often_it_is_said(db: Database, gate: Gate) -> None:
    sale = await a_sale(db, units=5)
    await heal(gate, db)
    (held,) = await reserving.admit(db, gate, [a_hold(of_sale(sale, 2))])
    assert isinstance(held, Reservation)
    assert await left(gate, sale) == 3

    for _ in range(3):
        await gate.give_back_reservations([held])

    assert await left(gate, sale) == 5


async def test_a_token_that_leaked_comes_back_by_healing(db: Database, gate: Gate) -> None:
    """A process took it from the gate, and died before it wrote the hold."""
    sale = await a_sale(db, units=1)
    await heal(gate, db)
    assert await gate.refused([a_hold(of_sale(sale))]) == {}
    assert isinstance((await reserving.admit(db, gate, [a_hold(of_sale(sale))]))[0], SoldOut)

    await heal(gate, db)

    assert isinstance((await reserving.admit(db, gate, [a_hold(of_sale(sale))]))[0], Reservation)
    assert await books(db) == []


async def test_without_valkey_everybody_passes_and_nothing_is_oversold(db: Database, no_gate: Gate) -> None:
    sale = await a_sale(db, units=5)

    outcomes = await asyncio.gather(*(reserving.admit(db, no_gate, [a_hold(of_sale(sale))]) for _ in range(30)))

    assert sum(isinstance(batch[0], Reservation) for batch in outcomes) == 5
    assert sum(isinstance(batch[0], SoldOut) for batch in outcomes) == 25
    await no_gate.give_back_reservations([batch[0] for batch in outcomes if isinstance(batch[0], Reservation)])
    assert await books(db) == []


async def test_a_valkey_that_does_not_answer_is_left_alone_for_a_while(
    db: Database, no_gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    sale, asked = await a_sale(db, units=5), []
    take = no_gate._take

    async def counted(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs)
        return await take(*args, **kwargs)

    monkeypatch.setattr(no_gate, "_take", counted)
    for _ in range(3):
        assert await no_gate.refused([a_hold(of_sale(sale))]) == {}

    assert len(asked) == 1


async def test_a_valkey_that_hangs_costs_a_quarter_of_a_second_and_no_error(db: Database) -> None:
    sale = await a_sale(db, units=1)

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(1024):
                pass
        writer.close()

    server = await asyncio.start_server(silence, "127.0.0.1", 0)
    gate = Gate(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
    try:
        async with asyncio.timeout(3):
            (outcome,) = await reserving.admit(db, gate, [a_hold(of_sale(sale))])
        assert isinstance(outcome, Reservation)
    finally:
        await gate.close()
        server.close()


async def test_a_gate_that_was_emptied_in_mid_sale_heals_with_its_holders(db: Database, gate: Gate) -> None:
    sale = await a_sale(db, units=3)
    await heal(gate, db)
    hold = a_hold(of_sale(sale, 2))
    await reserving.admit(db, gate, [hold])

    await gate._valkey.flushall()
    (passes,) = await reserving.admit(db, gate, [a_hold(of_sale(sale))])  # nothing is known: PostgreSQL decides
    assert isinstance(passes, Reservation)
    # A process that has been healing all along notices that its keys are gone.
    await gate._heal_once(db, {sale.id})

    assert await left(gate, sale) == 0
    assert await holders(gate, sale) == {hold.id, passes.id}
    again, other = await reserving.admit(db, gate, [hold, a_hold(of_sale(sale))])
    assert isinstance(again, Reservation)
    assert isinstance(other, SoldOut)
    assert await books(db) == []


async def test_a_gate_that_promises_too_much_never_oversells(db: Database, gate: Gate) -> None:
    sale = await a_sale(db, units=5)
    await set_left(gate, sale, 1000)

    outcomes = await asyncio.gather(*(reserving.admit(db, gate, [a_hold(of_sale(sale))]) for _ in range(40)))

    assert sum(isinstance(batch[0], Reservation) for batch in outcomes) == 5
    assert (await actions.get_sale(db, sale.id)).held == 5
    assert await books(db) == []


async def test_a_gate_that_promises_too_little_heals(db: Database, gate: Gate) -> None:
    sale = await a_sale(db, units=5)
    await set_left(gate, sale, 0)
    assert isinstance((await reserving.admit(db, gate, [a_hold(of_sale(sale))]))[0], SoldOut)

    await heal(gate, db)

    assert isinstance((await reserving.admit(db, gate, [a_hold(of_sale(sale))]))[0], Reservation)


async def test_units_of_ended_holds_can_be_bought_again_through_the_gate(db: Database, gate: Gate) -> None:
    sale = await a_sale(db, units=1)
    await heal(gate, db)
    (held,) = await reserving.admit(db, gate, [a_hold(of_sale(sale))])
    assert isinstance(held, Reservation)
    await hold_ended(db, held.id)

    await gate.give_back_reservations(await settling.expire(db))

    assert isinstance((await reserving.admit(db, gate, [a_hold(of_sale(sale))]))[0], Reservation)
    assert await left(gate, sale) == 0


async def test_the_gate_knows_nothing_of_sales_that_are_not_open(db: Database, gate: Gate) -> None:
    unknown = Hold(ids.new(), ids.new(), (of_stock(ids.new()),), 60)
    stranger = a_hold(type(unknown.lines[0])(ids.new(), uuid.uuid4(), 1))
    assert await gate.refused([unknown, stranger]) == {}
    assert isinstance((await reserving.admit(db, gate, [stranger]))[0], FlashSaleNotFound)


async def test_healing_goes_on_after_valkey_was_away(
    db: Database, no_gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop neither ends nor raises; it looks again."""
    await a_sale(db, units=1)
    looked, twice = [], asyncio.Event()
    once = no_gate._heal_once

    async def counted(*args: Any) -> Any:
        looked.append(args)
        if len(looked) == 2:
            twice.set()
        return await once(*args)

    monkeypatch.setattr(no_gate, "_heal_once", counted)
    monkeypatch.setattr(gates, "HEAL_SECONDS", 0.01)
    task = asyncio.create_task(no_gate.keep_healing(db))
    async with asyncio.timeout(5):
        await twice.wait()
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
