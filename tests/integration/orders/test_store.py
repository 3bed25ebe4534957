"""Orders and sagas in PostgreSQL: one order per request, one owner per saga, a log that leaves nothing out."""

import asyncio
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.chassis import ids
from services.chassis.data.db import Database
from services.orders import console, facts, journal, store
from services.orders.domain import Mover, Payment, PaymentState, State
from services.orders.journal import Ending, Pause
from services.orders.saga import CANCELLED, COMPENSATED, HOLD_EXPIRED, Phase, Progress, Saga
from services.orders.store import NewOrder
from stampede.inventory.v1.events_pb2 import ReservationExpired
from stampede.payments.v1.events_pb2 import PaymentChanged
from tests.integration.orders.conftest import an_order, log_of, rows_of, run_sql, the_order, told

PAYMENT = Payment(uuid.UUID(int=7), "sandbox", PaymentState.AWAITING_CUSTOMER, "a secret")


async def placed(db: Database, count: int = 1, **fields: object) -> list[NewOrder]:
    orders = [an_order(**fields) for _ in range(count)]
    await store.insert(db, orders)
    return orders


async def due(db: Database, *order_ids: uuid.UUID) -> None:
    """Lets leases and pauses run out, without waiting for it."""
    await run_sql(
        db, "UPDATE sagas SET next_time = now() - interval '1 second' WHERE order_id = ANY(:i)", i=list(order_ids)
    )


async def seconds_to_go(db: Database, order_id: uuid.UUID) -> float:
    query = "SELECT extract(epoch FROM next_time - clock_timestamp())::float FROM sagas WHERE order_id = :id"
    ((seconds,),) = await rows_of(db, query, id=order_id)
    return float(seconds)


async def claim_one(db: Database, order_id: uuid.UUID) -> Saga | None:
    async with db.begin() as tx:
        return await journal.claim_one(tx, order_id)


async def claimed(db: Database, order_id: uuid.UUID) -> Saga:
    saga = await claim_one(db, order_id)
    assert saga
    return saga


async def ask(db: Database, order_id: uuid.UUID, why: str) -> None:
    async with db.begin() as tx:
        await journal.ask(tx, [order_id], why)


async def wake(db: Database, order_id: uuid.UUID) -> None:
    async with db.begin() as tx:
        await journal.wake(tx, [order_id])


async def test_a_batch_of_new_and_known_orders_answers_each_in_its_place(db: Database) -> None:
    (known,) = await placed(db)
    # The period of a derived id has ended: the same request comes under another id.
    same_request = an_order(customer_id=known.customer_id, request_id=known.request_id)
    fresh = [an_order(), an_order()]

    answers = await store.insert(db, [fresh[0], known, same_request, fresh[1]])

    assert [(order.id, new) for order, new in answers] == [
        (fresh[0].id, True), (known.id, False), (known.id, False), (fresh[1].id, True),
    ]  # fmt: skip
    assert len(await rows_of(db, "SELECT 1 FROM orders")) == len(await rows_of(db, "SELECT 1 FROM sagas")) == 3
    for order in (known, *fresh):
        assert await log_of(db, order.id) == [("PENDING", "", "customer")]
        assert await told(db, order.id) == [("placed", 1)]


async def test_an_order_that_stands_twice_in_a_batch_is_placed_once(db: Database) -> None:
    order, neighbour = an_order(), an_order()

    answers = await store.insert(db, [order, neighbour, replace(order, digest=b"other" * 6)])

    assert [(o.id, new) for o, new in answers] == [(order.id, True), (neighbour.id, True), (order.id, False)]
    assert answers[2][0].digest == order.digest
    assert await told(db, order.id) == [("placed", 1)]


async def test_one_request_sent_ten_times_at_once_is_one_order_and_one_event(db: Database) -> None:
    order = an_order()
    others = [replace(order, id=ids.new()) for _ in range(2)]  # as around the end of an id's period

    answers = await asyncio.gather(*(store.insert(db, [o]) for o in ([order] * 8 + others)))

    assert len({answer[0][0].id for answer in answers}) == 1
    assert sum(answer[0][1] for answer in answers) == 1
    assert len(await rows_of(db, "SELECT 1 FROM outbox")) == 1
    assert len(await rows_of(db, "SELECT 1 FROM order_log")) == 1


async def test_an_order_comes_back_as_it_was_written(db: Database) -> None:
    (new,) = await placed(db)
    found, unknown = await store.find(db, [(new.customer_id, new.request_id), (new.customer_id, uuid.uuid4())])
    assert found
    assert unknown is None
    assert (found.lines, found.total, found.digest, found.state) == (new.lines, new.total, new.digest, State.PENDING)
    assert found == await the_order(db, new.id)


async def test_an_end_moves_the_order_logs_it_tells_it_and_forgets_the_saga(db: Database) -> None:
    (new,) = await placed(db)
    saga = await claimed(db, new.id)
    saga.payment = replace(PAYMENT, state=PaymentState.SUCCEEDED)

    assert await journal.finish(db, [Ending(saga, State.PAID, "")]) == [True]
    assert await journal.finish(db, [Ending(saga, State.PAID, "")]) == [False]

    order = await the_order(db, new.id)
    assert (order.state, order.version, order.payment) == (State.PAID, 2, saga.payment)
    assert await log_of(db, new.id) == [("PENDING", "", "customer"), ("PAID", "", "saga")]
    assert await told(db, new.id) == [("placed", 1), ("paid", 2)]
    assert await rows_of(db, "SELECT 1 FROM sagas") == []


async def test_who_was_overtaken_changes_nothing(db: Database) -> None:
    (new,) = await placed(db)
    stale, owner = await claimed(db, new.id), await claimed(db, new.id)
    before = await rows_of(db, "SELECT * FROM sagas"), await rows_of(db, "SELECT * FROM orders")
    stale.progress, stale.payment = Progress(Phase.BACKWARD, 2, "NO"), PAYMENT

    assert await journal.save(db, [Pause(stale, True, 0.0)]) == [False]
    assert await journal.finish(db, [Ending(stale, State.FAILED, "NO")]) == [False]

    assert (await rows_of(db, "SELECT * FROM sagas"), await rows_of(db, "SELECT * FROM orders")) == before
    assert await journal.finish(db, [Ending(owner, State.PAID, "")]) == [True]
    assert await journal.save(db, [Pause(stale, True, 0.0)]) == [False]


async def test_in_a_batch_only_the_overtaken_are_refused(db: Database) -> None:
    orders = await placed(db, 3)
    sagas = [await claimed(db, o.id) for o in orders]
    await claimed(db, orders[1].id)

    assert await journal.save(db, [Pause(s, True, 5.0) for s in sagas]) == [True, False, True]
    assert await journal.finish(db, [Ending(s, State.CANCELLED, "") for s in sagas]) == [True, False, True]
    assert [(await the_order(db, o.id)).state for o in orders] == ["CANCELLED", "PENDING", "CANCELLED"]


async def test_many_owners_who_finish_at_once_end_the_order_once(db: Database) -> None:
    (new,) = await placed(db)
    sagas = [await claimed(db, new.id) for _ in range(6)]

    done = await asyncio.gather(*(journal.finish(db, [Ending(s, State.PAID, "")]) for s in sagas))

    assert [d[0] for d in done] == [False] * 5 + [True]
    assert await told(db, new.id) == [("placed", 1), ("paid", 2)]


async def test_two_workers_share_what_is_due_without_overlap(db: Database) -> None:
    orders = await placed(db, 40, lease_seconds=0.0)

    batches = await asyncio.gather(*(journal.claim_due(db, 15, slow=15) for _ in range(4)))

    found = [saga.order_id for batch in batches for saga in batch]
    assert len(found) == len(set(found)) == 40
    assert set(found) == {o.id for o in orders}
    assert {saga.fence for batch in batches for saga in batch} == {2}


async def test_a_lease_keeps_others_away_until_it_ends(db: Database) -> None:
    (new,) = await placed(db)
    assert await journal.claim_due(db, 5, slow=5) == []
    assert 18 < await seconds_to_go(db, new.id) < 20.1

    await due(db, new.id)
    (saga,) = await journal.claim_due(db, 5, slow=5)

    assert (saga.order_id, saga.fence, saga.total, saga.progress) == (new.id, 2, new.total, Progress())
    assert await journal.claim_due(db, 5, slow=5) == []


async def test_a_saga_goes_on_from_where_it_was_saved(db: Database) -> None:
    (new,) = await placed(db)
    saga = await claimed(db, new.id)
    saga.progress, saga.payment, saga.attempts = Progress(Phase.BACKWARD, 2, "RESERVATION_LOST"), PAYMENT, 3
    assert await journal.save(db, [Pause(saga, False, 0.0)]) == [True]

    (again,) = await journal.claim_due(db, 5, slow=5)

    assert (again.progress, again.payment, again.attempts) == (saga.progress, PAYMENT, 3)
    assert (await the_order(db, new.id)).payment == PAYMENT


async def test_what_is_shown_of_a_payment_raises_the_version_once(db: Database) -> None:
    (new,) = await placed(db)
    saga = await claimed(db, new.id)
    saga.payment = PAYMENT
    for _ in range(3):
        await journal.save(db, [Pause(saga, True, 5.0)])
    assert (await the_order(db, new.id)).version == 2


async def test_a_wish_reaches_a_waiting_saga_at_once_and_the_first_wish_stays(db: Database) -> None:
    (new,) = await placed(db)
    await journal.save(db, [Pause(await claimed(db, new.id), True, 600.0)])
    await ask(db, new.id, CANCELLED)
    await ask(db, new.id, HOLD_EXPIRED)

    (saga,) = await journal.claim_due(db, 5, slow=5)

    assert saga.progress.asked == CANCELLED


async def test_a_wish_leaves_a_running_saga_to_its_owner_and_reaches_it_when_it_rests(db: Database) -> None:
    (new,) = await placed(db)
    saga = await claimed(db, new.id)
    await ask(db, new.id, CANCELLED)
    assert await journal.claim_due(db, 5, slow=5) == []

    await journal.save(db, [Pause(saga, True, 600.0)])

    assert [s.progress.asked for s in await journal.claim_due(db, 5, slow=5)] == [CANCELLED]


async def test_a_saga_that_knows_what_was_asked_waits_its_turn(db: Database) -> None:
    """Else a payment that cannot be cancelled yet would be asked for as fast as the process can."""
    (new,) = await placed(db)
    await ask(db, new.id, CANCELLED)
    saga = await claimed(db, new.id)
    assert saga.progress.asked == CANCELLED

    await journal.save(db, [Pause(saga, True, 8.0)])

    assert await journal.claim_due(db, 5, slow=5) == []
    assert 7 < await seconds_to_go(db, new.id) < 8.1


async def test_an_event_wakes_who_waits_for_it_and_nobody_else(db: Database) -> None:
    waiting, running = await placed(db, 2)
    await journal.save(db, [Pause(await claimed(db, waiting.id), True, 600.0)])
    for order in (waiting, running):
        await wake(db, order.id)

    assert [saga.order_id for saga in await journal.claim_due(db, 5, slow=5)] == [waiting.id]


async def test_an_event_that_comes_while_its_saga_is_looked_after_is_not_lost(db: Database) -> None:
    """Payments said "waits for the customer"; the customer paid; the event came; only then the saga lay down."""
    (new,) = await placed(db)
    saga = await claimed(db, new.id)
    await wake(db, new.id)
    await journal.save(db, [Pause(saga, True, 600.0)])

    assert [s.order_id for s in await journal.claim_due(db, 5, slow=5)] == [new.id]


async def test_the_holds_own_timer_asks_where_no_event_came(db: Database) -> None:
    (new,) = await placed(db)
    await run_sql(db, "UPDATE orders SET hold_expire_time = now() - interval '3 seconds'")
    assert (await claimed(db, new.id)).progress.asked == HOLD_EXPIRED


# --- looking at holds before they end ---


async def look_in(db: Database, order_id: uuid.UUID) -> float | None:
    """Seconds until the saga looks at its hold; None where it need not."""
    query = "SELECT extract(epoch FROM look_time - clock_timestamp())::float FROM sagas WHERE order_id = :id"
    ((seconds,),) = await rows_of(db, query, id=order_id)
    return None if seconds is None else float(seconds)


async def hold_left(db: Database, order_id: uuid.UUID, *, seconds: float) -> None:
    """Lets so much of the hold's time pass that `seconds` are left, and the saga's turn come."""
    move = "clock_timestamp() + make_interval(secs => :seconds) - hold_expire_time"
    await run_sql(
        db, f"UPDATE sagas SET look_time = look_time + (SELECT {move} FROM orders WHERE id = :id) WHERE order_id = :id",
        seconds=seconds, id=order_id,
    )  # fmt: skip
    await run_sql(db, f"UPDATE orders SET hold_expire_time = hold_expire_time + ({move}) WHERE id = :id",
                  seconds=seconds, id=order_id)  # fmt: skip
    await due(db, order_id)


@pytest.mark.parametrize(("hold", "before"), [(600, 30), (61, 30), (10, 5), (1, 0.5)])
async def test_who_waits_for_their_customer_is_looked_at_before_the_hold_ends(
    db: Database, hold: float, before: float
) -> None:
    (new,) = await placed(db, hold_expire_time=datetime.now(UTC) + timedelta(seconds=hold))
    saga = await claimed(db, new.id)
    assert not saga.hold_ends

    await journal.save(db, [Pause(saga, True, hold + 2.5)])

    assert hold - before - 0.4 < await seconds_to_go(db, new.id) < hold - before + 0.1
    assert await journal.claim_due(db, 5, slow=5) == []


async def test_what_is_tried_again_sooner_is_not_kept_waiting_for_the_look(db: Database) -> None:
    (new,) = await placed(db)
    await journal.save(db, [Pause(await claimed(db, new.id), True, 15.0)])
    assert 14 < await seconds_to_go(db, new.id) < 15.1


async def test_looks_come_closer_to_the_end_and_then_no_more(db: Database) -> None:
    """A customer may begin to pay after the first look. None asks again and again."""
    (new,) = await placed(db)
    for left, next_look in ((29, 7.25), (7.2, 1.8), (1.8, None)):
        await hold_left(db, new.id, seconds=left)
        (saga,) = await journal.claim_due(db, 5, slow=5)
        assert saga.hold_ends
        await journal.save(db, [Pause(saga, True, left + 2.5)])
        assert not await journal.claim_due(db, 5, slow=5)
        seconds = await look_in(db, new.id)
        if next_look is None:
            assert seconds is None
            assert left + 2 < await seconds_to_go(db, new.id) < left + 2.6
        else:
            assert left - next_look - 0.4 < await seconds_to_go(db, new.id) < left - next_look + 0.1
    await due(db, new.id)
    assert not (await claimed(db, new.id)).hold_ends


async def test_a_look_is_found_by_whoever_comes_after_a_process_that_died(db: Database) -> None:
    (new,) = await placed(db)
    await hold_left(db, new.id, seconds=29)
    assert (await claimed(db, new.id)).hold_ends  # and this one dies

    await hold_left(db, new.id, seconds=7)

    (saga,) = await journal.claim_due(db, 5, slow=5)
    assert (saga.hold_ends, saga.progress.extended) == (True, False)


async def test_an_extension_shows_in_the_order_and_ends_the_looks(db: Database) -> None:
    (new,) = await placed(db)
    await hold_left(db, new.id, seconds=29)
    saga = await claimed(db, new.id)
    saga.progress, saga.hold_expire_time = saga.progress.stretched(), saga.hold_expire_time + timedelta(minutes=10)

    for _ in range(2):
        await journal.save(db, [Pause(saga, True, 631.5)])

    order = await the_order(db, new.id)
    assert (order.hold_expire_time, order.version) == (saga.hold_expire_time, 2)
    assert 631 < await seconds_to_go(db, new.id) < 631.6
    await hold_left(db, new.id, seconds=5)
    again = await claimed(db, new.id)
    assert (again.progress.extended, again.needs_time, again.progress.asked) == (True, False, "")
    await hold_left(db, new.id, seconds=-3)
    assert (await claimed(db, new.id)).progress.asked == HOLD_EXPIRED


async def test_who_was_overtaken_does_not_move_the_hold(db: Database) -> None:
    (new,) = await placed(db)
    stale, _ = await claimed(db, new.id), await claimed(db, new.id)
    stale.progress, stale.hold_expire_time = stale.progress.stretched(), stale.hold_expire_time + timedelta(minutes=10)
    assert await journal.save(db, [Pause(stale, True, 5.0)]) == [False]
    assert (await the_order(db, new.id)).hold_expire_time == new.hold_expire_time
    assert not (await claimed(db, new.id)).progress.extended


async def test_a_settled_order_has_nothing_to_claim_ask_or_wake(db: Database) -> None:
    (new,) = await placed(db)
    await journal.finish(db, [Ending(await claimed(db, new.id), State.PAID, "")])
    await ask(db, new.id, CANCELLED)
    await wake(db, new.id)
    assert await claim_one(db, new.id) is None
    assert (await the_order(db, new.id)).state is State.PAID


async def test_events_of_other_services_become_wishes_and_wakes(db: Database) -> None:
    expired, paid = await placed(db, 2)
    for order in (expired, paid):
        await journal.save(db, [Pause(await claimed(db, order.id), True, 600.0)])
    async with db.begin() as tx:
        await facts.hold_expired(tx, [ReservationExpired(reservation_id=str(expired.id)).SerializeToString()])
        event = PaymentChanged(order_id=str(paid.id), state="SUCCEEDED", amount_minor_units=999)
        await facts.paid_or_not(tx, [event.SerializeToString(), event.SerializeToString()])

    asked = {saga.order_id: saga.progress.asked for saga in await journal.claim_due(db, 5, slow=5)}
    assert asked == {expired.id: HOLD_EXPIRED, paid.id: ""}


def refund_event(new: NewOrder, minor: int) -> bytes:
    return PaymentChanged(
        order_id=str(new.id), state="REFUNDED", refunded_minor_units=minor, amount_minor_units=new.total.minor
    ).SerializeToString()


async def test_what_staff_paid_back_before_the_saga_ended_is_not_forgotten(db: Database) -> None:
    """Charged, and paid back at once, while inventory was away: the order must not stand as paid."""
    (new,) = await placed(db)
    saga = await claimed(db, new.id)
    saga.payment = replace(PAYMENT, state=PaymentState.SUCCEEDED)
    async with db.begin() as tx:
        await facts.paid_or_not(tx, [refund_event(new, new.total.minor)])

    await journal.finish(db, [Ending(saga, State.PAID, "")])

    order = await the_order(db, new.id)
    assert order.state is State.REFUNDED
    assert order.payment
    assert order.payment.state is PaymentState.REFUNDED
    assert [state for state, *_ in await log_of(db, new.id)] == ["PENDING", "PAID", "REFUNDED"]


@pytest.mark.parametrize(
    ("amounts", "state"),
    [([300], "PARTIALLY_REFUNDED"), ([300, 999], "REFUNDED"), ([999, 300], "REFUNDED"), ([999, 999], "REFUNDED")],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_refunds_by_staff_reach_the_order_in_whatever_order_they_come(
    db: Database, amounts: list[int], state: str, at_once: bool
) -> None:
    (new,) = await placed(db)
    saga = await claimed(db, new.id)
    saga.payment = replace(PAYMENT, state=PaymentState.SUCCEEDED)
    await journal.finish(db, [Ending(saga, State.PAID, "")])
    events = [refund_event(new, new.total.minor if amount == 999 else amount) for amount in amounts]
    for batch in [events] if at_once else [[event] for event in events]:
        async with db.begin() as tx:
            await facts.paid_or_not(tx, batch)

    order = await the_order(db, new.id)
    assert order.state == state
    assert (await log_of(db, new.id))[-1] == (state, "", "payments")
    versions = [version for _, version in await told(db, new.id)]
    assert versions == list(range(1, len(versions) + 1))


async def test_events_and_ends_of_the_same_sagas_do_not_lock_each_other_out(db: Database) -> None:
    """Whatever the order in which each of them names the sagas."""
    new = await placed(db, 100)
    sagas = [await claimed(db, order.id) for order in new]
    ids_, events = [order.id for order in new], [refund_event(order, 1) for order in reversed(new)]

    async def wakes() -> None:
        async with db.begin() as tx:
            await journal.wake(tx, ids_)

    async def asks() -> None:
        async with db.begin() as tx:
            await journal.ask(tx, ids_[::-1], COMPENSATED)

    async def pays_back() -> None:
        async with db.begin() as tx:
            await facts.paid_or_not(tx, events)

    for number in range(40):
        shown = replace(PAYMENT, client_secret=str(number))
        for saga in sagas:
            saga.payment = shown
        saves = journal.save(db, [Pause(saga, False, 600.0) for saga in reversed(sagas)])
        await asyncio.gather(wakes(), saves, asks(), pays_back())

    ends = journal.finish(db, [Ending(saga, State.PAID, "") for saga in reversed(sagas)])
    assert all((await asyncio.gather(ends, wakes(), asks(), pays_back()))[0])


async def test_a_saga_that_is_taken_back_is_not_paid_by_whoever_had_it(db: Database) -> None:
    """The operator is told that it goes back; its process, about to have the order paid, knows nothing of that."""
    (new,) = await placed(db)
    saga = await claimed(db, new.id)
    await console.compensate(db, new.id, Mover("operator:somebody"))

    assert await journal.finish(db, [Ending(saga, State.PAID, "")]) == [False]

    assert (await the_order(db, new.id)).state is State.PENDING
    assert [s.progress.asked for s in await journal.claim_due(db, 5, slow=5)] == [COMPENSATED]


async def test_sagas_under_way_are_counted_and_those_that_do_not_get_on(db: Database) -> None:
    waits, stuck, fresh = await placed(db, 3)
    saga = await claimed(db, waits.id)
    saga.payment = PAYMENT
    await journal.save(db, [Pause(saga, True, 600.0)])
    await an_hour_passes(db, waits.id)
    assert (await console.counted(db))[:2] == (3, 0)
    await an_hour_passes(db, stuck.id)
    unsettled, stuck_sagas, oldest = await console.counted(db)
    assert (unsettled, stuck_sagas) == (3, 1)
    assert oldest > 3000
    assert [saga.order_id for saga in await console.sagas(db, stuck=True, after=None, most=5)] == [stuck.id]
    assert fresh.id in [saga.order_id for saga in await console.sagas(db, stuck=False, after=None, most=5)]
    # Once somebody asks for its end, it waits for no customer any more.
    await ask(db, waits.id, CANCELLED)
    await an_hour_passes(db, waits.id)
    assert (await console.counted(db))[1] == 2


async def test_a_saga_is_not_stuck_for_the_time_its_customer_took(db: Database) -> None:
    (new,) = await placed(db)
    saga = await claimed(db, new.id)
    saga.payment = PAYMENT
    await journal.save(db, [Pause(saga, True, 600.0)])
    await an_hour_passes(db, new.id)

    await claimed(db, new.id)

    unsettled, stuck, oldest = await console.counted(db)
    assert (unsettled, stuck) == (1, 0)
    assert oldest < 60


async def test_a_saga_that_cannot_ask_whether_its_customer_has_paid_is_stuck(db: Database) -> None:
    (new,) = await placed(db)
    saga = await claimed(db, new.id)
    saga.payment, saga.cause = PAYMENT, "charge: Payments is not available."
    await journal.save(db, [Pause(saga, True, 600.0)])
    await an_hour_passes(db, new.id)
    assert (await console.counted(db))[1] == 1
    assert not (await console.get(db, new.id)).waits_for_customer


async def an_hour_passes(db: Database, order_id: uuid.UUID) -> None:
    await run_sql(db, "UPDATE sagas SET progress_time = now() - interval '1 hour' WHERE order_id = :id", id=order_id)
