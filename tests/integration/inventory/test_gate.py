"""The admission gate: it only refuses, is rebuilt, and PostgreSQL decides whatever its state is."""

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
from services.inventory import sales
from services.inventory.domain import CustomerLimit, Line, OutOfStock, Reservation, SaleNotLive, SaleState, SoldOut
from services.inventory.gate import gate as gates
from services.inventory.gate import rebuild as rebuilds
from services.inventory.gate.gate import Gate, keys_of
from services.inventory.gate.rebuild import Rebuild
from services.inventory.reservations import reserve, settle
from tests.integration.inventory.conftest import (
    a_hold,
    a_product,
    a_sale,
    books,
    holders,
    holding,
    left,
    of_sale,
    of_stock,
    rebuild,
    run_sql,
    statements,
)
from tests.support.ports import free_port
from tests.support.valkey import Valkey, a_valkey


@pytest.fixture
async def no_valkey() -> AsyncIterator[Gate]:
    """A gate whose port is bound and not listened on."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        async with aclosing(Gate(f"redis://127.0.0.1:{port.getsockname()[1]}/0")) as gate:
            yield gate


@contextlib.contextmanager
def round_trips(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[uuid.UUID]]]:
    """The sales of each pipeline that a gate sends meanwhile."""
    seen: list[list[uuid.UUID]] = []
    send = gate._send

    async def counted(command: str, script: Any, calls: Any) -> Any:
        seen.append([sale_id for sale_id, _ in calls])
        return await send(command, script, calls)

    with monkeypatch.context() as patched:
        patched.setattr(gate, "_send", counted)
        yield seen


def bypassed(why: str) -> float:
    return REGISTRY.get_sample_value("stampede_gate_bypassed_total", {"why": why}) or 0.0


async def refuses(gate: Gate, *lines: Line, **fields: Any) -> bool:
    return bool((await gate.take([a_hold(*lines, **fields)]))[1])


async def test_refused_holds_cost_no_statement(db: Database, gate: Gate) -> None:
    sale = await a_sale(db, units=2)
    await holding(db, of_sale(sale, 2))
    await rebuild(gate, db)

    with statements(db) as seen:
        outcomes = await reserve.admit(db, gate, [a_hold(of_sale(sale)) for _ in range(50)])

    refused = {"flashSaleId": str(sale.id), "remaining": "0"}
    assert all(isinstance(o, SoldOut) and o.metadata == refused for o in outcomes)
    assert seen == []


async def test_a_rush_sells_each_unit_once_with_few_statements(db: Database, gate: Gate) -> None:
    sale = await a_sale(db, units=10)
    await rebuild(gate, db)
    crowd = [[a_hold(of_sale(sale)) for _ in range(10)] for _ in range(10)]

    with statements(db) as seen:
        outcomes = await asyncio.gather(*(reserve.admit(db, gate, holds) for holds in crowd))

    assert sum(isinstance(outcome, Reservation) for batch in outcomes for outcome in batch) == 10
    assert 1 <= sum("INSERT INTO reservations" in statement for statement in seen) <= 10
    assert await left(gate, sale) == 0
    assert await books(db) == []


async def test_a_gate_that_promises_too_much_never_oversells(db: Database, gate: Gate) -> None:
    """PostgreSQL refuses, and the units that it does not have do not go on sale at the gate again."""
    sale = await a_sale(db, units=5)
    await rebuild(gate, db)
    await gate.valkey.set(keys_of(sale.id)[0], 12)

    outcomes = [(await reserve.admit(db, gate, [a_hold(of_sale(sale))]))[0] for _ in range(20)]

    assert sum(isinstance(outcome, Reservation) for outcome in outcomes) == 5
    assert (await sales.get_sale(db, sale.id)).held == 5
    assert await left(gate, sale) == 0
    assert len(await holders(gate, sale)) == 5
    assert await books(db) == []


async def test_a_customer_who_holds_units_passes_a_sold_out_gate(db: Database, gate: Gate) -> None:
    """Also with an order over several sales, and after its payment."""
    sale, other = await a_sale(db, units=1), await a_sale(db, units=1)
    await rebuild(gate, db)
    hold = a_hold(of_sale(other), of_sale(sale))
    (first,) = await reserve.admit(db, gate, [hold])
    assert isinstance(first, Reservation)

    again, late = await reserve.admit(db, gate, [hold, a_hold(of_sale(sale))])
    await settle.confirm(db, [hold.id])
    await rebuild(gate, db)
    (paid,) = await reserve.admit(db, gate, [hold])

    assert again == replace(first, repeated=True)
    assert isinstance(late, SoldOut)
    assert isinstance(paid, Reservation)
    assert await left(gate, sale) == await left(gate, other) == 0


async def test_a_repeat_gives_back_what_it_took_at_the_gate(db: Database, gate: Gate) -> None:
    sale = await a_sale(db, units=5)
    await rebuild(gate, db)
    hold = a_hold(of_sale(sale, 2))

    await reserve.admit(db, gate, [hold])
    await reserve.admit(db, gate, [hold])

    assert await left(gate, sale) == 3
    assert await holders(gate, sale) == {hold.customer_id: 2}


async def test_a_refused_hold_gives_its_other_lines_back(db: Database, gate: Gate) -> None:
    plenty, scarce, more = [await a_sale(db, units=units) for units in (5, 1, 5)]
    plain = await a_product(db)
    await rebuild(gate, db)
    hold = a_hold(of_sale(plenty, 2), of_stock(plain), of_sale(scarce, 2), of_sale(more, 3))

    (outcome,) = await reserve.admit(db, gate, [hold])

    assert isinstance(outcome, SoldOut)
    assert outcome.metadata == {"flashSaleId": str(scarce.id), "remaining": "1"}
    assert [await left(gate, sale) for sale in (plenty, scarce, more)] == [5, 1, 5]
    assert await holders(gate, plenty) == {}


async def test_a_hold_that_postgresql_refuses_gives_its_units_back(db: Database, gate: Gate) -> None:
    sale, empty = await a_sale(db, units=5, per_customer_limit=1), await a_product(db, on_hand=1)
    await rebuild(gate, db)
    batch = [a_hold(of_sale(sale), customer_id=(customer := ids.new())), a_hold(of_sale(sale), customer_id=customer)]

    outcomes = await reserve.admit(db, gate, [*batch, a_hold(of_sale(sale), of_stock(empty, 2))])

    assert [type(o) for o in outcomes] == [Reservation, CustomerLimit, OutOfStock]
    assert await left(gate, sale) == 4
    assert await holders(gate, sale) == {customer: 1}
    assert await books(db) == []


@pytest.mark.parametrize("committed", [True, False])
async def test_after_a_lost_commit_units_go_on_sale_and_the_rebuild_corrects(
    db: Database, gate: Gate, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """The connection broke around the commit: nobody knows whether the unit is held."""
    sale = await a_sale(db, units=1)
    await rebuild(gate, db)
    hold, original = a_hold(of_sale(sale)), reserve.reserve

    async def lost(*args: Any, **_: Any) -> Any:
        if committed:
            await original(*args)
        raise Unavailable(part="database")

    with monkeypatch.context() as patched:
        patched.setattr(reserve, "reserve", lost)
        with pytest.raises(Unavailable):
            await reserve.admit(db, gate, [hold])
    assert await left(gate, sale) == 1
    await rebuild(gate, db)
    (outcome,) = await reserve.admit(db, gate, [hold])

    assert isinstance(outcome, Reservation)
    assert outcome.repeated is committed
    assert await left(gate, sale) == 0
    assert await books(db) == []


async def test_a_repeat_after_a_lost_commit_passes_a_sold_out_gate(
    db: Database, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before the next rebuild: another customer has just found the sale sold out."""
    sale = await a_sale(db, units=1)
    await rebuild(gate, db)
    hold, original = a_hold(of_sale(sale)), reserve.reserve

    async def lost(*args: Any, **_: Any) -> Any:
        await original(*args)
        raise Unavailable(part="database")

    with monkeypatch.context() as patched:
        patched.setattr(reserve, "reserve", lost)
        with pytest.raises(Unavailable):
            await reserve.admit(db, gate, [hold])
    (other,) = await reserve.admit(db, gate, [a_hold(of_sale(sale))])
    assert isinstance(other, SoldOut)
    assert await left(gate, sale) == 0
    (repeat,) = await reserve.admit(db, gate, [hold])

    assert isinstance(repeat, Reservation)
    assert repeat.repeated


async def test_a_batch_costs_one_round_trip_for_all_its_sales(
    db: Database, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = [await a_sale(db, units=1) for _ in range(5)]
    await rebuild(gate, db)
    await gate.valkey.script_flush()
    assert not await refuses(gate, of_sale(several[0]))  # the server learns the script from the second round trip

    with round_trips(gate, monkeypatch) as seen:
        await gate.take([a_hold(of_sale(sale)) for sale in several for _ in range(3)])

    assert seen[0] == [sale.id for sale in several]
    assert len(seen) == 1


# --- Valkey fails ---


async def test_without_valkey_everybody_passes_and_nothing_is_oversold(db: Database, no_valkey: Gate) -> None:
    sale = await a_sale(db, units=5)

    outcomes = await asyncio.gather(*(reserve.admit(db, no_valkey, [a_hold(of_sale(sale))]) for _ in range(30)))

    assert sum(isinstance(batch[0], Reservation) for batch in outcomes) == 5
    assert sum(isinstance(batch[0], SoldOut) for batch in outcomes) == 25
    assert await books(db) == []


async def test_with_the_gate_off_everybody_passes(db: Database) -> None:
    sale = await a_sale(db, units=1)
    async with aclosing(Gate("")) as gate:
        outcomes = [(await reserve.admit(db, gate, [a_hold(of_sale(sale))]))[0] for _ in range(2)]
        assert [type(outcome) for outcome in outcomes] == [Reservation, SoldOut]
        rebuilding = asyncio.create_task(rebuilds.keep_rebuilt(db, gate))
        with statements(db) as seen:
            await asyncio.wait([rebuilding], timeout=0.05)
        rebuilding.cancel()
        assert seen == []


async def test_a_silent_valkey_costs_the_first_batch_a_timeout_and_others_nothing(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sale, connections = await a_sale(db, units=30), 0

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with contextlib.suppress(ConnectionError):
            while await reader.read(1024):
                pass
        writer.close()

    server = await asyncio.start_server(silence, "127.0.0.1", 0)
    monkeypatch.setattr(gates, "_RETRY_SECONDS", 0.05)
    before = bypassed("unavailable")
    async with aclosing(Gate(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")) as gate:
        async with asyncio.timeout(60):
            (outcome,) = await reserve.admit(db, gate, [a_hold(of_sale(sale))])
            assert isinstance(outcome, Reservation)
            assert connections == 1
            with round_trips(gate, monkeypatch) as seen:
                while connections < 4:  # one task asks again and again
                    await reserve.admit(db, gate, [a_hold(of_sale(sale))])
            assert seen == []
    server.close()
    assert bypassed("unavailable") > before + 1


async def test_no_call_waits_for_ever_for_a_silent_valkey() -> None:
    """A leader that waited would no longer rebuild the gate, and would keep its lease."""
    end = asyncio.Event()

    async def silence(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await end.wait()
        writer.close()

    server = await asyncio.start_server(silence, "127.0.0.1", 0)
    async with aclosing(Gate(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")) as gate:
        for call in (gate.delete([ids.new()]), gate.run(gates._TAKE, {ids.new(): [b"", 1]})):
            calling = asyncio.ensure_future(call)
            done, _ = await asyncio.wait([calling], timeout=5)
            assert done
            assert isinstance(calling.exception(), TimeoutError)
    end.set()
    server.close()


async def test_a_cancelled_caller_of_the_gate_ends(db: Database, gate: Gate) -> None:
    """A leader must not go on because it was waiting for Valkey when it was cancelled."""
    sale = await a_sale(db, units=1)

    async def ask_for_ever() -> None:
        while True:
            await gate.take([a_hold(of_sale(sale))])

    for steps in range(40):
        asking = asyncio.create_task(ask_for_ever())
        for _ in range(steps):
            await asyncio.sleep(0)
        asking.cancel()
        async with asyncio.timeout(60):
            await asyncio.gather(asking, return_exceptions=True)
        assert asking.cancelled()


# --- the rebuild ---


async def test_a_sale_without_a_counter_refuses_nobody(db: Database, gate: Gate) -> None:
    sale, before = await a_sale(db, units=1), bypassed("no_counter")

    assert not await refuses(gate, of_sale(sale, 99), Line(ids.new(), ids.new(), 1))

    assert bypassed("no_counter") == before + 2
    assert await gate.valkey.keys("*") == []


async def test_an_emptied_gate_is_rebuilt_with_all_its_holders(
    db: Database, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page by page; a round that finds nothing missing adds the newest holds only."""
    monkeypatch.setattr(rebuilds, "_HOLDS_AT_ONCE", 2)
    monkeypatch.setattr(rebuilds, "_SALES_AT_ONCE", 1)
    sale, other, rounds = await a_sale(db, units=8), await a_sale(db, units=3), Rebuild(db, gate)
    holds = [a_hold(of_sale(sale)) for _ in range(5)] + [a_hold(of_sale(sale, 2), of_sale(other, 3))]
    await reserve.admit(db, gate, holds)

    for lose in (None, gate.valkey.flushall, lambda: gate.valkey.delete(keys_of(sale.id)[1])):
        if lose:
            await lose()
        with statements(db) as seen:
            await rounds.run()
        assert len(seen) == 5
        assert await holders(gate, sale) == {h.customer_id: h.lines[0].quantity for h in holds}
        assert await holders(gate, other) == {holds[-1].customer_id: 3}
        assert [await left(gate, each) for each in (sale, other)] == [1, 0]

    newest = await holding(db, of_sale(sale))  # past the gate
    with statements(db) as seen:
        await rounds.run()
    assert len(seen) == 2
    assert newest.customer_id in await holders(gate, sale)
    assert await left(gate, sale) == 0


async def test_a_unit_taken_by_a_process_that_died_is_on_sale_again(db: Database, gate: Gate) -> None:
    sale = await a_sale(db, units=2)
    await rebuild(gate, db)
    assert not await refuses(gate, of_sale(sale, 2))
    assert await refuses(gate, of_sale(sale))

    await rebuild(gate, db)

    assert isinstance((await reserve.admit(db, gate, [a_hold(of_sale(sale, 2))]))[0], Reservation)


@pytest.mark.parametrize("key", [0, 1], ids=["counter", "hash"])
async def test_nonsense_in_one_sale_leaves_the_others_alone_until_the_rebuild(
    db: Database, gate: Gate, key: int
) -> None:
    """The sale's own holds pass to PostgreSQL."""
    sale, other = await a_sale(db, units=2), await a_sale(db, units=1)
    mine = await holding(db, of_sale(sale))
    await holding(db, of_sale(other))
    await rebuild(gate, db)
    await gate.valkey.delete(keys_of(sale.id)[key])
    await gate.valkey.lpush(keys_of(sale.id)[key], "nonsense")

    outcomes = await reserve.admit(db, gate, [a_hold(of_sale(sale)), a_hold(of_sale(other))])

    assert [type(outcome) for outcome in outcomes] == [Reservation, SoldOut]
    assert gate.available.is_set()
    await rebuild(gate, db)
    assert await left(gate, sale) == 0
    assert mine.customer_id in await holders(gate, sale)
    assert await refuses(gate, of_sale(sale))


async def test_the_rebuild_replaces_a_hash_of_a_wrong_type(db: Database, gate: Gate) -> None:
    sale, rounds = await a_sale(db, units=1), Rebuild(db, gate)
    mine = await holding(db, of_sale(sale))
    await rounds.run()
    for key in keys_of(sale.id):
        await gate.valkey.delete(key)
        await gate.valkey.lpush(key, "nonsense")

    await rounds.run()

    assert await left(gate, sale) == 0
    assert await holders(gate, sale) == {mine.customer_id: 1}


_OF_A_WRONG_TYPE = {
    "string": ("set", "nonsense"), "list": ("lpush", "nonsense"), "set": ("sadd", "nonsense"),
    "sorted set": ("zadd", {"nonsense": 1}), "hash": ("hset", "nonsense", "nonsense"), "stream": ("xadd", {"a": "b"}),
}  # fmt: skip
_GARBAGE = ["", "nonsense", "-5", "3.5", "nan", "inf", "-inf", "0x", "1e20", "99999999999999999999999", "\0"]
_POISONS = [
    *((0, *command) for command in _OF_A_WRONG_TYPE.values()),
    *((1, *command) for type_, command in _OF_A_WRONG_TYPE.items() if type_ != "hash"),
    *((0, "set", number) for number in _GARBAGE),
    (1, "hset", "buyer", "nonsense"), (1, "hset", "buyer", str(2**63 - 1)),
]  # fmt: skip


@pytest.mark.parametrize("poison", _POISONS, ids=lambda poison: " ".join(map(repr, poison)))
async def test_poisoned_keys_of_a_sale_stop_neither_it_nor_others(
    db: Database, gate: Gate, poison: tuple[Any, ...]
) -> None:
    """Whatever somebody writes there: the sale goes on with PostgreSQL alone, and the next rebuild mends its keys."""
    sale, other, rounds = await a_sale(db, units=3), await a_sale(db, units=1), Rebuild(db, gate)
    await holding(db, of_sale(other))
    mine = await holding(db, of_sale(sale))
    await rounds.run()
    hold = a_hold(of_sale(sale))
    number, command, *arguments = poison
    key = keys_of(sale.id)[number]
    if "buyer" not in arguments:
        await gate.valkey.delete(key)
    await getattr(gate.valkey, command)(key, *(hold.customer_id.bytes if a == "buyer" else a for a in arguments))

    bought, refused = await reserve.admit(db, gate, [hold, a_hold(of_sale(other))])

    assert isinstance(bought, Reservation)
    assert isinstance(refused, SoldOut)
    assert gate.available.is_set()
    await rounds.run()
    assert await left(gate, sale) == 1
    assert await holders(gate, sale) == {mine.customer_id: 1, hold.customer_id: 1}
    assert await books(db) == []


@pytest.mark.parametrize("number", [0, 1_000_000])
async def test_counter_from_another_time_is_overwritten(db: Database, gate: Gate, number: int) -> None:
    sale, rounds = await a_sale(db, units=2), Rebuild(db, gate)
    await rounds.run()
    await gate.valkey.set(keys_of(sale.id)[0], number)
    await rounds.run()
    assert await left(gate, sale) == 2
    assert isinstance((await reserve.admit(db, gate, [a_hold(of_sale(sale))]))[0], Reservation)


@pytest.mark.parametrize("end", [SaleState.CANCELLED, SaleState.ENDED])
async def test_a_sale_that_is_over_is_not_called_sold_out(db: Database, gate: Gate, end: SaleState) -> None:
    sale, rounds = await a_sale(db, units=1), Rebuild(db, gate)
    await holding(db, of_sale(sale))
    await rounds.run()
    assert await refuses(gate, of_sale(sale))
    await sales.close_sale(db, sale.id, end, etag_given="", key=None)

    await rounds.run()

    assert isinstance((await reserve.admit(db, gate, [a_hold(of_sale(sale))]))[0], SaleNotLive)


async def test_a_sale_that_is_about_to_start_is_rebuilt_in_time(db: Database, gate: Gate) -> None:
    sale = await a_sale(db, units=1)
    query = "UPDATE flash_sales SET start_time = clock_timestamp() + interval '600 ms' WHERE id = :id"
    await run_sql(db, query, id=sale.id)

    assert 0 < await Rebuild(db, gate).run() < 0.6

    assert await left(gate, sale) is None


async def test_keys_that_nobody_rebuilds_expire(db: Database, gate: Gate) -> None:
    sale = await a_sale(db, units=9)
    await rebuild(gate, db)
    (held,) = await reserve.admit(db, gate, [a_hold(of_sale(sale))])
    assert isinstance(held, Reservation)
    for _ in range(2):
        lifetimes = [await gate.valkey.ttl(key) for key in keys_of(sale.id)]
        assert all(0 < lifetime <= gates.LIFETIME_SECONDS for lifetime in lifetimes)
        await rebuild(gate, db)
    await gate.give_back((held, line) for line in held.lines)
    assert await gate.valkey.keys("*") == [keys_of(sale.id)[0].encode()]


async def test_the_gate_works_on_a_cluster(db: Database) -> None:
    # A port of its own for the cluster bus: the default is 10,000 higher, which can be too high.
    with a_valkey("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        await make_cluster(server)
        async with aclosing(Gate(server.url, cluster=True, timeout_seconds=30)) as gate:
            first, *others = several = [await a_sale(db, units=4) for _ in range(20)]
            await rebuild(gate, db)
            for each in others[:4]:
                await reserve.admit(db, gate, [a_hold(of_sale(sale), of_sale(first)) for sale in (each,)])
            await reserve.admit(db, gate, [a_hold(of_sale(sale, 4)) for sale in others[4:]])
            remaining = [(await sales.get_sale(db, sale.id)).remaining for sale in several]
            assert [await left(gate, sale) for sale in several] == remaining == [0, *[3] * 4, *[0] * 15]
            assert [await refuses(gate, of_sale(sale)) for sale in several[-2:]] == [True, True]
            await gate.delete(sale.id for sale in several)
            assert await left(gate, first) is None


async def make_cluster(server: Valkey) -> None:
    async with asyncio.timeout(60), redis.asyncio.Redis.from_url(server.url) as node:
        await node.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        while b"cluster_state:ok" not in await node.execute_command("CLUSTER", "INFO"):
            pass
