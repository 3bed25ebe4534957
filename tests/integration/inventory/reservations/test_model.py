"""Random walks over everything that moves units, beside a plain model of what must come of it."""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from services.chassis import ids
from services.chassis.data.db import Database, connect
from services.chassis.errors import AppError, WrongState
from services.chassis.money import Money
from services.inventory import domain, sales, stock
from services.inventory.domain import (
    Hold,
    Line,
    NewSale,
    Reservation,
    Return,
    Returned,
    SaleChanges,
    SaleState,
    State,
)
from services.inventory.gate.gate import Gate
from services.inventory.reservations import rehold, reserve, returns, settle
from services.inventory.reservations.rehold import Rehold
from tests.integration.inventory.conftest import (
    STAFF,
    TABLES,
    books,
    hold_ended,
    holders,
    left,
    rebuild,
    rows_of,
    sale_ended,
)
from tests.support import budget
from tests.support.infra import Infra

PRODUCTS, CUSTOMERS, STOCK = 2, 3, 12
EXAMPLES, STEPS = budget(6, 200), 40
HOUR = timedelta(hours=1)


class Modelled:
    """A sale, or one product's ordinary stock, as plain numbers."""

    def __init__(self, free: int, limit: int = 0) -> None:
        self.free, self.held, self.sold, self.limit = free, 0, 0, limit
        self.closed, self.returned = False, 0


class Walk(RuleBasedStateMachine):
    """The model predicts each outcome; after every step the numbers agree and the books are in order."""

    run: Callable[[Coroutine[Any, Any, Any]], Any]
    db: Database
    gate: Gate

    @initialize()
    def begin(self) -> None:
        self.run(self._begin())
        self.stock = {product: Modelled(STOCK) for product in self.products}
        self.sales: dict[uuid.UUID, Modelled] = {}
        self.product_of: dict[uuid.UUID, uuid.UUID] = {}
        self.open: dict[uuid.UUID, uuid.UUID] = {}  # by product: the sale that runs
        self.scheduled: dict[uuid.UUID, uuid.UUID] = {}  # by product: the sale to come
        self.holds: dict[uuid.UUID, tuple[Hold, State]] = {}
        self.back: dict[uuid.UUID, dict[uuid.UUID, int]] = defaultdict(dict)  # units that came back
        self.returns: dict[uuid.UUID, tuple[Return, dict[uuid.UUID, int]]] = {}
        self.ended: set[uuid.UUID] = set()
        self.reholds: dict[uuid.UUID, int] = defaultdict(int)
        # A walk that begins in the middle of things gets further.
        for p in range(PRODUCTS):
            self.create_sale(p, 6, 2 * p)
        self.reserve(0, ("sale", "sale"), (2, 1), False)
        self.reserve(1, ("sale", "stock"), (1, 2), True)

    async def _begin(self) -> None:
        async with self.db.begin() as tx:
            for table in TABLES:
                await tx.execute(text(f"DELETE FROM {table}"))
        await self.gate.valkey.flushall()
        self.products = [ids.new() for _ in range(PRODUCTS)]
        self.customers = [ids.new() for _ in range(CUSTOMERS)]
        for product in self.products:
            await stock.set_stock(self.db, {product: STOCK}, reason="counted", actor=STAFF, key=None)

    # --- what may happen ---

    @rule(p=st.integers(0, PRODUCTS - 1), delta=st.sampled_from([-9, -3, -1, 1, 4, 15]))
    def adjust_stock(self, p: int, delta: int) -> None:
        product = self.products[p]
        call = stock.adjust_stock(self.db, product, delta=delta, reason="found", actor=STAFF, key=None)
        if self.stock[product].free + delta < 0:
            with pytest.raises(domain.OutOfStock):
                self.run(call)
        else:
            self.run(call)
            self.stock[product].free += delta

    @rule(units=st.tuples(*[st.integers(0, 20)] * PRODUCTS))
    def count_stock(self, units: tuple[int, ...]) -> None:
        counted = dict(zip(self.products, units, strict=True))
        call = stock.set_stock(self.db, counted, reason="counted", actor=STAFF, key=None)
        if any(self.stock[product].held > on_hand for product, on_hand in counted.items()):
            with pytest.raises(domain.OutOfStock):
                self.run(call)
            return
        self.run(call)
        for product, on_hand in counted.items():
            self.stock[product].free = on_hand - self.stock[product].held

    @rule(p=st.integers(0, PRODUCTS - 1), units=st.integers(1, 8), limit=st.sampled_from([0, 2]))
    def create_sale(self, p: int, units: int, limit: int) -> None:
        self._create(self.open, p, units, limit, start=None)

    @rule(p=st.integers(0, PRODUCTS - 1), units=st.integers(1, 8), limit=st.sampled_from([0, 2]))
    def schedule_sale(self, p: int, units: int, limit: int) -> None:
        self._create(self.scheduled, p, units, limit, start=2 * HOUR)

    def _create(
        self, others: dict[uuid.UUID, uuid.UUID], p: int, units: int, limit: int, *, start: timedelta | None
    ) -> None:
        product, now = self.products[p], self._now()
        opens = now + start if start else None
        new = NewSale(
            product_id=product, title="A rush", price=Money("USD", 999), allocation=units, per_customer_limit=limit,
            start_time=opens, end_time=(opens or now) + HOUR, hold_seconds=600,
        )  # fmt: skip
        if product in others or self.stock[product].free < units:
            with pytest.raises(domain.SaleOverlaps if product in others else domain.OutOfStock):
                self.run(sales.create_sale(self.db, new, key=None))
            return
        sale = self.run(sales.create_sale(self.db, new, key=None)).id
        self.stock[product].free -= units
        self.sales[sale], self.product_of[sale], others[product] = Modelled(units, limit), product, sale

    @precondition(lambda self: self.scheduled)
    @rule(data=st.data(), units=st.integers(1, 15), limit=st.sampled_from([None, 1]))
    def change_sale(self, data: st.DataObject, units: int, limit: int | None) -> None:
        product = data.draw(st.sampled_from(list(self.scheduled)))
        sale = self.scheduled[product]
        pool, changes = self.sales[sale], SaleChanges(allocation=units, per_customer_limit=limit)
        call = sales.update_sale(self.db, sale, changes, etag_given="", key=None)
        more = units - pool.free
        if more > self.stock[product].free:
            with pytest.raises(domain.OutOfStock):
                self.run(call)
            return
        self.run(call)
        pool.free, pool.limit = units, pool.limit if limit is None else limit
        self.stock[product].free -= more

    @precondition(lambda self: self.scheduled)
    @rule(data=st.data())
    def open_sale(self, data: st.DataObject) -> None:
        product = data.draw(st.sampled_from(list(self.scheduled)))
        now = self._now()
        changes = SaleChanges(start_time=now - HOUR, end_time=now + HOUR)
        call = sales.update_sale(self.db, self.scheduled[product], changes, etag_given="", key=None)
        if product in self.open:
            with pytest.raises(domain.SaleOverlaps):
                self.run(call)
            return
        assert self.run(call).state in ("LIVE", "SOLD_OUT")
        self.open[product] = self.scheduled.pop(product)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def change_too_late(self, data: st.DataObject) -> None:
        sale = data.draw(st.sampled_from(list(self.open.values())))
        with pytest.raises(WrongState):
            self.run(sales.update_sale(self.db, sale, SaleChanges(allocation=3), etag_given="", key=None))

    @rule(
        c=st.integers(0, CUSTOMERS - 1),
        kinds=st.tuples(*[st.sampled_from(["none", "sale", "stock"])] * PRODUCTS),
        units=st.tuples(*[st.integers(1, 3)] * PRODUCTS),
        gated=st.booleans(),
    )
    def reserve(self, c: int, kinds: tuple[str, ...], units: tuple[int, ...], gated: bool) -> None:
        lines = self._lines(kinds, units)
        if not lines:
            return
        hold = Hold(ids.new(), self.customers[c], lines, 600)
        outcome = self._reserved(hold, gated)
        fits = self._fits(hold) and not self._over(hold)
        if isinstance(outcome, Reservation):
            assert fits, "it was given what was not there"
            self._take(lines)
            self.holds[hold.id] = hold, State.HELD
        else:
            # The gate may refuse too much until its rebuild; PostgreSQL never does.
            assert gated or not fits, f"it was refused what was there: {outcome}"

    @rule(
        wishes=st.lists(
            st.tuples(
                st.integers(0, CUSTOMERS - 1), st.tuples(*[st.sampled_from(["none", "sale", "stock"])] * PRODUCTS),
                st.tuples(*[st.integers(1, 3)] * PRODUCTS),
            ),
            max_size=6,
        ),
        data=st.data(),
    )  # fmt: skip
    def reserve_a_batch(self, wishes: list[tuple[int, tuple[str, ...], tuple[int, ...]]], data: st.DataObject) -> None:
        """Nobody is refused what is still there when the batch is done."""
        fresh = [
            Hold(ids.new(), self.customers[c], lines, 600)
            for c, kinds, units in wishes
            if (lines := self._lines(kinds, units))
        ]
        known = data.draw(st.lists(st.sampled_from(list(self.holds)), unique=True, max_size=3)) if self.holds else []
        batch = data.draw(st.permutations([*fresh, *(self.holds[id_][0] for id_ in known)]))
        if not batch:
            return
        outcomes = dict(zip((h.id for h in batch), self.run(reserve.reserve(self.db, batch)), strict=True))
        for hold in fresh:
            if isinstance(outcomes[hold.id], Reservation):
                self._take(hold.lines)
                self.holds[hold.id] = hold, State.HELD
        for id_ in known:
            assert (outcomes[id_].id, outcomes[id_].state) == (id_, self.holds[id_][1])
        for hold in fresh:
            assert all(self._pool(line).free >= 0 for line in hold.lines), "more was given than was there"
            if isinstance(outcomes[hold.id], domain.CustomerLimit):
                assert self._over(hold)
            elif not isinstance(outcomes[hold.id], Reservation):
                assert self._over(hold) or not self._fits(hold), f"it was refused what was left: {outcomes[hold.id]}"

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), gated=st.booleans())
    def repeat(self, data: st.DataObject, gated: bool) -> None:
        id_ = data.draw(st.sampled_from(list(self.holds)))
        hold, state = self.holds[id_]
        outcome = self._reserved(hold, gated)
        if isinstance(outcome, Reservation):
            assert (outcome.id, outcome.state) == (id_, state)
        else:
            assert gated, f"a repeat was refused: {outcome}"

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(list(self.holds)))
        hold, state = self.holds[id_]
        (outcome,) = self.run(settle.confirm(self.db, [id_]))
        if state is State.RELEASED:
            assert isinstance(outcome, domain.ReservationLost)
            return
        if state is State.EXPIRED:
            if self._over(hold) or not self._fits(hold):  # by the rules of a new hold
                assert isinstance(outcome, domain.ReservationLost)
                self.holds[id_] = hold, State.RELEASED  # for good
                return
            self._take(hold.lines)
        assert isinstance(outcome, Reservation)
        if state is not State.CONFIRMED:
            for line in hold.lines:
                pool = self._pool(line)
                pool.held, pool.sold = pool.held - line.quantity, pool.sold + line.quantity
        self.holds[id_] = hold, State.CONFIRMED

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(list(self.holds)))
        hold, state = self.holds[id_]
        (outcome,) = self.run(settle.release(self.db, [id_], reholds=dict(self.reholds)))
        assert isinstance(outcome, WrongState if state is State.CONFIRMED else Reservation)
        if state is State.HELD:
            self._give_back(hold.lines)
        if state in (State.HELD, State.EXPIRED):
            self.holds[id_] = hold, State.RELEASED

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), again=st.booleans())
    def rehold(self, data: st.DataObject, again: bool) -> None:
        """Or a repeat of an earlier rehold, or an old release that arrives late: neither moves a unit."""
        id_ = data.draw(st.sampled_from(list(self.holds)))
        hold, state = self.holds[id_]
        if self.reholds[id_] and again:
            for outcomes in (
                self.run(rehold.rehold(self.db, [Rehold(id_, self.reholds[id_])])),
                self.run(settle.release(self.db, [id_], reholds={id_: self.reholds[id_] - 1})),
            ):
                assert getattr(outcomes[0], "state", state) is state
            return
        (outcome,) = self.run(rehold.rehold(self.db, [Rehold(id_, self.reholds[id_] + 1)]))
        if state is State.CONFIRMED:
            assert isinstance(outcome, Reservation)
        elif id_ in self.ended:
            assert isinstance(outcome, domain.ReservationExpired)
        elif state is State.HELD:
            assert isinstance(outcome, WrongState)
        elif self._over(hold) or not self._fits(hold):
            assert isinstance(outcome, AppError)
        else:
            assert isinstance(outcome, Reservation), outcome
            self._take(hold.lines)
            self.holds[id_] = hold, State.HELD
            self.reholds[id_] += 1

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), units=st.integers(0, 3))
    def take_back(self, data: st.DataObject, units: int) -> None:
        """So many of one product, or, for 0, all that is out; or a repeat of an earlier return."""
        sold = [id_ for id_, (_, state) in self.holds.items() if state is State.CONFIRMED]
        id_ = data.draw(st.sampled_from(sold or list(self.holds)))
        product = data.draw(st.sampled_from([line.product_id for line in self.holds[id_][0].lines]))
        item = Return(ids.new(), id_, {product: units} if units else {})
        if self.returns and data.draw(st.integers(0, 3)) == 0:
            item = data.draw(st.sampled_from([item for item, _ in self.returns.values()]))
        (outcome,) = self.run(returns.take_back(self.db, [item]))
        hold, state = self.holds[item.reservation_id]
        back = self.back[item.reservation_id]
        if item.id in self.returns:
            assert isinstance(outcome, Returned)
            assert {line.product_id: line.quantity for line in outcome.lines} == self.returns[item.id][1]
            return
        if state is not State.CONFIRMED:
            assert isinstance(outcome, WrongState)
            return
        out = {line.product_id: line.quantity - back.get(line.product_id, 0) for line in hold.lines}
        if any(out.get(product, 0) < units for product, units in item.quantities.items()):
            assert isinstance(outcome, domain.ReturnTooLarge)
            return
        came = {product: units for product, units in (item.quantities or out).items() if units}
        assert isinstance(outcome, Returned)
        assert {line.product_id: line.quantity for line in outcome.lines} == came
        self.returns[item.id] = item, came
        for line in outcome.lines:
            back[line.product_id] = back.get(line.product_id, 0) + line.quantity
            pool = self._pool(line)
            pool.sold -= line.quantity
            if pool.closed:
                pool.returned += line.quantity
                self.stock[line.product_id].free += line.quantity
            else:
                pool.free += line.quantity

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        """It moves no unit, whatever became of the hold; twice is once."""
        id_ = data.draw(st.sampled_from(list(self.holds)))
        first, again = (self.run(settle.extend(self.db, [id_]))[0] for _ in range(2))
        assert first == again
        assert first.state is self.holds[id_][1]

    @precondition(lambda self: any(state is State.HELD for _, state in self.holds.values()))
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        held = [id_ for id_, (_, state) in self.holds.items() if state is State.HELD]
        ended = data.draw(st.lists(st.sampled_from(held), unique=True, min_size=1))
        self.run(hold_ended(self.db, *ended))
        self.ended.update(ended)
        assert {r.id for r in self.run(settle.expire(self.db))} == set(ended)
        for id_ in ended:
            hold, _ = self.holds[id_]
            self._give_back(hold.lines)
            self.holds[id_] = hold, State.EXPIRED

    @precondition(lambda self: self.open)
    @rule(data=st.data(), early=st.booleans())
    def close(self, data: st.DataObject, early: bool) -> None:
        product = data.draw(st.sampled_from(list(self.open)))
        sale = self.open.pop(product)
        if early:
            self.run(sales.close_sale(self.db, sale, SaleState.ENDED, etag_given="", key=None))
        else:
            self.run(sale_ended(self.db, sale))
            assert self.run(sales.close_ended_sales(self.db)) == 1
        self._closed(sale)

    @precondition(lambda self: self.open or self.scheduled)
    @rule(data=st.data())
    def call_off(self, data: st.DataObject) -> None:
        sale = data.draw(st.sampled_from([*self.open.values(), *self.scheduled.values()]))
        self.run(sales.close_sale(self.db, sale, SaleState.CANCELLED, etag_given="", key=None))
        others = self.open if sale in self.open.values() else self.scheduled
        del others[self.product_of[sale]]
        self._closed(sale)

    @rule()
    def flush_gate(self) -> None:
        self.run(self.gate.valkey.flushall())

    @precondition(lambda self: self.open)
    @rule(data=st.data(), units=st.integers(1, 2))
    def die_between_gate_and_postgresql(self, data: st.DataObject, units: int) -> None:
        product = data.draw(st.sampled_from(list(self.open)))
        self.run(self.gate.take([Hold(ids.new(), ids.new(), (Line(product, self.open[product], units),), 600)]))

    @rule()
    def rebuild_gate(self) -> None:
        self.run(rebuild(self.gate, self.db))
        for sale in self.open.values():
            assert self.run(left(self.gate, sale)) == self.sales[sale].free
            held = {
                hold.customer_id for hold, state in self.holds.values() if state is State.HELD
                and any(line.sale_id == sale for line in hold.lines)
            }  # fmt: skip
            assert held <= self.run(holders(self.gate, sale)).keys()

    # --- what must be true at any time ---

    @invariant()
    def the_numbers_agree_and_the_books_are_in_order(self) -> None:
        if hasattr(self, "stock"):
            self.run(self._agree())

    async def _agree(self) -> None:
        query = "SELECT id, held, sold, returned, allocation - held - sold - returned FROM flash_sales"
        found = {id_: numbers for id_, *numbers in await rows_of(self.db, query)}
        assert found == {id_: [s.held, s.sold, s.returned, s.free] for id_, s in self.sales.items()}
        query = "SELECT product_id, held, on_hand - held FROM stock"
        found = {id_: numbers for id_, *numbers in await rows_of(self.db, query)}
        assert found == {id_: [s.held, s.free] for id_, s in self.stock.items()}
        assert await books(self.db) == []

    # --- the model ---

    def _now(self) -> datetime:
        ((now,),) = self.run(rows_of(self.db, "SELECT clock_timestamp()"))
        assert isinstance(now, datetime)
        return now

    def _closed(self, sale: uuid.UUID) -> None:
        pool = self.sales[sale]
        pool.closed, pool.returned, pool.free = True, pool.free, 0
        self.stock[self.product_of[sale]].free += pool.returned

    def _reserved(self, hold: Hold, gated: bool) -> Reservation | AppError:
        call = reserve.admit(self.db, self.gate, [hold]) if gated else reserve.reserve(self.db, [hold])
        outcome: Reservation | AppError = self.run(call)[0]
        return outcome

    def _lines(self, kinds: tuple[str, ...], units: tuple[int, ...]) -> tuple[Line, ...]:
        return tuple(
            Line(product, self.open[product] if kind == "sale" else None, quantity)
            for product, kind, quantity in zip(self.products, kinds, units, strict=True)
            if kind == "stock" or (kind == "sale" and product in self.open)
        )

    def _fits(self, hold: Hold) -> bool:
        return all(self._pool(line).free >= line.quantity for line in hold.lines)

    def _pool(self, line: Line) -> Modelled:
        return self.sales[line.sale_id] if line.sale_id else self.stock[line.product_id]

    def _over(self, hold: Hold) -> bool:
        for line in hold.lines:
            if line.sale_id and (limit := self.sales[line.sale_id].limit):
                mine = sum(
                    other.quantity - self.back[past.id].get(other.product_id, 0)
                    for past, state in self.holds.values()
                    if past.customer_id == hold.customer_id and state in (State.HELD, State.CONFIRMED)
                    for other in past.lines
                    if other.sale_id == line.sale_id
                )
                if mine + line.quantity > limit:
                    return True
        return False

    def _take(self, lines: tuple[Line, ...]) -> None:
        for line in lines:
            pool = self._pool(line)
            pool.free, pool.held = pool.free - line.quantity, pool.held + line.quantity

    def _give_back(self, lines: tuple[Line, ...]) -> None:
        for line in lines:
            pool = self._pool(line)
            pool.held -= line.quantity
            if pool.closed:
                pool.returned += line.quantity
                self.stock[line.product_id].free += line.quantity
            else:
                pool.free += line.quantity


@pytest.mark.proof
def test_no_walk_leads_to_wrong_numbers(infra: Infra, template: Callable[[str], Awaitable[str]]) -> None:
    with asyncio.Runner() as runner:
        # Hypothesis calls rules one by one, so they run on a loop of their own.
        name = "test_walks_inventory"
        infra.admin(
            f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name} TEMPLATE {runner.run(template('inventory'))}"
        )
        engine, db = connect(infra.database_url(name), pool_size=2)
        gate = Gate(infra.valkey_url, timeout_seconds=30)
        machine = type("Walk", (Walk,), {"run": staticmethod(runner.run), "db": db, "gate": gate})
        try:
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, derandomize=True, database=None,
                    suppress_health_check=list(HealthCheck), print_blob=False, phases=[Phase.generate],
                ),
            )  # fmt: skip
        finally:
            runner.run(gate.aclose())
            runner.run(engine.dispose())
            infra.admin(f"DROP DATABASE {name} WITH (FORCE)")
