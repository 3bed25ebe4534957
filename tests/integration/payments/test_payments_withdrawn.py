"""No call that could take money begins once a cancellation is durable, whatever the call waits for."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable

import pytest

from services.chassis.data.db import Database
from services.payments.dispatch.dispatcher import ChargeDispatcher
from services.payments.providers.limits.pacer import Pacer
from services.payments.sql import payments
from stampede.payments.v1 import charge_service_pb2 as charge_pb
from tests.integration.payments.conftest import Payments, Sandbox, State, an_order
from tests.support.waiting import until


class Jam:
    """The turns of provider calls, which a test gives by hand."""

    def __init__(self, service: Payments) -> None:
        self._limits, self._pacer = service.provider.limits, service.provider.limits.pacer
        self._limits.pacer = Pacer(calls_per_second=0.000_001, concurrency=64)
        self._limits.pacer._bucket._tokens = 0.0

    def end(self) -> None:
        """Give all waiting calls their turns."""
        jammed, self._limits.pacer = self._limits.pacer, self._pacer
        for bucket in (jammed._bucket, *(line.bucket for line in jammed._lines.values())):
            bucket.rate = 0
        jammed._give_turns()


@pytest.fixture
async def jam(service: Payments) -> AsyncIterator[Callable[[], Jam]]:
    """Make provider calls wait for their turns."""
    made: list[Jam] = []

    def begin() -> Jam:
        made.append(Jam(service))
        return made[-1]

    yield begin
    for one in made:
        one.end()


async def waiting(service: Payments, *items: charge_pb.Charge) -> "asyncio.Task[list[charge_pb.PaymentOutcome]]":
    """Start charges; return once they wait for their turns."""
    before = len(service.dispatcher._calls._unsent)
    task = asyncio.create_task(service.charge(*items))

    async def all_wait() -> bool:
        return len(service.dispatcher._calls._unsent) == before + len(items)

    await until(all_wait)
    return task


@pytest.mark.parametrize("method", ["pm_card_visa", ""])
async def test_a_cancel_ends_a_charge_that_waits_for_its_turn(
    service: Payments, sandbox: Sandbox, jam: Callable[[], Jam], method: str
) -> None:
    """Neither a charge nor an intent is begun, and the caller hears the end at once."""
    held, items = jam(), [an_order(method) for _ in range(3)]
    charge = await waiting(service, *items)
    cancelled = await service.cancel(*items[:2])
    assert {payment.state for payment in cancelled} == {State.CANCELLED}
    held.end()
    outcomes = await charge
    assert [o.payment.state == State.CANCELLED for o in outcomes] == [True, True, False]
    assert await sandbox.intents(items[0].order_id, items[1].order_id) == []
    assert await service.published(items[0].order_id) == ["cancelled"]


async def test_a_reversal_ends_a_charge_that_waits_for_its_turn(
    service: Payments, sandbox: Sandbox, jam: Callable[[], Jam]
) -> None:
    jam()
    item = an_order()
    charge = await waiting(service, item)
    assert (await service.reverse(item))[0].state == State.CANCELLED
    assert (await charge)[0].payment.state == State.CANCELLED
    assert await sandbox.intents(item.order_id) == []


async def test_a_cancel_in_another_process_ends_a_charge_that_waits(
    service: Payments, sandbox: Sandbox, jam: Callable[[], Jam]
) -> None:
    held, item = jam(), an_order()
    charge = await waiting(service, item)
    await service.rows("UPDATE payments SET cancel_requested = true, version = version + 1, update_time = now()")

    async def long_ago() -> bool:
        return await service.rows("SELECT now() - create_time > interval '60 ms' FROM payments") == [(True,)]

    await until(long_ago)
    held.end()
    assert (await charge)[0].payment.state == State.CANCELLED
    assert await sandbox.intents(item.order_id) == []


async def test_a_failed_try_is_not_repeated_after_a_cancel(service: Payments, sandbox: Sandbox) -> None:
    """The provider answers 500 and comes back: the repeat under the same key would take the money."""
    await sandbox.faults(error_500=True)
    item = an_order()
    charge = asyncio.create_task(service.charged(item))

    async def committed() -> bool:
        return bool(await service.rows("SELECT 1 FROM payments"))

    await until(committed)
    assert (await service.cancel(item))[0].state in (State.PROCESSING, State.CANCELLED)
    await sandbox.control("DELETE", "faults")
    service.start_loops()
    await service.reaches((await charge).payment_id, State.CANCELLED)
    assert await sandbox.intents(item.order_id) == []


async def test_a_cancelled_payment_without_an_answer_is_looked_up(service: Payments, sandbox: Sandbox) -> None:
    """The money moved and the answer was lost: the charge is found, and given back by a reversal."""
    await sandbox.faults(drop_after_charge={"next": 1})
    item = an_order()
    charge = asyncio.create_task(service.charged(item))

    async def charged() -> bool:
        return bool(await sandbox.intents(item.order_id))

    await until(charged)
    await service.cancel(item)
    payment = await charge
    service.start_loops()
    await service.rows("UPDATE payments SET next_check_time = now() WHERE state = 'PROCESSING'")
    await service.reaches(payment.payment_id, State.SUCCEEDED)
    assert (await service.reverse(item))[0].state == State.REFUNDED
    (intent,) = await sandbox.intents(item.order_id)
    assert [refund["amount"] for refund in await sandbox.refunds(intent["id"])] == [1999]


async def test_a_debit_that_succeeds_after_its_cancel_is_published(running: Payments, sandbox: Sandbox) -> None:
    """The order's saga owns the consequence: it asks for the reversal."""
    item = an_order("pm_usBankAccount_processing")
    payment = await running.charged(item)
    assert (await running.cancel(item))[0].state == State.PROCESSING
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.control("POST", f"payment_intents/{intent['id']}/settle", {"outcome": "succeed"})
    await running.reaches(payment.payment_id, State.SUCCEEDED)
    assert await running.published(item.order_id) == ["succeeded"]
    assert (await running.reverse(item))[0].state == State.REFUNDED


async def asked_again(service: Payments) -> None:
    """Let the reconciler ask the provider about all open payments and refunds, once."""
    await service.rows("UPDATE payments SET next_check_time = now() WHERE next_check_time IS NOT NULL")
    await service.rows("UPDATE refunds SET next_check_time = now() WHERE next_check_time IS NOT NULL")
    await service.reconciler.reconcile_once()
    await service.dispatcher.drain(seconds=10)
    service.dispatcher.draining = False


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_debit_is_in_process_while_the_provider_says_so(
    service: Payments, sandbox: Sandbox, cancelled: bool
) -> None:
    """A provider that falls silent is another thing: the debit may have succeeded, and nobody knows."""
    item = an_order("pm_usBankAccount_processing")
    first = await service.charged(item)
    if cancelled:
        await service.reverse(item)
        await asked_again(service)

    async def in_process() -> bool:
        (now,) = await service.reverse(item) if cancelled else [await service.charged(item)]
        assert now.state == State.PROCESSING
        return bool(now.in_process)

    assert (first.state, first.in_process) == (State.PROCESSING, True)
    assert await in_process()
    minutes = "UPDATE payments SET answer_time = answer_time - interval '{} minutes'"
    await service.rows(minutes.format(2))
    await sandbox.faults(error_500=True)
    await asked_again(service)
    assert await in_process(), "one call without an answer is no silence"
    await service.rows(minutes.format(2))
    assert not await in_process()
    await sandbox.control("DELETE", "faults")
    await asked_again(service)
    assert await in_process()


async def test_a_charge_without_an_answer_is_not_in_process(service: Payments, sandbox: Sandbox) -> None:
    await sandbox.faults(error_500=True)
    payment = await service.charged(an_order())
    assert (payment.state, payment.in_process) == (State.PROCESSING, False)


async def test_a_reversal_is_in_process_while_its_refund_is_pending(service: Payments, sandbox: Sandbox) -> None:
    """Money that goes back to a bank account is pending for days."""
    item = an_order()
    await service.charged(item)
    await sandbox.faults(error_500=True, error_500_on="POST refunds")
    (payment,) = await service.reverse(item)
    assert (payment.state, payment.in_process) == (State.SUCCEEDED, False)
    await service.rows("UPDATE refunds SET provider_reference = 're_pending', answer_time = now()")
    (payment,) = await service.reverse(item)
    assert (payment.state, payment.in_process) == (State.SUCCEEDED, True)
    await service.rows("UPDATE refunds SET answer_time = now() - interval '4 minutes'")
    (payment,) = await service.reverse(item)
    assert not payment.in_process


async def crashed(service: Payments, item: charge_pb.Charge, unanswered: str) -> str:
    """Cancel a payment whose only call began before a crash, `unanswered` ago; return its id."""
    payment = await service.charged(item)
    await service.rows(
        "UPDATE payments SET state = 'PROCESSING', provider_reference = NULL, cancel_requested = true,"
        f" next_check_time = now(), unanswered_time = now() - interval '{unanswered}'"
    )
    return payment.payment_id


async def test_a_cancel_waits_while_an_earlier_call_may_arrive(service: Payments, sandbox: Sandbox) -> None:
    await sandbox.faults(error_500=True)
    payment_id = await crashed(service, an_order(), "5 seconds")
    await sandbox.control("DELETE", "faults")
    await service.reconciler.reconcile_once()
    await service.dispatcher.drain(seconds=10)
    assert (await service.payment(uuid.UUID(payment_id))).state == "PROCESSING"
    service.dispatcher.draining = False
    await service.rows("UPDATE payments SET next_check_time = now(), unanswered_time = now() - interval '31 seconds'")
    await service.reconciler.reconcile_once()
    await service.dispatcher.drain(seconds=10)
    assert (await service.payment(uuid.UUID(payment_id))).state == "CANCELLED"


async def test_a_void_whose_key_answers_500_is_repeated_under_another(service: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    payment = await service.charged(item)
    await sandbox.faults(error_500={"next": 1, "saved": True}, error_500_on="POST payment_intents/*/cancel")
    await service.cancel(item)
    await service.rows("UPDATE payments SET next_check_time = now() WHERE state = 'AWAITING_CUSTOMER'")
    service.start_loops()
    await service.reaches(payment.payment_id, State.CANCELLED)
    assert [i["status"] for i in await sandbox.intents(item.order_id)] == ["canceled"]


async def test_a_secret_is_hidden_once_its_payment_is_cancelled(service: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    assert (await service.charged(item)).client_secret
    await sandbox.faults(error_500=True)
    (waiting_,) = await service.cancel(item)
    assert (waiting_.state, waiting_.client_secret) == (State.AWAITING_CUSTOMER, "")


async def test_a_charge_that_the_provider_does_not_have_can_be_ended(service: Payments) -> None:
    item = an_order("")
    payment = await service.charged(item)
    await service.rows("UPDATE payments SET provider_reference = 'pi_of_another_account', next_check_time = now()")
    await service.reconciler.reconcile_once()
    await service.dispatcher.drain(seconds=10)
    service.dispatcher.draining = False
    row = await service.payment(uuid.UUID(payment.payment_id))
    assert (row.state, row.problem) == ("AWAITING_CUSTOMER", "MISSING_AT_PROVIDER")
    await service.cancel(item)
    await service.rows("UPDATE payments SET next_check_time = now(), checks = 3")
    await service.reconciler.reconcile_once()
    await service.dispatcher.drain(seconds=10)
    assert (await service.payment(uuid.UUID(payment.payment_id))).state == "CANCELLED"


async def test_one_walk_finds_all_payments_that_wait(service: Payments, sandbox: Sandbox, db: Database) -> None:
    """After an outage, each of many payments is due for a search of the provider's list."""
    items = [an_order() for _ in range(40)]
    await service.charge(*items)
    await service.rows(
        "UPDATE payments SET state = 'PROCESSING', provider_reference = NULL, checks = 7, next_check_time = now()"
    )
    searches: list[int] = []
    provider = service.provider

    class Counting:
        name, key_lifetime = provider.name, provider.key_lifetime

        def __getattr__(self, name: str) -> object:
            return getattr(provider, name)

        async def find(self, payments: list[object]) -> object:
            searches.append(len(payments))
            return await provider.find(payments)  # type: ignore[arg-type]

    dispatcher = ChargeDispatcher(db, {"stripe": Counting()}, lambda: None)  # type: ignore[dict-item]
    service.dispatcher, service.reconciler._dispatcher = dispatcher, dispatcher
    await service.reconciler.reconcile_once()
    await dispatcher.drain(seconds=20)
    assert await service.rows("SELECT DISTINCT state FROM payments") == [("SUCCEEDED",)]
    assert (sum(searches), len(searches) <= 2) == (40, True), searches


async def test_answer_to_others_does_not_restart_the_checks_of_a_waiting_payment(service: Payments) -> None:
    """A key that the provider answers with 500 for ever must come to its search, however well others are answered."""
    await service.charge(an_order())
    await service.rows(
        "UPDATE payments SET state = 'PROCESSING', provider_reference = NULL, checks = 6,"
        " next_check_time = now() + interval '1 minute'"
    )
    async with service.db.begin() as tx:
        await payments.make_waiting_due(tx, ["stripe"])
    assert await service.rows("SELECT checks, next_check_time <= now() FROM payments") == [(6, True)]


async def test_a_provider_that_is_back_gets_the_waiting_creates_first(service: Payments, sandbox: Sandbox) -> None:
    """Their pauses had grown to a minute; the first answer ends the pauses of all."""
    await sandbox.faults(error_500=True)
    items = [an_order() for _ in range(12)]
    await service.charge(*items)
    await service.rows("UPDATE payments SET checks = 8, next_check_time = now() + interval '1 minute'")
    await sandbox.control("DELETE", "faults")
    assert service.dispatcher.silent_providers == ["stripe"]
    service.start_loops()

    async def all_paid() -> bool:
        return await service.rows("SELECT count(*) FROM payments WHERE state = 'SUCCEEDED'") == [(12,)]

    await until(all_paid)
    assert len(await sandbox.intents(*(item.order_id for item in items))) == 12
