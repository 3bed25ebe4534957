"""Charging: once, whatever fails on the way."""

import asyncio
import dataclasses
import random
import uuid

import pytest
from sqlalchemy import event

from services.chassis import ids
from services.chassis.money import Money
from services.payments.dispatch import dispatcher as dispatch
from services.payments.domain import Charge
from services.payments.domain import State as S
from services.payments.providers.stripe.adapter import Stripe
from services.payments.providers.stripe.webhook import StripeWebhook
from services.payments.sql import payments
from stampede.payments.v1 import charge_service_pb2 as charge_pb
from tests.integration.payments.conftest import (
    KEY,
    WEBHOOK_SECRET,
    Payments,
    Sandbox,
    State,
    an_order,
    another_attempt,
)  # fmt: skip
from tests.support.serving import refusal
from tests.support.waiting import until


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


async def test_a_decline_is_final_and_its_intent_is_cancelled(service: Payments, sandbox: Sandbox) -> None:
    reasons = {
        "pm_card_chargeDeclined": "CARD_DECLINED",
        "pm_card_chargeDeclinedInsufficientFunds": "INSUFFICIENT_FUNDS",
        "pm_card_chargeDeclinedLostCard": "CARD_DECLINED",
        "pm_card_chargeDeclinedExpiredCard": "EXPIRED_CARD",
        "pm_card_chargeDeclinedIncorrectCvc": "INCORRECT_CVC",
        "pm_card_chargeDeclinedProcessingError": "PROCESSING_ERROR",
        "pm_no_such_card": "INVALID_PAYMENT_METHOD",
    }
    items = [an_order(card) for card in reasons]
    outcomes = await service.charge(*items)
    assert {(o.payment.state, o.payment.failure_reason) for o in outcomes} == {
        (State.FAILED, reason) for reason in reasons.values()
    }
    assert [o.payment.failure_reason for o in outcomes] == list(reasons.values())
    again = await service.charge(*(an_order("pm_card_visa", order_id=item.order_id) for item in items))
    assert {o.payment.state for o in again} == {State.FAILED}
    await service.dispatcher.drain(seconds=5)
    for item in items:
        assert await service.published(item.order_id) == ["failed"]
        assert [i["status"] for i in await sandbox.intents(item.order_id)] in ([], ["canceled"])


async def test_a_repeat_returns_the_payment_and_charges_once(service: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    first, second = await service.charged(item), await service.charged(item)
    assert first == second
    assert len(await sandbox.intents(item.order_id)) == 1
    assert await service.published(item.order_id) == ["succeeded"]


async def test_another_amount_is_refused_for_its_order_only(service: Payments) -> None:
    item = an_order()
    await service.charged(item)
    other, new = an_order(order_id=item.order_id, minor=2), an_order()
    refused, done = await service.charge(other, new)
    assert (refused.refusal.code, refused.refusal.reason) == (3, "REQUEST_ID_REUSED")
    assert done.payment.state == State.SUCCEEDED
    twice = await refusal(service.charge(new, new))
    assert (twice.reason, twice.fields) == ("INVALID_FIELDS", ["charges"])


async def test_overlapping_calls_create_one_intent_an_order(service: Payments, sandbox: Sandbox) -> None:
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


async def test_three_d_secure_waits_for_the_customer(running: Payments, sandbox: Sandbox) -> None:
    item = an_order("pm_card_authenticationRequired")
    payment = await running.charged(item)
    assert payment.state == State.AWAITING_CUSTOMER
    assert payment.client_secret.startswith("pi_")
    assert (await running.charged(item)).state == State.AWAITING_CUSTOMER  # a repeat does not try the card again
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.control("POST", f"payment_intents/{intent['id']}/authenticate", {"outcome": "succeed"})
    await running.reaches(payment.payment_id, State.SUCCEEDED)
    assert await running.published(item.order_id) == ["succeeded"]


async def test_a_customer_may_try_another_card(running: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    payment = await running.charged(item)
    assert payment.state == State.AWAITING_CUSTOMER
    (intent,) = await sandbox.intents(item.order_id)
    assert await sandbox.confirm(intent, "pm_card_chargeDeclined") == 402

    async def declined() -> bool:
        return (await running.get(payment.payment_id)).failure_reason == "CARD_DECLINED"

    await until(declined)
    assert (await running.get(payment.payment_id)).state == State.AWAITING_CUSTOMER
    assert await sandbox.confirm(intent, "pm_card_visa") == 200
    await running.reaches(payment.payment_id, State.SUCCEEDED)
    assert await running.published(item.order_id) == ["succeeded"]


async def test_a_card_after_a_decline_is_an_attempt_with_a_new_key(service: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    await service.charged(item)
    declined = await service.charged(another_attempt(item, 1, "pm_card_chargeDeclined"))
    assert (declined.state, declined.failure_reason) == (State.AWAITING_CUSTOMER, "CARD_DECLINED")
    paid = await service.charged(another_attempt(item, 2, "pm_card_visa"))
    assert paid.state == State.SUCCEEDED
    assert len(await sandbox.intents(item.order_id)) == 1
    assert await service.rows("SELECT attempt FROM payments") == [(3,)]


async def test_a_lost_answer_is_repeated_and_charged_once(service: Payments, sandbox: Sandbox) -> None:
    """With a new idempotency key for each try, this order is charged twice."""
    await sandbox.faults(drop_after_charge={"next": 1})
    item = an_order()
    charging = asyncio.create_task(service.charged(item))

    async def charged() -> bool:
        return bool(await sandbox.intents(item.order_id))

    await until(charged)
    # The SDK's own retry gets 429, so the outcome is still unknown when the call returns.
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
async def test_a_failing_provider_is_called_again(service: Payments, sandbox: Sandbox, fault: str) -> None:
    await sandbox.faults(**{fault: True})
    item = an_order()
    payment = await service.charged(item)
    assert payment.state == State.PROCESSING
    await sandbox.control("DELETE", "faults")
    await expire_leases(service)
    service.start_loops()
    await service.reaches(payment.payment_id, State.SUCCEEDED)
    assert len(await sandbox.intents(item.order_id)) == 1


async def test_a_call_does_not_wait_for_a_slow_provider(
    service: Payments, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "ANSWER_SECONDS", 0.2)
    await sandbox.faults(latency_ms={"fixed": 1000, "jitter": 0})
    item = an_order()
    payment = await service.charged(item)
    assert payment.state == State.PROCESSING
    await service.dispatcher.drain(seconds=8)  # as at shutdown: calls in progress end first
    assert (await service.get(payment.payment_id)).state == State.SUCCEEDED
    assert await service.published(item.order_id) == ["succeeded"]


async def test_a_card_is_charged_before_secrets_that_wait(service: Payments) -> None:
    """One customer's pages for paying later must not delay the payment of another."""
    item = an_order()
    known = await service.payment(uuid.UUID((await service.charged(item)).payment_id))
    provider = Stripe(
        KEY, webhook=StripeWebhook(WEBHOOK_SECRET, api_key=KEY), api_base=service.sandbox.url, calls_per_second=0,
        concurrency=1,
    )  # fmt: skip
    order, begun, go_on = list[str](), asyncio.Event(), asyncio.Event()

    async def create(name: str, card: str | None) -> None:
        async def check() -> None:
            order.append(name)
            begun.set()
            await go_on.wait()

        payment = dataclasses.replace(known, id=ids.new(), customer_id=ids.new(), payment_method=card)
        await provider.create(payment, check)

    calls = [asyncio.create_task(create("first", None))]
    await begun.wait()
    waiting = [*(("secret", None) for _ in range(5)), ("charge", "pm_card_visa")]
    for name, card in waiting:
        calls.append(asyncio.create_task(create(name, card)))
        await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*calls)
    await provider.aclose()
    assert order == ["first", "charge", *["secret"] * 5]


async def always() -> None:
    """Let each call begin."""


async def expire_leases(service: Payments) -> None:
    await service.rows("UPDATE payments SET next_check_time = now()")


async def crashed(service: Payments) -> tuple[charge_pb.Charge, uuid.UUID]:
    """Return an order and its payment, which a process has committed before it died."""
    item = an_order()
    charge = Charge(
        order_id=uuid.UUID(item.order_id), customer_id=uuid.UUID(item.customer_id), amount=Money("USD", 1999),
        payment_method=item.payment_method,
    )  # fmt: skip
    async with service.db.begin() as tx:
        made = await payments.insert(tx, [charge], state=S.PROCESSING, provider="stripe")
    return item, made[charge.order_id].id


async def test_a_crash_before_the_provider_call_is_completed(running: Payments, sandbox: Sandbox) -> None:
    item, payment_id = await crashed(running)
    assert (await running.charged(item)).state == State.PROCESSING  # another process has the lease
    await expire_leases(running)
    await running.reaches(str(payment_id), State.SUCCEEDED)
    assert len(await sandbox.intents(item.order_id)) == 1
    assert await running.published(item.order_id) == ["succeeded"]


async def test_a_crash_after_the_charge_is_completed_under_the_same_key(service: Payments, sandbox: Sandbox) -> None:
    item, payment_id = await crashed(service)
    await service.provider.create(await service.payment(payment_id), always)
    await expire_leases(service)
    service.start_loops()
    await service.reaches(str(payment_id), State.SUCCEEDED)
    (intent,) = await sandbox.intents(item.order_id)
    assert intent["amount_received"] == 1999
    assert await service.published(item.order_id) == ["succeeded"]


async def test_an_expired_key_is_looked_up_and_not_used_again(service: Payments, sandbox: Sandbox) -> None:
    item, payment_id = await crashed(service)
    await service.provider.create(await service.payment(payment_id), always)
    await service.rows("UPDATE payments SET attempt = 9, attempt_time = now() - interval '2 days'")
    await expire_leases(service)
    service.start_loops()
    await service.reaches(str(payment_id), State.SUCCEEDED)
    assert len(await sandbox.intents(item.order_id)) == 1


async def test_a_payment_unknown_to_the_provider_gets_a_new_key(service: Payments, sandbox: Sandbox) -> None:
    item, payment_id = await crashed(service)
    await service.rows("UPDATE payments SET attempt_time = now() - interval '2 days'")
    await expire_leases(service)
    service.start_loops()
    await service.reaches(str(payment_id), State.SUCCEEDED)
    assert await service.rows("SELECT attempt FROM payments") == [(2,)]
    assert len(await sandbox.intents(item.order_id)) == 1


async def test_replicas_share_due_payments(service: Payments, sandbox: Sandbox) -> None:
    items = [(await crashed(service))[0] for _ in range(30)]
    await expire_leases(service)
    other = Payments(service.db, sandbox)
    service.start_loops()
    other.start_loops()

    async def all_paid() -> bool:
        return await service.rows("SELECT count(*) FROM payments WHERE state = 'SUCCEEDED'") == [(30,)]

    await until(all_paid)
    await other.stop()
    assert len(await sandbox.intents(*(item.order_id for item in items))) == 30
    assert await service.rows("SELECT count(*) FROM outbox") == [(30,)]


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
