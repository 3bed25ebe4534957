"""Charging: once, whatever happens on the way."""

import asyncio
import random
import uuid

import pytest
from sqlalchemy import event

from services.chassis.money import Money
from services.payments.domain import Charge
from services.payments.domain import State as S
from services.payments.sql import payments
from stampede.payments.v1 import charge_service_pb2 as charge_pb
from tests.integration.payments.conftest import Payments, Sandbox, State, an_order, until
from tests.support import tokens
from tests.support.serving import refusal


async def test_a_good_card_is_charged(service: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    payment = await service.charged(item)
    assert (payment.state, payment.provider, payment.client_secret) == (State.SUCCEEDED, "stripe", "")
    (intent,) = await sandbox.intents(item.order_id)
    assert (intent["status"], intent["amount"], intent["currency"]) == ("succeeded", 1999, "usd")
    assert intent["metadata"] == {"order_id": item.order_id, "payment_id": payment.payment_id}
    assert await service.published(item.order_id) == ["succeeded"]
    stored = await service.rows("SELECT payment_method, client_secret, next_check_time FROM payments")
    assert stored == [(None, None, None)]


async def test_a_zero_decimal_currency_passes_unchanged(service: Payments, sandbox: Sandbox) -> None:
    item = an_order(minor=500, currency="JPY")
    assert (await service.charged(item)).state == State.SUCCEEDED
    (intent,) = await sandbox.intents(item.order_id)
    assert (intent["amount"], intent["currency"]) == (500, "jpy")


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ("pm_card_chargeDeclined", "CARD_DECLINED"),
        ("pm_card_chargeDeclinedInsufficientFunds", "INSUFFICIENT_FUNDS"),
        ("pm_card_chargeDeclinedLostCard", "CARD_DECLINED"),
        ("pm_card_chargeDeclinedExpiredCard", "EXPIRED_CARD"),
        ("pm_card_chargeDeclinedIncorrectCvc", "INCORRECT_CVC"),
        ("pm_card_chargeDeclinedProcessingError", "PROCESSING_ERROR"),
        ("pm_no_such_card", "INVALID_PAYMENT_METHOD"),
    ],
)
async def test_a_decline_is_final_and_its_intent_is_closed(
    service: Payments, sandbox: Sandbox, card: str, reason: str
) -> None:
    item = an_order(card)
    payment = await service.charged(item)
    assert (payment.state, payment.failure_reason) == (State.FAILED, reason)
    assert await service.published(item.order_id) == ["failed"]
    assert (await service.charged(an_order("pm_card_visa", order_id=item.order_id))).state == State.FAILED
    await service.dispatcher.drain(seconds=5)
    assert [i["status"] for i in await sandbox.intents(item.order_id)] in ([], ["canceled"])


async def test_a_repeat_finds_the_same_payment_and_charges_once(service: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    first, second = await service.charged(item), await service.charged(item)
    assert first == second
    assert len(await sandbox.intents(item.order_id)) == 1
    assert await service.published(item.order_id) == ["succeeded"]


async def test_another_amount_for_the_order_is_refused_and_its_neighbours_are_charged(service: Payments) -> None:
    item = an_order()
    await service.charged(item)
    other, new = an_order(order_id=item.order_id, minor=2), an_order()
    refused, done = await service.charge(other, new)
    assert (refused.refusal.code, refused.refusal.reason) == (3, "REQUEST_ID_REUSED")
    assert done.payment.state == State.SUCCEEDED


async def test_an_order_twice_in_a_batch_is_refused(service: Payments) -> None:
    item = an_order()
    refused = await refusal(service.charge(item, item))
    assert (refused.reason, refused.fields) == ("INVALID_FIELDS", ["charges"])


async def test_overlapping_calls_make_one_intent_for_each_order(service: Payments, sandbox: Sandbox) -> None:
    items = [an_order() for _ in range(60)]
    shuffled = random.Random(7)
    calls = [shuffled.sample(items, 20) for _ in range(40)]
    await asyncio.gather(*(service.charge(*call) for call in calls))
    charged = {item.order_id for call in calls for item in call}
    intents = await sandbox.intents(*charged)
    assert len(intents) == len(charged)
    assert {i["status"] for i in intents} == {"succeeded"}
    assert await service.rows("SELECT count(*) FROM payments WHERE state = 'SUCCEEDED'") == [(len(charged),)]
    assert await service.rows("SELECT count(*) FROM outbox") == [(len(charged),)]


async def test_three_d_secure_waits_for_the_customer_and_then_succeeds(running: Payments, sandbox: Sandbox) -> None:
    item = an_order("pm_card_authenticationRequired")
    payment = await running.charged(item)
    assert payment.state == State.AWAITING_CUSTOMER
    assert payment.client_secret.startswith("pi_")
    assert (await running.charged(item)).state == State.AWAITING_CUSTOMER  # a repeat does not try the card anew
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.control("POST", f"payment_intents/{intent['id']}/authenticate", {"outcome": "succeed"})
    await running.reaches(payment.payment_id, State.SUCCEEDED)
    assert await running.published(item.order_id) == ["succeeded"]


async def test_a_customer_in_the_browser_may_try_another_card(running: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    payment = await running.charged(item)
    assert payment.state == State.AWAITING_CUSTOMER
    reference = (await running.get(payment.payment_id)).provider_reference
    confirm = f"{sandbox.url}/v1/payment_intents/{reference}/confirm"
    for card, status in (("pm_card_chargeDeclined", 402), ("pm_card_visa", 200)):
        form = {
            "key": "pk_test_sandbox", "client_secret": payment.client_secret, "payment_method": card,
            "return_url": "http://127.0.0.1/",
        }  # fmt: skip
        async with sandbox.http.post(confirm, data=form) as answer:
            assert answer.status == status
        if status == 402:

            async def noted() -> bool:
                return (await running.get(payment.payment_id)).failure_reason == "CARD_DECLINED"

            await until(noted)
            assert (await running.get(payment.payment_id)).state == State.AWAITING_CUSTOMER
    await running.reaches(payment.payment_id, State.SUCCEEDED)
    assert await running.published(item.order_id) == ["succeeded"]


async def test_a_new_card_after_a_decline_is_a_new_attempt_under_a_new_key(service: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    await service.charged(item)
    declined = await service.charged(an_order("pm_card_chargeDeclined", order_id=item.order_id))
    assert (declined.state, declined.failure_reason) == (State.AWAITING_CUSTOMER, "CARD_DECLINED")
    paid = await service.charged(an_order("pm_card_visa", order_id=item.order_id))
    assert paid.state == State.SUCCEEDED
    assert len(await sandbox.intents(item.order_id)) == 1
    assert await service.rows("SELECT attempt FROM payments") == [(3,)]


async def test_a_lost_answer_is_repeated_and_charged_once(service: Payments, sandbox: Sandbox) -> None:
    await sandbox.faults(drop_after_charge={"next": 1})
    item = an_order()
    # The SDK's own repeat is answered 429, so the outcome is still unknown when the call answers.
    charging = asyncio.create_task(service.charged(item))

    async def dropped() -> bool:
        return bool(await sandbox.intents(item.order_id))

    await until(dropped)
    await sandbox.faults(rate_limit_429=True)
    payment = await charging
    assert payment.state == State.PROCESSING
    await sandbox.control("DELETE", "faults")
    service.start_loops()
    await service.reaches(payment.payment_id, State.SUCCEEDED)
    (intent,) = await sandbox.intents(item.order_id)
    assert intent["amount_received"] == 1999
    assert await service.published(item.order_id) == ["succeeded"]


@pytest.mark.parametrize("fault", ["error_500", "rate_limit_429"])
async def test_a_failing_provider_leaves_the_payment_processing_and_then_it_is_charged(
    service: Payments, sandbox: Sandbox, fault: str
) -> None:
    await sandbox.faults(**{fault: True})
    item = an_order()
    payment = await service.charged(item)
    assert payment.state == State.PROCESSING
    await sandbox.control("DELETE", "faults")
    service.start_loops()
    await service.reaches(payment.payment_id, State.SUCCEEDED)
    assert len(await sandbox.intents(item.order_id)) == 1


async def test_a_slow_provider_is_not_waited_for(service: Payments, sandbox: Sandbox) -> None:
    await sandbox.faults(latency_ms={"fixed": 4000, "jitter": 0})
    item = an_order()
    started = asyncio.get_running_loop().time()
    payment = await service.charged(item)
    assert asyncio.get_running_loop().time() - started < 3.8
    assert payment.state == State.PROCESSING
    await service.dispatcher.drain(seconds=8)  # as at shutdown: what is in flight ends first
    assert (await service.get(payment.payment_id)).state == State.SUCCEEDED
    assert await service.published(item.order_id) == ["succeeded"]


async def _crashed(service: Payments, method: str = "pm_card_visa") -> charge_pb.Charge:
    """An order whose payment was committed by a process that then died."""
    item = an_order(method)
    charge = Charge(
        order_id=uuid.UUID(item.order_id), customer_id=uuid.UUID(item.customer_id),
        amount=Money("USD", item.amount.minor_units), payment_method=method,
    )  # fmt: skip
    async with service.db.begin() as tx:
        await payments.insert(tx, [charge], state=S.PROCESSING, provider="stripe")
    return item


async def test_a_crash_before_the_provider_was_asked_is_finished_by_the_reconciler(
    running: Payments, sandbox: Sandbox
) -> None:
    item = await _crashed(running)
    payment = await running.charged(item)
    assert payment.state == State.PROCESSING  # somebody else's lease
    await running.reaches(payment.payment_id, State.SUCCEEDED)
    assert len(await sandbox.intents(item.order_id)) == 1
    assert await running.published(item.order_id) == ["succeeded"]


async def test_a_crash_after_the_provider_charged_is_finished_under_the_same_key(
    service: Payments, sandbox: Sandbox
) -> None:
    item = await _crashed(service)
    ((payment_id,),) = await service.rows("SELECT id FROM payments")
    await service.provider.create(await service.payment(payment_id))  # and dies
    service.start_loops()
    await service.reaches(str(payment_id), State.SUCCEEDED)
    (intent,) = await sandbox.intents(item.order_id)
    assert intent["amount_received"] == 1999
    assert await service.published(item.order_id) == ["succeeded"]


async def test_a_key_that_the_provider_has_forgotten_is_not_used_to_charge_again(
    service: Payments, sandbox: Sandbox
) -> None:
    item = await _crashed(service)
    ((payment_id,),) = await service.rows("SELECT id FROM payments")
    await service.provider.create(await service.payment(payment_id))
    await service.rows(
        "UPDATE payments SET attempt = 9, attempt_time = now() - interval '2 days', next_check_time = now()"
    )
    service.start_loops()
    await service.reaches(str(payment_id), State.SUCCEEDED)
    assert len(await sandbox.intents(item.order_id)) == 1


async def test_a_payment_the_provider_never_heard_of_gets_a_new_key(service: Payments, sandbox: Sandbox) -> None:
    item = await _crashed(service)
    await service.rows("UPDATE payments SET attempt_time = now() - interval '2 days', next_check_time = now()")
    service.start_loops()
    ((payment_id,),) = await service.rows("SELECT id FROM payments")
    await service.reaches(str(payment_id), State.SUCCEEDED)
    assert await service.rows("SELECT attempt FROM payments") == [(2,)]
    assert len(await sandbox.intents(item.order_id)) == 1


async def test_two_replicas_share_what_is_due(service: Payments, sandbox: Sandbox) -> None:
    items = [await _crashed(service) for _ in range(30)]
    await service.rows("UPDATE payments SET next_check_time = now()")
    other = Payments(service.db, sandbox)
    service.start_loops()
    other.start_loops()

    async def done() -> bool:
        return await service.rows("SELECT count(*) FROM payments WHERE state = 'SUCCEEDED'") == [(30,)]

    await until(done)
    await other.stop()
    assert len(await sandbox.intents(*(item.order_id for item in items))) == 30
    assert await service.rows("SELECT count(*) FROM outbox") == [(30,)]


async def test_only_orders_may_charge(service: Payments) -> None:
    request = charge_pb.BatchChargeRequest(charges=[an_order()])
    for metadata, code in (
        (tokens.as_service("catalog"), "PERMISSION_DENIED"),
        (tokens.as_staff(), "UNAUTHENTICATED"),
        ((), "UNAUTHENTICATED"),
    ):
        refused = await refusal(service.charges.BatchCharge(request, metadata=metadata))
        assert refused.code == code


async def test_a_batch_costs_few_statements(service: Payments) -> None:
    counted: list[str] = []
    engine = service.db.kw["bind"].sync_engine

    @event.listens_for(engine, "before_cursor_execute")
    def count(_c: object, _k: object, statement: str, *_: object) -> None:
        counted.append(statement.split()[0])

    outcomes = await service.charge(*(an_order() for _ in range(100)))
    event.remove(engine, "before_cursor_execute", count)
    assert {o.payment.state for o in outcomes} == {State.SUCCEEDED}
    assert len(counted) < 40, counted
