"""Orders and sagas in PostgreSQL: one order for each request, one lease for each saga, and a complete log."""

import asyncio
import uuid
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.chassis import ids
from services.chassis.data.db import Database
from services.orders import consumers
from services.orders.domain import Actor, Order, Payment, PaymentState, State
from services.orders.saga import operators
from services.orders.saga.plan import CANCELLED, COMPENSATED, HOLD_EXPIRED, Phase, Progress, Saga
from services.orders.saga.slots import OPENING_EACH_MOST, Free
from services.orders.sql import combined, orders, sagas
from services.orders.sql.combined import Checkpoint
from stampede.inventory.v1.events_pb2 import ReservationExpired
from stampede.payments.v1.events_pb2 import PaymentChanged
from tests.integration.orders.conftest import an_order, log_of, place, published, rows_of, run_sql, the_order

PAID, UNDONE = Progress(Phase.DONE, 3), Progress(Phase.UNDONE, 0, CANCELLED)
PAYMENT = Payment(uuid.UUID(int=7), "sandbox", PaymentState.AWAITING_CUSTOMER, "a secret")


async def placed(db: Database, count: int = 1, *, lease_seconds: float = 20.0, **fields: object) -> list[Order]:
    new = [an_order(**fields) for _ in range(count)]
    await place(db, *new, lease_seconds=lease_seconds)
    return new


async def save(db: Database, *checkpoints: Checkpoint) -> list[bool]:
    async with db.begin() as tx:
        return await combined.save(tx, checkpoints)


async def pause(db: Database, saga: Saga, seconds: float) -> bool:
    return (await save(db, Checkpoint(saga, paused=True, seconds=seconds)))[0]


async def finish(db: Database, *finished: Saga, progress: Progress = PAID) -> list[bool]:
    for saga in finished:
        saga.progress = progress
    async with db.begin() as tx:
        return await combined.finish(tx, finished)


async def claim_due(db: Database, most: int = 5) -> list[Saga]:
    return await sagas.claim_due(db, Free(most, most, most))


async def due(db: Database, *order_ids: uuid.UUID) -> None:
    """Has leases and pauses end now."""
    await run_sql(
        db, "UPDATE sagas SET next_time = now() - interval '1 second' WHERE order_id = ANY(:i)", i=list(order_ids)
    )


async def seconds_to_go(db: Database, order_id: uuid.UUID) -> float:
    query = "SELECT extract(epoch FROM next_time - clock_timestamp())::float FROM sagas WHERE order_id = :id"
    ((seconds,),) = await rows_of(db, query, id=order_id)
    return float(seconds)


async def claim_one(db: Database, order_id: uuid.UUID) -> Saga | None:
    async with db.begin() as tx:
        return await sagas.claim_one(tx, order_id)


async def claimed(db: Database, order_id: uuid.UUID) -> Saga:
    saga = await claim_one(db, order_id)
    assert saga
    return saga


async def request_cancel(db: Database, order_id: uuid.UUID, reason: str) -> None:
    async with db.begin() as tx:
        await sagas.request_cancel(tx, [order_id], reason, Actor("inventory"))


async def note_payment(db: Database, order_id: uuid.UUID) -> None:
    async with db.begin() as tx:
        await sagas.note_payments(tx, [order_id])


async def test_batch_of_new_and_known_orders_returns_each_in_its_place(db: Database) -> None:
    (known,) = await placed(db)
    # The period of a derived id has ended: the same request comes under another id.
    same_request = an_order(customer_id=known.customer_id, request_id=known.request_id)
    fresh = [an_order(), an_order()]

    answers = await place(db, fresh[0], known, same_request, fresh[1])

    assert [(order.id, new) for order, new in answers] == [
        (fresh[0].id, True), (known.id, False), (known.id, False), (fresh[1].id, True),
    ]  # fmt: skip
    assert len(await rows_of(db, "SELECT 1 FROM orders")) == len(await rows_of(db, "SELECT 1 FROM sagas")) == 3
    for order in (known, *fresh):
        assert await log_of(db, order.id) == [("PENDING", "", "customer")]
        assert await published(db, order.id) == [("placed", 1)]


async def test_order_that_stands_twice_in_a_batch_is_placed_once(db: Database) -> None:
    order, neighbour = an_order(), an_order()

    answers = await place(db, order, neighbour, replace(order, digest=b"other" * 6))

    assert [(o.id, new) for o, new in answers] == [(order.id, True), (neighbour.id, True), (order.id, False)]
    assert answers[2][0].digest == order.digest
    assert await published(db, order.id) == [("placed", 1)]


async def test_ten_concurrent_repeats_are_one_order_and_one_event(db: Database) -> None:
    order = an_order()
    others = [replace(order, id=ids.new()) for _ in range(2)]  # as when the period of a derived id ends

    answers = await asyncio.gather(*(place(db, o) for o in ([order] * 8 + others)))

    assert len({answer[0][0].id for answer in answers}) == 1
    assert sum(answer[0][1] for answer in answers) == 1
    assert len(await rows_of(db, "SELECT 1 FROM outbox")) == 1
    assert len(await rows_of(db, "SELECT 1 FROM order_log")) == 1


async def test_order_is_read_as_it_was_written(db: Database) -> None:
    (new,) = await placed(db)
    found, unknown = await orders.find_by_requests(
        db, [(new.customer_id, new.request_id), (new.customer_id, uuid.uuid4())]
    )
    assert found
    assert unknown is None
    assert (found.lines, found.total, found.digest, found.state) == (new.lines, new.total, new.digest, State.PENDING)
    assert found == await the_order(db, new.id)


async def test_end_moves_the_order_with_log_and_event_and_deletes_the_saga(db: Database) -> None:
    (new,) = await placed(db)
    saga = await claimed(db, new.id)
    saga.payment = replace(PAYMENT, state=PaymentState.SUCCEEDED)

    assert await finish(db, saga) == [True]
    assert await finish(db, saga) == [False]

    order = await the_order(db, new.id)
    assert (order.state, order.version, order.payment) == (State.PAID, 2, saga.payment)
    assert await log_of(db, new.id) == [("PENDING", "", "customer"), ("PAID", "", "saga")]
    assert await published(db, new.id) == [("placed", 1), ("paid", 2)]
    assert await rows_of(db, "SELECT 1 FROM sagas") == []


async def test_older_fencing_token_changes_nothing(db: Database) -> None:
    (new,) = await placed(db)
    stale, owner = await claimed(db, new.id), await claimed(db, new.id)
    before = await rows_of(db, "SELECT * FROM sagas"), await rows_of(db, "SELECT * FROM orders")
    stale.progress, stale.payment = Progress(Phase.BACKWARD, 2, "NO"), PAYMENT

    assert not await pause(db, stale, 0.0)
    assert await finish(db, stale) == [False]

    assert (await rows_of(db, "SELECT * FROM sagas"), await rows_of(db, "SELECT * FROM orders")) == before
    assert await finish(db, owner) == [True]
    assert not await pause(db, stale, 0.0)


async def test_older_fencing_token_in_a_batch_concerns_no_neighbour(db: Database) -> None:
    orders = await placed(db, 3)
    own = [await claimed(db, o.id) for o in orders]
    await claimed(db, orders[1].id)

    assert await save(db, *(Checkpoint(s, paused=True, seconds=5.0) for s in own)) == [True, False, True]
    assert await finish(db, *own, progress=UNDONE) == [True, False, True]
    assert [(await the_order(db, o.id)).state for o in orders] == ["CANCELLED", "PENDING", "CANCELLED"]


async def test_batch_with_two_fencing_tokens_of_one_saga_obeys_the_newer(db: Database) -> None:
    """A process compensates a saga that it carries; both of its tasks save, and then finish, in one batch."""
    (new,) = await placed(db)
    stale, owner = await claimed(db, new.id), await claimed(db, new.id)
    stale.progress, owner.progress = Progress(Phase.FORWARD, 2), Progress(Phase.BACKWARD, 2, COMPENSATED)
    stale.payment, owner.payment = PAYMENT, replace(PAYMENT, client_secret="another")

    for batch, outcomes in (((stale, owner), [False, True]), ((owner, stale), [True, False])):
        assert await save(db, *(Checkpoint(saga, paused=False, seconds=5.0) for saga in batch)) == outcomes
        assert (await the_order(db, new.id)).payment == owner.payment

    stale.progress, owner.progress = PAID, replace(UNDONE, reason=COMPENSATED)
    async with db.begin() as tx:
        assert await combined.finish(tx, [stale, owner]) == [False, True]
    assert (await the_order(db, new.id)).state is State.CANCELLED


async def test_concurrent_ends_of_one_order_happen_once(db: Database) -> None:
    (new,) = await placed(db)
    own = [await claimed(db, new.id) for _ in range(6)]

    done = await asyncio.gather(*(finish(db, s) for s in own))

    assert [d[0] for d in done] == [False] * 5 + [True]
    assert await published(db, new.id) == [("placed", 1), ("paid", 2)]


async def test_concurrent_claims_share_due_sagas_without_overlap(db: Database) -> None:
    orders = await placed(db, 40, lease_seconds=0.0)

    batches = await asyncio.gather(*(claim_due(db, 15) for _ in range(4)))

    found = [saga.order_id for batch in batches for saga in batch]
    assert len(found) == len(set(found)) == 40
    assert set(found) == {o.id for o in orders}
    assert {saga.fencing_token for batch in batches for saga in batch} == {2}


async def test_charges_and_other_customers_are_claimed_before_one_who_opens_many(db: Database) -> None:
    many, one, crowded = ids.new(), ids.new(), ids.new()
    for customer in (many, many, many, crowded, one):
        await placed(db, 10, lease_seconds=0.0, payment_method="", customer_id=customer)
    charges = await placed(db, 3, lease_seconds=0.0)

    claimed = await sagas.claim_due(db, Free(32, 24, 12), crowded=[crowded])

    counts = Counter(saga.customer_id for saga in claimed)
    assert {counts.pop(charge.customer_id) for charge in charges} == {1}
    assert counts == {many: OPENING_EACH_MOST, one: 12 - OPENING_EACH_MOST}
    assert [saga.customer_id for saga in await sagas.claim_due(db, Free(1, 1, 0))] == []
    again = await sagas.claim_due(db, Free(32, 24, 12), crowded=[many, crowded])
    assert [saga.customer_id for saga in again] == [one] * 6


async def test_leased_saga_is_claimed_once_the_lease_has_expired(db: Database) -> None:
    (new,) = await placed(db)
    assert await claim_due(db) == []
    assert 18 < await seconds_to_go(db, new.id) < 20.1

    await due(db, new.id)
    (saga,) = await claim_due(db)

    assert (saga.order_id, saga.fencing_token, saga.total, saga.progress) == (new.id, 2, new.total, Progress())
    assert await claim_due(db) == []


async def test_saga_continues_from_its_checkpoint(db: Database) -> None:
    (new,) = await placed(db)
    saga = await claimed(db, new.id)
    saga.progress, saga.payment, saga.attempts = Progress(Phase.BACKWARD, 2, "RESERVATION_LOST"), PAYMENT, 3
    assert await save(db, Checkpoint(saga, paused=False, seconds=0.0)) == [True]

    (again,) = await claim_due(db)

    assert (again.progress, again.payment, again.attempts) == (saga.progress, PAYMENT, 3)
    assert (await the_order(db, new.id)).payment == PAYMENT


async def test_payment_raises_the_version_of_its_order_once(db: Database) -> None:
    (new,) = await placed(db)
    saga = await claimed(db, new.id)
    saga.payment = PAYMENT
    for _ in range(3):
        await pause(db, saga, 5.0)
    assert (await the_order(db, new.id)).version == 2


async def test_cancel_reason_wakes_a_paused_saga_and_the_first_stays(db: Database) -> None:
    (new,) = await placed(db)
    await pause(db, await claimed(db, new.id), 600.0)
    await request_cancel(db, new.id, CANCELLED)
    await request_cancel(db, new.id, HOLD_EXPIRED)

    (saga,) = await claim_due(db)

    assert saga.progress.cancel_reason == CANCELLED


async def test_cancel_reason_reaches_a_leased_saga_when_it_pauses(db: Database) -> None:
    (new,) = await placed(db)
    saga = await claimed(db, new.id)
    await request_cancel(db, new.id, CANCELLED)
    assert await claim_due(db) == []

    await pause(db, saga, 600.0)

    assert [s.progress.cancel_reason for s in await claim_due(db)] == [CANCELLED]


async def test_saga_that_has_the_cancel_reason_keeps_its_pause(db: Database) -> None:
    """Otherwise a payment that cannot be cancelled yet would be asked for without any pause."""
    (new,) = await placed(db)
    await request_cancel(db, new.id, CANCELLED)
    saga = await claimed(db, new.id)
    assert saga.progress.cancel_reason == CANCELLED

    await pause(db, saga, 8.0)

    assert await claim_due(db) == []
    assert 7 < await seconds_to_go(db, new.id) < 8.1


async def test_next_process_of_a_name_claims_what_the_last_one_left(db: Database) -> None:
    """Without waiting for the leases. Paused sagas, and those of other processes, stay as they are."""
    placed_here, claimed_here, paused = await placed(db, 3)
    await combined.place(db, [(elsewhere := an_order(), 20.0)], holder="host-2")
    await run_sql(db, "UPDATE sagas SET holder = 'host-1' WHERE holder = ''")
    for order in (claimed_here, paused):
        async with db.begin() as tx:
            saga = await sagas.claim_one(tx, order.id, holder="host-1")
            assert saga
    await pause(db, saga, 600.0)
    assert await claim_due(db) == []

    assert await sagas.make_leased_due(db, "host-1") == 2

    assert {saga.order_id for saga in await claim_due(db)} == {placed_here.id, claimed_here.id}
    assert elsewhere.id not in {saga.order_id for saga in await claim_due(db)}


async def test_payment_event_wakes_a_paused_saga_and_no_other(db: Database) -> None:
    waiting, running = await placed(db, 2)
    await pause(db, await claimed(db, waiting.id), 600.0)
    for order in (waiting, running):
        await note_payment(db, order.id)

    assert [saga.order_id for saga in await claim_due(db)] == [waiting.id]


async def test_payment_event_of_a_leased_saga_is_not_lost(db: Database) -> None:
    """Payments answered that it waits for the customer; the customer paid, the event came; then the saga paused."""
    (new,) = await placed(db)
    saga = await claimed(db, new.id)
    await note_payment(db, new.id)
    await pause(db, saga, 600.0)

    assert [s.order_id for s in await claim_due(db)] == [new.id]


async def test_expired_hold_cancels_without_an_event(db: Database) -> None:
    (new,) = await placed(db)
    await run_sql(db, "UPDATE orders SET hold_expire_time = now() - interval '3 seconds'")
    assert (await claimed(db, new.id)).progress.cancel_reason == HOLD_EXPIRED


# --- looking at holds before they end ---


async def hold_check_in(db: Database, order_id: uuid.UUID) -> float | None:
    """Seconds until the hold check; None if there is none."""
    query = "SELECT extract(epoch FROM hold_check_time - clock_timestamp())::float FROM sagas WHERE order_id = :id"
    ((seconds,),) = await rows_of(db, query, id=order_id)
    return None if seconds is None else float(seconds)


async def hold_left(db: Database, order_id: uuid.UUID, *, seconds: float) -> None:
    """Moves the hold so that `seconds` are left, and makes its saga due."""
    move = "clock_timestamp() + make_interval(secs => :seconds) - hold_expire_time"
    check = f"""
        UPDATE sagas SET hold_check_time = hold_check_time + (SELECT {move} FROM orders WHERE id = :id)
        WHERE order_id = :id
    """
    await run_sql(db, check, seconds=seconds, id=order_id)
    expire = f"UPDATE orders SET hold_expire_time = hold_expire_time + ({move}) WHERE id = :id"
    await run_sql(db, expire, seconds=seconds, id=order_id)
    await due(db, order_id)


@pytest.mark.parametrize(("hold", "before"), [(600, 30), (61, 30), (10, 5), (1, 0.5)])
async def test_paused_saga_is_due_before_its_hold_ends(db: Database, hold: float, before: float) -> None:
    (new,) = await placed(db, hold_expire_time=datetime.now(UTC) + timedelta(seconds=hold))
    saga = await claimed(db, new.id)
    assert not saga.hold_check_due

    await pause(db, saga, hold + 0.1)

    assert hold - before - 0.4 < await seconds_to_go(db, new.id) < hold - before + 0.1
    assert await claim_due(db) == []


async def test_earlier_retry_does_not_wait_for_the_hold_check(db: Database) -> None:
    (new,) = await placed(db)
    await pause(db, await claimed(db, new.id), 15.0)
    assert 14 < await seconds_to_go(db, new.id) < 15.1


async def test_hold_checks_approach_the_end_and_then_stop(db: Database) -> None:
    """A customer may begin to pay after the first check."""
    (new,) = await placed(db)
    for left, next_look in ((29, 7.25), (7.2, 1.8), (1.8, None)):
        await hold_left(db, new.id, seconds=left)
        (saga,) = await claim_due(db)
        assert saga.hold_check_due
        await pause(db, saga, left + 0.1)
        assert not await claim_due(db)
        seconds = await hold_check_in(db, new.id)
        if next_look is None:
            assert seconds is None
            assert left - 0.4 < await seconds_to_go(db, new.id) < left + 0.2
        else:
            assert left - next_look - 0.4 < await seconds_to_go(db, new.id) < left - next_look + 0.1
    await due(db, new.id)
    assert not (await claimed(db, new.id)).hold_check_due


async def test_hold_check_of_a_process_that_died_is_repeated(db: Database) -> None:
    (new,) = await placed(db)
    await hold_left(db, new.id, seconds=29)
    assert (await claimed(db, new.id)).hold_check_due  # and this process dies

    await hold_left(db, new.id, seconds=7)

    (saga,) = await claim_due(db)
    assert saga.hold_check_due


async def test_extension_is_written_to_the_order_and_ends_the_checks(db: Database) -> None:
    (new,) = await placed(db)
    await hold_left(db, new.id, seconds=29)
    saga = await claimed(db, new.id)
    saga.hold_extended, saga.hold_expire_time = True, saga.hold_expire_time + timedelta(minutes=10)

    for _ in range(2):
        await pause(db, saga, 631.5)

    order = await the_order(db, new.id)
    assert (order.hold_expire_time, order.version) == (saga.hold_expire_time, 2)
    assert 631 < await seconds_to_go(db, new.id) < 631.6
    await hold_left(db, new.id, seconds=5)
    again = await claimed(db, new.id)
    assert (again.hold_check_due, again.needs_more_time, again.progress.cancel_reason) == (False, False, "")
    await hold_left(db, new.id, seconds=-3)
    assert (await claimed(db, new.id)).progress.cancel_reason == HOLD_EXPIRED


async def test_older_fencing_token_does_not_extend_the_hold(db: Database) -> None:
    (new,) = await placed(db)
    stale, _ = await claimed(db, new.id), await claimed(db, new.id)
    stale.hold_extended, stale.hold_expire_time = True, stale.hold_expire_time + timedelta(minutes=10)
    assert not await pause(db, stale, 5.0)
    assert (await the_order(db, new.id)).hold_expire_time == new.hold_expire_time
    assert await hold_check_in(db, new.id) is not None


async def test_settled_order_has_no_saga_to_claim_cancel_or_wake(db: Database) -> None:
    (new,) = await placed(db)
    await finish(db, await claimed(db, new.id))
    await request_cancel(db, new.id, CANCELLED)
    await note_payment(db, new.id)
    assert await claim_one(db, new.id) is None
    assert (await the_order(db, new.id)).state is State.PAID


async def test_events_of_other_services_cancel_and_wake_sagas(db: Database) -> None:
    expired, forged, paid = await placed(db, 3)
    for order in (expired, forged, paid):
        await pause(db, await claimed(db, order.id), 600.0)
    await run_sql(db, "UPDATE orders SET hold_expire_time = now() WHERE id = :id", id=expired.id)
    events = [ReservationExpired(reservation_id=str(order.id)).SerializeToString() for order in (expired, forged)]
    async with db.begin() as tx:
        await consumers.note_expired(tx, events)
        event = PaymentChanged(order_id=str(paid.id), state="SUCCEEDED", amount_minor_units=999)
        await consumers.note_payments(tx, [event.SerializeToString(), event.SerializeToString()])

    asked = {saga.order_id: saga.progress.cancel_reason for saga in await claim_due(db)}
    # An event alone ends no hold: the order's own timer does.
    assert asked == {expired.id: HOLD_EXPIRED, forged.id: "", paid.id: ""}


async def test_events_and_ends_of_the_same_sagas_do_not_deadlock(db: Database) -> None:
    """In whatever order each of them names the sagas."""
    new = await placed(db, 100)
    own = [await claimed(db, order.id) for order in new]
    ids_ = [order.id for order in new]
    events = [PaymentChanged(order_id=str(id_), refunded_minor_units=1).SerializeToString() for id_ in reversed(ids_)]

    async def wakes() -> None:
        async with db.begin() as tx:
            await sagas.note_payments(tx, ids_)

    async def asks() -> None:
        async with db.begin() as tx:
            await sagas.request_cancel(tx, ids_[::-1], COMPENSATED, Actor("operator:somebody"))

    async def pays_back() -> None:
        async with db.begin() as tx:
            await consumers.note_payments(tx, events)

    for number in range(40):
        shown = replace(PAYMENT, client_secret=str(number))
        for saga in own:
            saga.payment = shown
        saves = save(db, *(Checkpoint(saga, paused=False, seconds=600.0) for saga in reversed(own)))
        await asyncio.gather(wakes(), saves, asks(), pays_back())

    ends = finish(db, *reversed(own))
    assert all((await asyncio.gather(ends, wakes(), asks(), pays_back()))[0])


async def test_compensated_saga_is_not_finished_by_its_former_process(db: Database) -> None:
    """Its process, about to have the order paid, does not have the cancel reason yet."""
    (new,) = await placed(db)
    saga = await claimed(db, new.id)
    await operators.compensate(db, new.id, Actor("operator:somebody"))

    assert await finish(db, saga) == [False]

    assert (await the_order(db, new.id)).state is State.PENDING
    assert [s.progress.cancel_reason for s in await claim_due(db)] == [COMPENSATED]


async def test_running_and_stuck_sagas_are_counted(db: Database) -> None:
    waiting, stuck, fresh = await placed(db, 3)
    saga = await claimed(db, waiting.id)
    saga.payment = PAYMENT
    await pause(db, saga, 600.0)
    await an_hour_passes(db, waiting.id)
    assert (await counted(db))[:2] == (3, 0)
    await an_hour_passes(db, stuck.id)
    unsettled, stuck_sagas, oldest = await counted(db)
    assert (unsettled, stuck_sagas) == (3, 1)
    assert oldest > 3000
    assert [saga.order_id for saga in await operators.list_sagas(db, stuck=True, after=None, most=5)] == [stuck.id]
    assert fresh.id in [saga.order_id for saga in await operators.list_sagas(db, stuck=False, after=None, most=5)]
    # With a cancel reason, it does not wait for its customer.
    await request_cancel(db, waiting.id, CANCELLED)
    await an_hour_passes(db, waiting.id)
    assert (await counted(db))[1] == 2


async def test_time_of_the_customer_does_not_make_a_saga_stuck(db: Database) -> None:
    (new,) = await placed(db)
    saga = await claimed(db, new.id)
    saga.payment = PAYMENT
    await pause(db, saga, 600.0)
    await an_hour_passes(db, new.id)

    await claimed(db, new.id)

    unsettled, stuck, oldest = await counted(db)
    assert (unsettled, stuck) == (1, 0)
    assert oldest < 60


async def test_saga_that_cannot_ask_whether_its_customer_has_paid_is_stuck(db: Database) -> None:
    (new,) = await placed(db)
    saga = await claimed(db, new.id)
    saga.payment, saga.cause = PAYMENT, "charge: Payments is not available."
    await pause(db, saga, 600.0)
    await an_hour_passes(db, new.id)
    assert (await counted(db))[1] == 1
    assert not (await operators.get(db, new.id)).waits_for_customer


@pytest.mark.parametrize("cancelled", [False, True])
async def test_saga_whose_money_the_provider_moves_is_not_stuck(db: Database, cancelled: bool) -> None:
    """As a bank debit, for days; not for ever, and only while the provider answers."""
    (new,) = await placed(db)
    if cancelled:
        await request_cancel(db, new.id, CANCELLED)
    saga = await claimed(db, new.id)
    saga.waits_for_provider, saga.cause = True, "charge: the provider is moving the money"
    await pause(db, saga, 600.0)
    await an_hour_passes(db, new.id)

    assert (await sagas.count(db))[:3] == (1, 0, 1)
    assert (await sagas.count(db)).oldest_seconds < 60
    view = await operators.get(db, new.id)
    assert (view.waits_for_provider, view.stuck, view.cause) == (True, False, saga.cause)
    assert await operators.list_sagas(db, stuck=True, after=None, most=5) == []
    await claimed(db, new.id)
    assert not (await operators.get(db, new.id)).stuck, "also while a process asks"

    await run_sql(db, "UPDATE sagas SET create_time = now() - interval '22 days'")
    assert (await sagas.count(db))[:3] == (1, 1, 0)
    await run_sql(db, "UPDATE sagas SET create_time = now(), next_time = now() - interval '2 minutes'")
    assert (await sagas.count(db))[:3] == (1, 1, 0), "no process asks"
    saga = await claimed(db, new.id)
    await pause(db, saga, 600.0)
    assert (await sagas.count(db))[:3] == (1, 1, 0), "the provider did not answer"


async def counted(db: Database) -> tuple[int, int, float]:
    counts = await sagas.count(db)
    return counts.running, counts.stuck, counts.oldest_seconds


async def an_hour_passes(db: Database, order_id: uuid.UUID) -> None:
    await run_sql(db, "UPDATE sagas SET progress_time = now() - interval '1 hour' WHERE order_id = :id", id=order_id)
