"""Manual capture at Stripe: money is set aside, and staff take it or give it back; each once, whatever gets lost."""

import uuid
from typing import Any

import pytest

from services.payments.domain import Capture
from services.payments.providers.results import ChargeStatus
from services.payments.sql import payments as sql
from stampede.payments.v1 import charge_service_pb2 as charge_pb
from stampede.payments.v1 import payment_service_pb2 as pb
from tests.integration.payments.conftest import KEY, Payments, Sandbox, State, an_order, another_attempt
from tests.integration.payments.razorpay.conftest import Razorpay
from tests.support import tokens
from tests.support.serving import refusal
from tests.support.waiting import until

STAFF = tokens.as_staff()


@pytest.fixture
def manual(service: Payments) -> Payments:
    """Payments whose new payments wait for staff."""
    service.charging.capture_of_new = Capture.MANUAL
    return service


@pytest.fixture
def tools(manual: Payments, sandbox: Sandbox) -> Razorpay:
    """Helpers that make what is due be done once; new payments begin at Stripe."""
    made = Razorpay(manual, sandbox)
    manual.providers.default = manual.providers["stripe"]
    return made


async def authorised(service: Payments, method: str = "pm_card_visa") -> tuple[charge_pb.Charge, str]:
    item = an_order(method)
    status = await service.charged(item)
    assert status.state == State.AUTHORIZED
    return item, status.payment_id


async def capture(service: Payments, payment_id: str, request_id: str = "") -> pb.Payment:
    request = pb.CapturePaymentRequest(payment_id=payment_id, request_id=request_id)
    return await service.payments.CapturePayment(request, metadata=STAFF)


async def void(service: Payments, payment_id: str) -> pb.Payment:
    return await service.payments.VoidPayment(pb.VoidPaymentRequest(payment_id=payment_id), metadata=STAFF)


async def refused(call: Any) -> str:
    return (await refusal(call)).reason


async def kinds(service: Payments) -> list[str]:
    return [kind for (kind,) in await service.rows("SELECT kind FROM journal_entries ORDER BY id")]


async def status_of(sandbox: Sandbox, item: charge_pb.Charge) -> tuple[str, int]:
    (intent,) = await sandbox.intents(item.order_id)
    return intent["status"], intent["amount_received"]


async def test_money_is_set_aside_until_staff_capture_it(manual: Payments, sandbox: Sandbox) -> None:
    item, payment_id = await authorised(manual)
    assert await status_of(sandbox, item) == ("requires_capture", 0)
    assert await kinds(manual) == ["AUTHORIZED"]

    request_id = str(uuid.uuid4())
    captured = await capture(manual, payment_id, request_id)

    assert captured.state == State.SUCCEEDED
    assert await status_of(sandbox, item) == ("succeeded", 1999)
    assert await kinds(manual) == ["AUTHORIZED", "AUTHORIZATION_ENDED", "CAPTURED"]
    assert await manual.published(item.order_id) == ["authorized", "succeeded"]
    assert await capture(manual, payment_id, request_id) == await capture(manual, payment_id) == captured
    request = pb.RefundPaymentRequest(payment_id=payment_id, full=True, reason="r", request_id=str(uuid.uuid4()))
    assert (await manual.payments.RefundPayment(request, metadata=STAFF)).state == State.REFUNDED
    assert (await capture(manual, payment_id)).state == State.REFUNDED, "it was captured"


async def test_void_gives_the_money_back(manual: Payments, sandbox: Sandbox) -> None:
    item, payment_id = await authorised(manual)

    voided = await void(manual, payment_id)

    assert (voided.state, voided.failure_reason) == (State.CANCELLED, "")
    assert await status_of(sandbox, item) == ("canceled", 0)
    assert await kinds(manual) == ["AUTHORIZED", "AUTHORIZATION_ENDED"]
    assert await manual.published(item.order_id) == ["authorized", "cancelled"]
    assert await void(manual, payment_id) == voided
    assert await refused(capture(manual, payment_id)) == "WRONG_STATE"


async def test_only_authorised_money_is_captured_or_voided(manual: Payments) -> None:
    waits = (await manual.charged(an_order(""))).payment_id
    for call in (capture, void):
        assert await refused(call(manual, waits)) == "WRONG_STATE"
        assert await refused(call(manual, str(uuid.uuid4()))) == "PAYMENT_NOT_FOUND"
    _, payment_id = await authorised(manual)
    request = pb.RefundPaymentRequest(payment_id=payment_id, full=True, reason="r", request_id=str(uuid.uuid4()))
    assert await refused(manual.payments.RefundPayment(request, metadata=STAFF)) == "PAYMENT_NOT_CAPTURED"
    await capture(manual, payment_id)
    assert await refused(void(manual, payment_id)) == "WRONG_STATE", "it is refunded instead"

    manual.charging.capture_of_new = Capture.AUTOMATIC
    at_once = await manual.charged(an_order())
    assert at_once.state == State.SUCCEEDED
    for call in (capture, void):
        assert await refused(call(manual, at_once.payment_id)) == "WRONG_STATE"


async def test_payment_keeps_the_capture_that_it_began_with(manual: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    payment_id = (await manual.charged(item)).payment_id
    manual.charging.capture_of_new = Capture.AUTOMATIC
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.confirm(intent, "pm_card_visa")
    sandbox.receiver.forward = manual.webhook
    manual.start_loops()
    await manual.reaches(payment_id, State.AUTHORIZED)


async def test_one_decision_excludes_the_other_while_the_provider_is_silent(manual: Payments, sandbox: Sandbox) -> None:
    for first, second, reason in ((capture, void, "CAPTURE_IN_PROGRESS"), (void, capture, "VOID_IN_PROGRESS")):
        await sandbox.control("DELETE", "faults")
        _, payment_id = await authorised(manual)
        await sandbox.faults(error_500=True)
        assert (await first(manual, payment_id)).state == State.AUTHORIZED
        assert await refused(second(manual, payment_id)) == reason
        assert (await first(manual, payment_id)).state == State.AUTHORIZED


@pytest.mark.parametrize("is_captured", [False, True])
async def test_page_that_was_paid_waits_for_staff(tools: Razorpay, sandbox: Sandbox, is_captured: bool) -> None:
    service, item = tools.service, an_order("")
    payment_id = (await service.charged(item)).payment_id
    await service.charged(another_attempt(item, 1, checkout=True, return_url="https://shop.example/back"))
    page = (await service.payment(uuid.UUID(payment_id))).checkout_reference
    wanted = {"payment_method": "pm_card_visa", "email": "buyer@example.com"}
    await sandbox.control("POST", f"checkout/sessions/{page}/pay", wanted)
    await tools.reconcile()
    assert (await service.get(payment_id)).state == State.AUTHORIZED
    now = await (capture if is_captured else void)(service, payment_id)
    assert now.state == (State.SUCCEEDED if is_captured else State.CANCELLED)


async def test_reversal_voids_authorised_money(manual: Payments, sandbox: Sandbox) -> None:
    item, _ = await authorised(manual)
    (status,) = await manual.reverse(item)
    assert status.state == State.CANCELLED
    assert await status_of(sandbox, item) == ("canceled", 0)
    assert await manual.rows("SELECT 1 FROM refunds") == []
    assert (await manual.reverse(item))[0].state == State.CANCELLED


async def test_reversal_of_captured_money_refunds_it(manual: Payments) -> None:
    item, payment_id = await authorised(manual)
    await capture(manual, payment_id)
    (status,) = await manual.reverse(item)
    assert (status.state, status.refunded.minor_units) == (State.REFUNDED, 1999)


async def test_reversal_meets_a_capture_whose_answer_is_lost(tools: Razorpay, sandbox: Sandbox) -> None:
    """The void finds the money captured; the next call of the saga refunds it."""
    service = tools.service
    item, payment_id = await authorised(service)
    await sandbox.faults(drop_answer={"next": 3}, drop_answer_on="POST payment_intents/*/capture")
    await capture(service, payment_id)
    await service.reverse(item)
    await tools.reconcile()
    (status,) = await service.reverse(item)
    assert (status.state, status.refunded.minor_units) == (State.REFUNDED, 1999)


async def test_end_of_the_hold_keeps_money_that_came_in_time(manual: Payments, sandbox: Sandbox) -> None:
    """The customer has paid in the browser, and the webhook is lost: the provider is asked before the void."""
    item = an_order("")
    payment_id = (await manual.charged(item)).payment_id
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.confirm(intent, "pm_card_visa")

    assert (await manual.cancel(item))[0].state == State.AUTHORIZED
    assert (await manual.cancel(item))[0].state == State.AUTHORIZED
    assert (await capture(manual, payment_id)).state == State.SUCCEEDED
    assert await status_of(sandbox, item) == ("succeeded", 1999)


async def test_reversal_voids_money_that_the_end_of_the_hold_has_kept(manual: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    await manual.charged(item)
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.confirm(intent, "pm_card_visa")
    assert (await manual.cancel(item))[0].state == State.AUTHORIZED
    assert (await manual.reverse(item))[0].state == State.CANCELLED


@pytest.mark.parametrize("is_called", [False, True])
async def test_crash_around_a_capture_captures_once(tools: Razorpay, sandbox: Sandbox, is_called: bool) -> None:
    """The process dies after the commit: before the call, or before it has stored the answer."""
    service = tools.service
    item, payment_id = await authorised(service)
    async with service.db.begin() as tx:
        await sql.request_capture(tx, uuid.UUID(payment_id))
    if is_called:
        payment = await service.payment(uuid.UUID(payment_id))
        result = await service.provider.capture(payment, payment.amount_minor, always)
        assert result.status is ChargeStatus.SUCCEEDED
    await tools.reconcile()
    assert (await service.get(payment_id)).state == State.SUCCEEDED
    assert await status_of(sandbox, item) == ("succeeded", 1999)
    assert await service.published(item.order_id) == ["authorized", "succeeded"]


@pytest.mark.parametrize("is_called", [False, True])
async def test_crash_around_a_void_voids_once(tools: Razorpay, sandbox: Sandbox, is_called: bool) -> None:
    service = tools.service
    item, payment_id = await authorised(service)
    async with service.db.begin() as tx:
        await sql.request_cancel(tx, [uuid.UUID(payment_id)], void=True)
    if is_called:
        result = await service.provider.void(await service.payment(uuid.UUID(payment_id)))
        assert result.status is ChargeStatus.CANCELLED
    await tools.reconcile()
    assert (await service.get(payment_id)).state == State.CANCELLED
    assert await status_of(sandbox, item) == ("canceled", 0)
    assert await service.published(item.order_id) == ["authorized", "cancelled"]


@pytest.mark.parametrize("verb", ["capture", "cancel"])
async def test_lost_answer_is_asked_for_again(tools: Razorpay, sandbox: Sandbox, verb: str) -> None:
    service = tools.service
    item, payment_id = await authorised(service)
    await sandbox.faults(drop_answer={"next": 3}, drop_answer_on=f"POST payment_intents/*/{verb}")
    call, end = (capture, State.SUCCEEDED) if verb == "capture" else (void, State.CANCELLED)
    assert (await call(service, payment_id)).state in (State.AUTHORIZED, end)
    await tools.reconcile()
    assert (await call(service, payment_id)).state == end
    assert (await service.published(item.order_id))[1:] == ["succeeded" if verb == "capture" else "cancelled"]


async def test_key_that_answers_500_for_ever_is_changed(tools: Razorpay, sandbox: Sandbox) -> None:
    service = tools.service
    item, payment_id = await authorised(service)
    path = "POST payment_intents/*/capture"
    await sandbox.faults(error_500={"next": 1, "saved": True}, error_500_on=path)
    assert (await capture(service, payment_id)).state == State.AUTHORIZED

    async def captured() -> bool:
        await tools.reconcile()  # makes no call while too many failed of late
        return (await service.get(payment_id)).state == State.SUCCEEDED

    await until(captured)
    assert await status_of(sandbox, item) == ("succeeded", 1999)


async def test_authorisation_that_lapses_ends_the_payment(manual: Payments, sandbox: Sandbox) -> None:
    """Stripe reports the money as refunded, though nobody has taken it: no refund is made of that."""
    item, payment_id = await authorised(manual)
    sandbox.receiver.forward = manual.webhook
    manual.start_loops()
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.control("POST", f"payment_intents/{intent['id']}/expire")

    ended = await manual.reaches(payment_id, State.CANCELLED)

    assert ended.failure_reason == "AUTHORIZATION_ENDED"
    assert await refused(capture(manual, payment_id)) == "AUTHORIZATION_ENDED"
    assert (await void(manual, payment_id)).state == State.CANCELLED
    assert await manual.rows("SELECT 1 FROM refunds") == []
    assert await manual.published(item.order_id) == ["authorized", "cancelled"]


async def test_release_that_looks_like_a_refund_is_none(tools: Razorpay, sandbox: Sandbox) -> None:
    service = tools.service
    _, payment_id = await authorised(service)
    await void(service, payment_id)

    reported = [event for event in sandbox.receiver.seen if b"charge.refunded" in event[0]]
    for body, signature in reported:
        await service.webhook(body, signature)
    await tools.apply_due()

    assert await service.rows("SELECT 1 FROM payments WHERE refund_check_time IS NOT NULL") == []


async def test_capture_of_a_lapsed_authorisation_says_so(manual: Payments, sandbox: Sandbox) -> None:
    """No event has arrived: the refused capture finds out."""
    item, payment_id = await authorised(manual)
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.control("POST", f"payment_intents/{intent['id']}/expire")
    for _ in range(2):
        assert await refused(capture(manual, payment_id)) == "AUTHORIZATION_ENDED"
    assert (await manual.get(payment_id)).failure_reason == "AUTHORIZATION_ENDED"


async def test_staff_are_warned_two_days_before_money_lapses(tools: Razorpay) -> None:
    service = tools.service
    _, young = await authorised(service)
    _, old = await authorised(service)
    for payment_id, days in ((young, "4.9 days"), (old, "5.1 days")):
        await service.rows(
            "UPDATE payments SET authorize_time = now() - CAST(:age AS interval) WHERE id = :id",
            id=uuid.UUID(payment_id), age=days,
        )  # fmt: skip

    for _ in range(2):
        await sql.warn_of_lapses(service.db, service.dispatcher.patience_with_staff)
        await tools.reconcile()
        parked = await service.rows("SELECT id, problem FROM payments WHERE problem <> ''")
        assert parked == [(uuid.UUID(old), "AUTHORIZATION_LAPSING")]

    await capture(service, old)
    assert await service.rows("SELECT 1 FROM payments WHERE problem <> ''") == []


@pytest.mark.parametrize(("minor", "problem"), [(1999, ""), (500, "OTHER_AMOUNT")])
async def test_capture_by_people_at_the_provider_counts(
    manual: Payments, sandbox: Sandbox, minor: int, problem: str
) -> None:
    """In full, it is as a capture here; a part of the money is for people."""
    item, payment_id = await authorised(manual)
    (intent,) = await sandbox.intents(item.order_id)
    url, headers = f"{sandbox.url}/v1/payment_intents/{intent['id']}/capture", {"Authorization": f"Bearer {KEY}"}
    async with sandbox.http.post(url, data={"amount_to_capture": str(minor)}, headers=headers) as answer:
        assert answer.status == 200
    assert (await capture(manual, payment_id)).state == (State.AUTHORIZED if problem else State.SUCCEEDED)
    assert await manual.rows("SELECT problem FROM payments") == [(problem,)]


async def always() -> None:
    """The `Check` of a call that is wanted."""
