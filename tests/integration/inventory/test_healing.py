"""The rebuild of the gate: exact while others take and give back, and refused to leaders of the past."""

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text

from services.chassis.data import lease as leases
from services.chassis.data.db import Database
from services.chassis.data.lease import Lease
from services.inventory import gate as gates
from services.inventory import healing, reserving, sales, settling
from services.inventory.domain import Hold, Reservation, SaleNotLive, SaleState, SoldOut
from services.inventory.gate import Gate, Script, keys_of
from services.inventory.healing import Healer, keep_healing
from tests.integration.inventory.conftest import (
    EPOCH,
    a_hold,
    a_sale,
    aged,
    books,
    heal,
    holding,
    left,
    of_sale,
    sale_ended,
    statements,
    takers,
)
from tests.support.infra import Infra
from tests.support.valkey import a_valkey

ALLOCATION, UNITS = 10, 3


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@dataclass
class Life:
    """What becomes of one token, and before which step of a heal; 6 is after it."""

    taken: int
    held: int = 6
    ends: int = 6
    back: int = 6
    refused: int = 6
    known: bool = False
    """Whether the heal before this one has found it in PostgreSQL."""
    sale: Any = None
    hold: Hold = field(default_factory=lambda: a_hold())

    @property
    def left(self) -> int:
        """What the gate must say after step 5, races included."""
        if self.back in (2, 3) and not (self.held <= 2 and self.ends == 3):
            return ALLOCATION + UNITS
        if self.known and self.ends <= 2 and self.back in (4, 5):
            return ALLOCATION + UNITS
        free = self.taken > 5 or min(self.back, self.refused) <= 5 or self.ends <= 2
        return ALLOCATION - (0 if free else UNITS)


def lives() -> Iterator[Life]:
    """Every order of events of a token that is sold and comes back, and of one that PostgreSQL refuses."""
    for steps in itertools.combinations_with_replacement(range(1, 7), 4):
        yield Life(*steps)
        if steps[:2] == (1, 1):
            yield Life(*steps, known=True)
    for taken, refused in itertools.combinations_with_replacement(range(1, 7), 2):
        yield Life(taken, refused=refused)


async def happen(db: Database, gate: Gate, lives: Sequence[Life], step: int) -> None:
    """All that comes before this step, and after the one before."""
    begun = step == 1
    await gate.refused([life.hold for life in lives if life.taken == step and not (begun and life.known)])
    sold = [life for life in lives if life.refused == 6 and life.held == step and not (begun and life.known)]
    await reserving.reserve(db, [life.hold for life in sold])
    over = [life for life in lives if life.refused == 6]
    await settling.release(db, [life.hold.id for life in over if life.ends == step])
    ended = await settling.release(db, [life.hold.id for life in over if life.back == step])
    await gate.give_back_reservations(o for o in ended if isinstance(o, Reservation))
    refused = [life.hold for life in lives if life.held == 6 and life.refused == step]
    await gate.give_back((hold, line) for hold in refused for line in hold.lines)


async def test_left_is_what_remains_less_what_is_under_way_whatever_happens_between_the_steps(
    db: Database, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_lives = list(lives())
    for life in all_lives:
        life.sale = await a_sale(db, units=ALLOCATION)
        life.hold = a_hold(of_sale(life.sale, UNITS))
    known = [life.hold for life in all_lives if life.known]
    await gate.refused(known)
    await reserving.reserve(db, known)
    await heal(gate, db)
    healer, ask, write = Healer(db, gate, EPOCH), Healer._ask, Healer._write
    step = 0

    async def next_step() -> None:
        nonlocal step
        step += 1
        await happen(db, gate, all_lives, step)

    async def asking(script: Script, sales: Any) -> Any:
        await next_step()  # 1, and 3
        answer = await ask(healer, script, sales)
        await next_step()  # 2, and 4
        return answer

    async def writing(accounts: Any) -> None:
        await next_step()  # 5
        await write(healer, accounts)

    monkeypatch.setattr(healer, "_ask", asking)
    monkeypatch.setattr(healer, "_write", writing)
    await healer.heal()

    assert step == 5
    assert len(all_lives) == 168
    for life in all_lives:
        assert await left(gate, life.sale) == life.left, life
    await next_step()
    # Now all are over. Only where a race was lost it takes another heal.
    raced = [life for life in all_lives if life.left > ALLOCATION or (life.known and life.ends <= 2 and life.back == 6)]
    for life in all_lives:
        assert await left(gate, life.sale) == ALLOCATION + (UNITS if life in raced else 0), life
    monkeypatch.undo()
    await heal(gate, db)
    assert {await left(gate, life.sale) for life in all_lives} == {ALLOCATION}
    assert await books(db) == []


async def test_a_rush_with_heals_without_end_leaves_the_right_number(db: Database, gate: Gate) -> None:
    """No heal comes after it: what is left was counted through all of them."""
    sale = await a_sale(db, units=100_000)
    await heal(gate, db)
    healer, heals = Healer(db, gate, EPOCH), 0

    async def keep() -> None:
        nonlocal heals
        while True:
            await healer.heal()
            heals += 1

    async def buyer() -> None:
        while heals < 20:
            await reserving.admit(db, gate, [a_hold(of_sale(sale))])

    keeping = asyncio.create_task(keep())
    await asyncio.gather(*(buyer() for _ in range(10)))
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)

    assert 0 < await left(gate, sale) == (await sales.get_sale(db, sale.id)).remaining < 100_000
    assert await books(db) == []


async def test_a_token_that_leaked_comes_back_once_no_transaction_can_be_that_old(db: Database, gate: Gate) -> None:
    """A process took it from the gate, and died before it wrote the hold."""
    sale, back = await a_sale(db, units=2), counted("stampede_gate_leaked_units_total")
    await heal(gate, db)
    leaked = a_hold(of_sale(sale, 2))
    assert await gate.refused([leaked]) == {}

    await heal(gate, db)
    assert isinstance((await reserving.admit(db, gate, [a_hold(of_sale(sale))]))[0], SoldOut)
    await aged(gate, sale)
    await heal(gate, db)

    assert counted("stampede_gate_leaked_units_total") == back + 2
    await gate.give_back((leaked, line) for line in leaked.lines)  # it was not dead, only slow
    assert await left(gate, sale) == 2
    assert isinstance((await reserving.admit(db, gate, [a_hold(of_sale(sale, 2))]))[0], Reservation)
    assert await books(db) == []


async def test_a_leader_that_was_paused_between_reading_and_writing_is_refused(
    db: Database, infra: Infra, gate: Gate
) -> None:
    """It had seen the sale sold out. Then another took over, holds ended, and the gate was healed."""
    sale, refused = await a_sale(db, units=5), counted("stampede_gate_heals_total", outcome="refused")
    held = await holding(db, of_sale(sale, 5))
    paused = Healer(db, gate, EPOCH)
    accounts, _ = await paused._compare({sale.id: 0})
    await settling.release(db, [held.id])
    await heal(gate, db, epoch=EPOCH + 1)

    await paused._write(accounts)

    assert await left(gate, sale) == 5
    assert await gate.valkey.hget(keys_of(sale.id)[0], "epoch") == str(EPOCH + 1).encode()
    assert counted("stampede_gate_heals_total", outcome="refused") == refused + 1
    # Also whoever has not heard of the new leader yet can buy.
    assert isinstance((await reserving.admit(db, gate, [a_hold(of_sale(sale, 5))]))[0], Reservation)


async def test_who_holds_units_passes_again_after_the_gate_was_emptied(
    db: Database, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healing, "_LOAD_AT_ONCE", 2)
    sale, other = await a_sale(db, units=7), await a_sale(db, units=3)
    await heal(gate, db)
    holds = [a_hold(of_sale(sale)) for _ in range(5)] + [a_hold(of_sale(sale, 2), of_sale(other, 3))]
    await reserving.admit(db, gate, holds)

    await gate.valkey.flushall()
    await heal(gate, db)

    assert await takers(gate, sale, known=True) == {hold.id for hold in holds}
    assert await takers(gate, other, known=True) == {holds[-1].id}
    *again, late = await reserving.admit(db, gate, [*holds, a_hold(of_sale(sale))])
    assert all(isinstance(outcome, Reservation) for outcome in again)
    assert isinstance(late, SoldOut)
    # A unit that comes back is nobody else's.
    (ended,) = await settling.release(db, [holds[0].id])
    assert isinstance(ended, Reservation)
    await gate.give_back_reservations([ended])
    assert await left(gate, sale) == 1
    assert await books(db) == []


async def test_a_server_that_restarted_with_what_was_true_before_is_found_out(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All was held when it was saved. Then some gave their units back, and another took one."""
    sale = await a_sale(db, units=4)
    monkeypatch.setattr(gates, "_PAUSE_SECONDS", 0.01)
    with a_valkey() as server:
        async with aclosing(Gate(server.url, lambda: EPOCH)) as gate:
            await heal(gate, db)
            held = await reserving.admit(db, gate, [a_hold(of_sale(sale)) for _ in range(4)])
            await heal(gate, db)
            await gate.valkey.save()
            ended = await settling.release(db, [r.id for r in held[:3] if isinstance(r, Reservation)])
            await gate.give_back_reservations([r for r in ended if isinstance(r, Reservation)])
            late = a_hold(of_sale(sale))
            assert isinstance((await reserving.admit(db, gate, [late]))[0], Reservation)
            server.kill()
            server.start()
            assert await gate.refused([a_hold(of_sale(sale))]) == {}  # the connection was lost
            await gate.there.wait()
            assert await left(gate, sale) == 0

            await heal(gate, db)

            assert await left(gate, sale) == 2
            assert late.id in await takers(gate, sale, known=True)
            more = await reserving.admit(db, gate, [a_hold(of_sale(sale)) for _ in range(3)])
            more += await reserving.admit(db, gate, [late])
            assert [type(outcome) for outcome in more] == [Reservation, Reservation, SoldOut, Reservation]
    assert await books(db) == []


async def test_what_is_held_is_loaded_only_where_the_gate_is_new(
    db: Database, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, healer = 0, Healer(db, gate, EPOCH)
    load = healer._load

    async def counting(sales: set[uuid.UUID]) -> None:
        nonlocal loads
        loads += 1
        await load(sales)

    monkeypatch.setattr(healer, "_load", counting)
    monkeypatch.setattr(healing, "_SALES_AT_ONCE", 2)
    several = [await a_sale(db, units=2) for _ in range(5)]
    await healer.heal()  # nothing is held: there is nothing to load
    assert loads == 0
    await reserving.admit(db, gate, [a_hold(of_sale(sale)) for sale in several])
    await healer.heal()
    assert loads == 0

    await gate.valkey.flushall()
    await healer.heal()
    await healer.heal()

    assert loads == 1
    assert [await left(gate, sale) for sale in several] == [1] * 5


async def test_holds_that_never_passed_the_gate_are_found_by_and_by(
    db: Database, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made while the gate could not be asked, so it was neither emptied nor told."""
    monkeypatch.setattr(healing, "_WALK_AT_ONCE", 2)
    sale, healer = await a_sale(db, units=5), Healer(db, gate, EPOCH)
    await healer.heal()
    held = {(await holding(db, of_sale(sale))).id for _ in range(5)}

    for _ in range(4):  # two and two and one, and once because the walk may be about to begin anew
        await healer.heal()

    assert await takers(gate, sale, known=True) == held
    assert await left(gate, sale) == 0


async def test_tokens_of_what_is_sold_are_kept_for_late_repeats_but_not_all_of_them(
    db: Database, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    sale, healer = await a_sale(db, units=6), Healer(db, gate, EPOCH)
    await healer.heal()
    outcomes = await reserving.admit(db, gate, [a_hold(of_sale(sale)) for _ in range(6)])
    holds = [outcome.id for outcome in outcomes if isinstance(outcome, Reservation)]
    await healer.heal()
    await settling.confirm(db, holds[:5])

    await healer.heal()
    assert await takers(gate, sale, known=True) == set(holds)
    monkeypatch.setattr(healing, "_SOLD_MOST", 5)
    await healer.heal()
    assert await takers(gate, sale, known=True) == set(holds)
    monkeypatch.setattr(healing, "_SOLD_MOST", 4)
    await healer.heal()

    assert await takers(gate, sale, known=True) == set(holds[5:])
    assert await left(gate, sale) == 0


async def test_a_sale_that_is_about_to_start_is_healed_in_time(db: Database, gate: Gate) -> None:
    async with db() as tx:
        query = "SELECT clock_timestamp() + interval '600 ms'"
        soon = (await tx.execute(text(query))).scalar_one()
    sale, healer = await a_sale(db, units=1, start_time=soon), Healer(db, gate, EPOCH)

    assert 0 < await healer.heal() < 0.6
    assert await left(gate, sale) is None

    healing_ = asyncio.create_task(keep_healing(db, gate, EPOCH))
    async with asyncio.timeout(10):
        while await left(gate, sale) is None:
            pass
    healing_.cancel()
    await asyncio.gather(healing_, return_exceptions=True)
    assert await left(gate, sale) == 1


async def test_a_heal_of_many_sales_is_four_statements(db: Database, gate: Gate) -> None:
    for _ in range(10):
        await reserving.admit(db, gate, [a_hold(of_sale(await a_sale(db, units=2)))])
    await heal(gate, db)

    with statements(db) as seen:
        await heal(gate, db)

    assert [s.count("FROM flash_sales") for s in seen] == [1, 1, 0, 0]  # and the states of tokens, and the walk


@pytest.mark.parametrize(("end", "says"), [("cancelled", "CANCELLED"), ("closed", "ENDED"), ("over", "ENDED")])
async def test_a_sale_that_is_over_is_not_called_sold_out_and_refuses_at_no_cost(
    db: Database, gate: Gate, end: str, says: str
) -> None:
    """Those who hold units of it still find them; and another sale is none of its business."""
    sale, other = await a_sale(db, units=2), await a_sale(db, units=1)
    healer = Healer(db, gate, EPOCH)
    await healer.heal()
    holds = [a_hold(of_sale(sale)), a_hold(of_sale(sale))]
    await reserving.admit(db, gate, holds[:1])
    await healer.heal()
    await reserving.admit(db, gate, holds[1:])
    if end == "over":
        await sale_ended(db, sale.id)
    else:
        state = SaleState.CANCELLED if end == "cancelled" else SaleState.ENDED
        await sales.close_sale(db, sale.id, state, etag_given="", key=None)
    await healer.heal()

    with statements(db) as seen:
        late = await reserving.admit(db, gate, [a_hold(of_sale(other), of_sale(sale)), a_hold(of_sale(sale))])

    assert [(type(o), o.metadata["state"]) for o in late if isinstance(o, SaleNotLive)] == [(SaleNotLive, says)] * 2
    assert seen == []
    assert await left(gate, other) == 1
    assert {o.id for o in await reserving.admit(db, gate, holds) if isinstance(o, Reservation)} == {h.id for h in holds}
    await healer.heal()
    assert 0 < await gate.valkey.ttl(keys_of(sale.id)[0]) <= await gate.valkey.ttl(keys_of(sale.id)[2])


async def test_what_a_leader_of_the_past_says_of_a_sales_end_counts_for_nothing(db: Database, gate: Gate) -> None:
    """By PostgreSQL's clock, which has gone back since, the sale still runs."""
    sale = await a_sale(db, units=1)
    past = Healer(db, gate, EPOCH)
    await past.heal()
    await past._end({sale.id})
    assert await gate.refused([a_hold(of_sale(sale))])

    await heal(gate, db, epoch=EPOCH + 1)
    assert await gate.refused([a_hold(of_sale(sale))]) == {}
    await past._end({sale.id})
    assert isinstance((await gate.refused([hold := a_hold(of_sale(sale))]))[hold.id], SoldOut)


@pytest.fixture
async def leader(db: Database, infra: Infra) -> AsyncIterator[tuple[Lease, Gate]]:
    lease = Lease("timers")
    async with aclosing(Gate(infra.valkey_url, lease.term)) as gate:
        await gate.valkey.flushall()
        yield lease, gate


async def test_a_process_that_lost_postgresql_has_nobody_refused(
    db: Database, leader: tuple[Lease, Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot know whether what the gate says is old."""
    lease, gate = leader
    sale, (term, _) = await a_sale(db, units=1), await lease._acquire(db)
    assert term
    await holding(db, of_sale(sale))
    await heal(gate, db, epoch=term)
    assert await gate.refused([a_hold(of_sale(sale))])

    monkeypatch.setattr(lease, "_seen_until", 0.0)

    assert await gate.refused([a_hold(of_sale(sale))]) == {}
    assert leases.LASTS_SECONDS < 5
