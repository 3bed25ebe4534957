"""The admission gate: it may only refuse, and whatever becomes of it, PostgreSQL decides."""

import asyncio
import contextlib
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import redis.asyncio
from prometheus_client import REGISTRY

from services.chassis import ids
from services.chassis.data.db import Database
from services.chassis.errors import Unavailable
from services.inventory import gate as gates
from services.inventory import reserving, sales, settling
from services.inventory.domain import CustomerLimit, FlashSaleNotFound, Hold, OutOfStock, Reservation, SoldOut
from services.inventory.gate import Gate, keys_of
from tests.integration.inventory.conftest import (
    EPOCH,
    a_hold,
    a_product,
    a_sale,
    books,
    heal,
    hold_ended,
    holding,
    left,
    of_sale,
    of_stock,
    statements,
    takers,
)
from tests.support.infra import Infra, _free_port
from tests.support.valkey import Valkey, a_valkey


@pytest.fixture
async def no_gate() -> AsyncIterator[Gate]:
    """A gate whose Valkey nobody runs: bound, so that nobody else can listen there either."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        async with aclosing(Gate(f"redis://127.0.0.1:{port.getsockname()[1]}/0", lambda: EPOCH)) as gate:
            yield gate


@contextlib.contextmanager
def round_trips(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[uuid.UUID]]]:
    """The scripts that a gate sends meanwhile, a list for each round trip."""
    seen: list[list[uuid.UUID]] = []
    send = gate._send

    async def counted(command: str, script: str, calls: Any) -> Any:
        seen.append([sale_id for sale_id, _ in calls])
        return await send(command, script, calls)

    with monkeypatch.context() as patched:
        patched.setattr(gate, "_send", counted)
        yield seen


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


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
        # In batches, as calls come. A hundred connections at once take longer than the gate is waited for.
        crowd = [[a_hold(of_sale(sale)) for _ in range(10)] for _ in range(10)]
        outcomes = await asyncio.gather(*(reserving.admit(db, gate, holds) for holds in crowd))

    assert sum(isinstance(outcome, Reservation) for batch in outcomes for outcome in batch) == 10
    assert 1 <= sum("INSERT INTO reservations" in statement for statement in seen) <= 10
    assert await left(gate, sale) == 0
    assert await books(db) == []


async def test_a_holder_who_repeats_passes_a_sold_out_gate(db: Database, gate: Gate) -> None:
    sale = await a_sale(db, units=1)
    await heal(gate, db)
    hold = a_hold(of_sale(sale))
    (first,) = await reserving.admit(db, gate, [hold])
    assert isinstance(first, Reservation)

    again, other = await reserving.admit(db, gate, [hold, a_hold(of_sale(sale))])

    assert again == replace(first, repeated=True)
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
    assert await takers(gate, plenty, known=False) == set()


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


async def test_without_valkey_everybody_passes_and_nothing_is_oversold(db: Database, no_gate: Gate) -> None:
    sale = await a_sale(db, units=5)

    outcomes = await asyncio.gather(*(reserving.admit(db, no_gate, [a_hold(of_sale(sale))]) for _ in range(30)))

    assert sum(isinstance(batch[0], Reservation) for batch in outcomes) == 5
    assert sum(isinstance(batch[0], SoldOut) for batch in outcomes) == 25
    await no_gate.give_back_reservations([batch[0] for batch in outcomes if isinstance(batch[0], Reservation)])
    assert await books(db) == []


async def test_a_valkey_that_does_not_answer_is_left_alone_and_one_asks_for_all(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs: the first pay a quarter of a second, the others nothing."""
    sale, connections = await a_sale(db, units=30), 0

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with contextlib.suppress(ConnectionError):
            while await reader.read(1024):
                pass
        writer.close()

    server = await asyncio.start_server(silence, "127.0.0.1", 0)
    monkeypatch.setattr(gates, "_PAUSE_SECONDS", 0.05)
    bypassed = counted("stampede_gate_bypassed_total", why="away")
    async with aclosing(Gate(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", lambda: EPOCH)) as gate:
        async with asyncio.timeout(5):
            (outcome,) = await reserving.admit(db, gate, [a_hold(of_sale(sale))])
            assert isinstance(outcome, Reservation)
            assert connections == 1
            with round_trips(gate, monkeypatch) as seen:
                while connections < 4:  # whoever asks goes on to ask
                    await reserving.admit(db, gate, [a_hold(of_sale(sale))])
            assert seen == []
    server.close()
    assert counted("stampede_gate_bypassed_total", why="away") > bypassed + 1


async def test_a_batch_asks_the_gate_once_however_many_sales_it_wants(
    db: Database, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = [await a_sale(db, units=1) for _ in range(5)]
    await heal(gate, db)
    await gate.refused([a_hold(of_sale(several[0], 2))])  # from here on the script is known

    with round_trips(gate, monkeypatch) as seen:
        assert await gate.refused([a_hold(of_sale(sale)) for sale in several for _ in range(3)])

    assert seen == [[sale.id for sale in several]]


async def test_a_server_that_does_not_know_the_script_is_told(db: Database, gate: Gate) -> None:
    sale = await a_sale(db, units=1)
    await heal(gate, db)
    await gate.valkey.script_flush()

    assert await gate.refused([a_hold(of_sale(sale))]) == {}
    assert len(await gate.refused([a_hold(of_sale(sale))])) == 1


@pytest.mark.parametrize(("known", "refuses"), [(EPOCH, True), (EPOCH - 1, True), (EPOCH + 1, False), (None, False)])
async def test_a_gate_of_an_older_epoch_and_a_process_that_knows_none_refuse_nobody(
    db: Database, infra: Infra, gate: Gate, known: int | None, refuses: bool
) -> None:
    """A process may be a second behind; what it must never believe is what was written before the leader it knows."""
    sale = await a_sale(db, units=1)
    await holding(db, of_sale(sale))
    await heal(gate, db)

    async with aclosing(Gate(infra.valkey_url, lambda: known)) as of_process:
        refused = await of_process.refused([a_hold(of_sale(sale))])

    assert bool(refused) is refuses


async def test_whom_an_emptied_gate_lets_pass_is_written_down_all_the_same(db: Database, gate: Gate) -> None:
    sale, empty = await a_sale(db, units=3), counted("stampede_gate_bypassed_total", why="empty")
    hold = a_hold(of_sale(sale, 2))

    assert await gate.refused([hold]) == {}
    await heal(gate, db)

    assert await takers(gate, sale, known=False) == {hold.id}
    assert await left(gate, sale) == 1
    assert counted("stampede_gate_bypassed_total", why="empty") == empty + 1


async def test_the_same_id_with_other_lines_does_not_cost_the_first_its_place(db: Database, gate: Gate) -> None:
    sale = await a_sale(db, units=2)
    await heal(gate, db)
    hold = a_hold(of_sale(sale))
    await reserving.admit(db, gate, [hold, a_hold(of_sale(sale))])
    await heal(gate, db)

    other = Hold(hold.id, hold.customer_id, (of_sale(sale, 2),), hold.seconds)
    (refused,) = await reserving.admit(db, gate, [other])
    (repeated,) = await reserving.admit(db, gate, [hold])

    assert not isinstance(refused, Reservation)
    assert isinstance(repeated, Reservation)
    assert await left(gate, sale) == 0


@pytest.mark.parametrize("committed", [True, False])
async def test_after_an_error_nobody_knows_of_units_are_free_and_a_repeat_passes(
    db: Database, gate: Gate, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """The connection was lost around the commit. The client repeats its request, others have taken all there was."""
    sale, hold = await a_sale(db, units=1), None
    await heal(gate, db)
    hold = a_hold(of_sale(sale))
    reserve = reserving.reserve

    async def lost(*args: Any) -> Any:
        if committed:
            await reserve(*args)
        raise Unavailable(part="database")

    with monkeypatch.context() as patched:
        patched.setattr(reserving, "reserve", lost)
        with pytest.raises(Unavailable):
            await reserving.admit(db, gate, [hold])
    assert await left(gate, sale) == 1
    await reserving.admit(db, gate, [a_hold(of_sale(sale))])
    (outcome,) = await reserving.admit(db, gate, [hold])

    assert isinstance(outcome, Reservation if committed else SoldOut)
    assert await books(db) == []
    await heal(gate, db)
    assert await left(gate, sale) == 0


async def test_a_gate_that_promises_too_much_never_oversells(db: Database, gate: Gate) -> None:
    sale = await a_sale(db, units=5)
    await heal(gate, db)
    await gate.valkey.hset(keys_of(sale.id)[0], "left", 1000)

    outcomes = await asyncio.gather(*(reserving.admit(db, gate, [a_hold(of_sale(sale))]) for _ in range(40)))

    assert sum(isinstance(batch[0], Reservation) for batch in outcomes) == 5
    assert (await sales.get_sale(db, sale.id)).held == 5
    assert await books(db) == []


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


async def test_who_is_over_the_limit_takes_no_token_and_asks_postgresql_once_in_a_while(
    db: Database, gate: Gate
) -> None:
    sale, greedy = await a_sale(db, units=2, per_customer_limit=1), ids.new()
    await heal(gate, db)
    (mine,) = await reserving.admit(db, gate, [a_hold(of_sale(sale), customer_id=greedy)])
    again = [a_hold(of_sale(sale), customer_id=greedy) for _ in range(3)]
    assert await gate.refused(again) == {}, "only PostgreSQL knows for certain"
    assert await left(gate, sale) == 1, "the last unit is kept from others"
    assert [type(o) for o in await reserving.admit(db, gate, again)] == [CustomerLimit] * 3

    with statements(db) as asked:
        outcomes = await reserving.admit(db, gate, [a_hold(of_sale(sale), customer_id=greedy), *again])
    assert ([type(o) for o in outcomes], asked) == ([CustomerLimit] * 4, [])
    assert isinstance(outcomes[0], CustomerLimit)
    assert outcomes[0].metadata == {"flashSaleId": str(sale.id), "limit": "1"}

    assert isinstance(mine, Reservation)
    await gate.give_back_reservations([o for o in await settling.release(db, [mine.id]) if isinstance(o, Reservation)])
    (back,) = await reserving.admit(db, gate, [a_hold(of_sale(sale), customer_id=greedy)])
    assert isinstance(back, Reservation), "the allowance is back at once"
    await reserving.admit(db, gate, [a_hold(of_sale(sale))])
    (late,) = await reserving.admit(db, gate, [a_hold(of_sale(sale), customer_id=greedy)])
    assert isinstance(late, SoldOut)
    assert await books(db) == []


async def test_who_is_cancelled_while_the_gate_is_asked_ends(db: Database, gate: Gate) -> None:
    """A leader must not go on because it was asking just then."""
    sale = await a_sale(db, units=1)

    async def ask_for_ever() -> None:
        while True:
            await gate.refused([a_hold(of_sale(sale))])

    for steps in range(100):
        asking = asyncio.create_task(ask_for_ever())
        for _ in range(steps):
            await asyncio.sleep(0)
        asking.cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(asking, return_exceptions=True)
        assert asking.cancelled()


async def test_nothing_is_kept_for_ever(db: Database, gate: Gate) -> None:
    sale = await a_sale(db, units=9, per_customer_limit=1)
    stranger = a_hold(type(of_stock(ids.new()))(ids.new(), uuid.uuid4(), 1))
    await gate.refused([stranger, a_hold(of_sale(sale))])
    await reserving.admit(db, gate, [a_hold(of_sale(sale)), a_hold(of_sale(sale))])
    (held,) = await reserving.admit(db, gate, [a_hold(of_sale(sale))])
    assert isinstance(held, Reservation)
    await gate.give_back_reservations([held])
    await heal(gate, db)
    greedy = ids.new()
    for _ in range(2):
        await reserving.admit(db, gate, [a_hold(of_sale(sale), customer_id=greedy)])

    keys = await gate.valkey.keys("*")
    assert {key.decode() for key in keys} > set(keys_of(sale.id))
    assert all([0 < await gate.valkey.ttl(key) <= gates.LIFETIME_SECONDS for key in keys])


async def test_the_gate_works_on_a_cluster(db: Database) -> None:
    # Its own port for the cluster: the default lies 10,000 higher, which may be too high.
    with a_valkey("--cluster-enabled", "yes", "--cluster-port", str(_free_port())) as server:
        await make_cluster(server)
        async with aclosing(Gate(server.url, lambda: EPOCH, cluster=True)) as gate:
            await _sell_out(db, gate)
            server.kill()
            server.start()
            await until_a_cluster(server)
            (passes,) = await reserving.admit(db, gate, [a_hold(of_sale(await a_sale(db, units=1)))])
            assert isinstance(passes, Reservation)
            async with asyncio.timeout(10):
                await gate.there.wait()
            await _sell_out(db, gate)


async def _sell_out(db: Database, gate: Gate) -> None:
    """Sells all units of many sales, in holds of one line and of two; what the gate counts is what remains."""
    first, *others = [await a_sale(db, units=4) for _ in range(20)]
    await heal(gate, db)
    for wish in (lambda sale: (of_sale(sale), of_sale(first)), lambda sale: (of_sale(sale),)):
        batches = [[a_hold(*wish(sale)) for sale in others] for _ in range(5)]
        await asyncio.gather(*(reserving.admit(db, gate, batch) for batch in batches))
    assert {(await sales.get_sale(db, sale.id)).remaining for sale in (first, *others)} == {0}
    assert {await left(gate, sale) for sale in (first, *others)} == {0}
    await heal(gate, db)
    with statements(db) as seen:
        (refused,) = await reserving.admit(db, gate, [a_hold(of_sale(first))])
    assert isinstance(refused, SoldOut)
    assert seen == []
    assert await books(db) == []


async def make_cluster(server: Valkey) -> None:
    async with redis.asyncio.Redis.from_url(server.url) as node:
        await node.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
    await until_a_cluster(server)


async def until_a_cluster(server: Valkey) -> None:
    async with asyncio.timeout(10), redis.asyncio.Redis.from_url(server.url) as node:
        while b"cluster_state:ok" not in await node.execute_command("CLUSTER", "INFO"):
            pass
