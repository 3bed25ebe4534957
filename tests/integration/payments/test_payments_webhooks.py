"""Provider events: signed, repeated, late, out of order, for known and unknown payments."""

import asyncio
import json
import time
import uuid
from typing import Any

import pytest
import stripe
from prometheus_client import REGISTRY

from services.payments.dispatch import settle
from services.payments.dispatch.parked import abandon, list_parked
from services.payments.providers.results import ChargeResult, ChargeStatus
from services.payments.webhooks import inbox
from tests.integration.payments.conftest import WEBHOOK_SECRET, Payments, Sandbox, State, an_order
from tests.support.serving import refusal
from tests.support.waiting import until

VISA = "pm_card_visa"


def _event(intent: dict[str, Any], kind: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"evt_{uuid.uuid4().hex}", "object": "event", "type": f"payment_intent.{kind}",
        "data": {"object": {**intent, **changes}},
    }  # fmt: skip


def _refund_event(intent: dict[str, Any], refunded: Any) -> dict[str, Any]:
    charge = {
        "id": "ch_1", "object": "charge", "payment_intent": intent["id"], "amount": 1999, "currency": "usd",
        "amount_refunded": refunded, "metadata": intent["metadata"],
    }  # fmt: skip
    return {"id": f"evt_{uuid.uuid4().hex}", "type": "charge.refunded", "data": {"object": charge}}


async def _apply(service: Payments) -> inbox.Batch:
    """Apply what waits, ask the provider as the reconciler does, and apply what its answers bear out."""
    batch = await inbox.apply_events(service.db, service.dispatcher)
    if batch.made_due:
        await service.reconciler.reconcile_once()
        await service.dispatcher.drain(seconds=10)
        service.dispatcher.draining = False
        await service.rows("UPDATE provider_events SET next_try_time = now() WHERE error = 'NOT_CONFIRMED'")
        await inbox.apply_events(service.db, service.dispatcher)
    return batch


async def _processed(service: Payments) -> list[tuple[Any, ...]]:
    while (await _apply(service)).is_full:
        pass
    found = await service.rows("SELECT error, processed_time IS NOT NULL FROM provider_events ORDER BY received_time")
    return [tuple(row) for row in found]


async def test_webhooks_of_settled_charges_change_nothing(service: Payments, sandbox: Sandbox) -> None:
    await sandbox.faults(webhooks={"duplicate": True, "reorder": True})
    sandbox.receiver.forward = service.webhook
    items = [an_order() for _ in range(20)]
    await service.charge(*items)
    service.start_loops()

    # Events of an earlier test's charges may still arrive; they are not counted.
    mine = "FROM provider_events WHERE payload ->> 'payment_id' IN (SELECT CAST(id AS text) FROM payments)"

    async def all_in() -> bool:
        return await service.rows(f"SELECT count(processed_time) {mine}") == [(20,)]

    await until(all_in)
    assert await service.rows("SELECT count(*) FROM outbox") == [(20,)]
    assert await service.rows(f"SELECT DISTINCT error {mine}") == [(None,)]


async def test_a_bad_signature_is_refused(service: Payments) -> None:
    body = json.dumps(_event({"id": "pi_1"}, "succeeded"))
    sign = stripe.WebhookSignature.generate_signature_header
    for signature in (
        "",
        sign(body, "whsec_of_another_endpoint"),
        sign(body + " ", WEBHOOK_SECRET),
        sign(body, WEBHOOK_SECRET, timestamp=int(time.time()) - 400),
        "t=x,v1=\\,,=",
    ):
        refused = await refusal(service.webhook(body.encode(), signature))
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "BAD_SIGNATURE")
    assert await service.rows("SELECT * FROM provider_events") == []


async def test_a_body_that_is_too_large_or_no_event_is_refused(service: Payments) -> None:
    for body in ("x" * (256 * 1024 + 1), "[]", "nonsense", json.dumps({"id": "e", "type": "charge.refunded"})):
        signature = stripe.WebhookSignature.generate_signature_header(body, WEBHOOK_SECRET)
        assert (await refusal(service.webhook(body.encode(), signature))).reason == "INVALID_FIELDS"


async def test_ignored_events_are_dropped_and_unknown_types_are_stored(service: Payments) -> None:
    for kind in ("charge.succeeded", "payment_intent.created", "customer.created"):
        await service.send_event({"id": f"evt_{kind}", "type": kind, "data": {"object": {}}})
    stored = await service.rows("SELECT payload->>'type', processed_time IS NOT NULL FROM provider_events")
    assert [tuple(row) for row in stored] == [("customer.created", True)]
    assert REGISTRY.get_sample_value(
        "stampede_provider_events_total", {"type": "customer.created", "outcome": "unhandled"}
    )


async def _waiting(service: Payments, sandbox: Sandbox) -> tuple[str, str, dict[str, Any]]:
    item = an_order("")
    payment = await service.charged(item)
    (intent,) = await sandbox.intents(item.order_id)
    return item.order_id, payment.payment_id, intent


async def test_a_repeated_event_is_applied_once(service: Payments, sandbox: Sandbox) -> None:
    order_id, payment_id, intent = await _waiting(service, sandbox)
    await sandbox.confirm(intent, VISA)
    event = _event(intent, "succeeded", status="succeeded")
    await asyncio.gather(*(service.send_event(event) for _ in range(5)))
    assert await _processed(service) == [(None, True)]
    await service.send_event(event)
    assert (await service.get(payment_id)).state == State.SUCCEEDED
    assert await service.published(order_id) == ["succeeded"]


async def test_a_success_event_of_a_settled_payment_is_stored_processed(service: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    await service.charged(item)
    (intent,) = await sandbox.intents(item.order_id)
    await service.send_event(_event(intent, "succeeded"))
    await service.send_event(_event(intent, "succeeded", amount=1))
    await service.send_event(_event(intent, "succeeded", currency="eur"))
    await service.send_event(_event(intent, "succeeded", id="pi_other"))
    found = await service.rows(
        "SELECT processed_time IS NOT NULL, attempts FROM provider_events ORDER BY received_time"
    )
    assert [tuple(row) for row in found] == [(True, 1), (False, 0), (False, 0), (False, 0)]
    causes = [error for error, _ in await _processed(service)]
    assert causes == [None, "OTHER_AMOUNT", "OTHER_AMOUNT", "NO_SUCH_CHARGE"]
    assert await service.published(item.order_id) == ["succeeded"]


async def test_an_answer_after_its_event_publishes_nothing_again(service: Payments, sandbox: Sandbox) -> None:
    order_id, payment_id, intent = await _waiting(service, sandbox)
    before = await service.payment(uuid.UUID(payment_id))
    await sandbox.confirm(intent, VISA)
    await service.send_event(_event(intent, "succeeded", status="succeeded"))
    await _processed(service)
    late = ChargeResult(
        payment_id=before.id, status=ChargeStatus.SUCCEEDED, reference=intent["id"], amount_minor=1999, currency="usd"
    )
    (after,) = await settle.settle_charges(service.db, [(before, late)])
    assert (after.state, after.version) == ("SUCCEEDED", before.version + 1)
    assert await service.published(order_id) == ["succeeded"]


async def test_events_out_of_order_never_move_a_payment_back(service: Payments, sandbox: Sandbox) -> None:
    order_id, payment_id, intent = await _waiting(service, sandbox)
    await sandbox.confirm(intent, VISA)
    await service.send_event(_event(intent, "succeeded", status="succeeded"))
    await _processed(service)
    for kind, status in (
        ("processing", "processing"),
        ("requires_action", "requires_action"),
        ("payment_failed", "requires_payment_method"),
        ("canceled", "canceled"),
    ):
        await service.send_event(_event(intent, kind, status=status))
    await _processed(service)
    assert (await service.get(payment_id)).state == State.SUCCEEDED
    assert await service.published(order_id) == ["succeeded"]


async def test_authenticating_is_true_while_the_bank_authenticates(running: Payments, sandbox: Sandbox) -> None:
    """A client secret alone does not mean that a customer is paying."""
    item = an_order("")
    before = await running.charged(item)
    assert (before.state, before.authenticating) == (State.AWAITING_CUSTOMER, False)
    (intent,) = await sandbox.intents(item.order_id)

    async def asked(wanted: bool) -> None:
        async def there() -> bool:
            now = await running.charged(item)
            assert now.state == State.AWAITING_CUSTOMER
            return now.authenticating == wanted

        await until(there)

    await sandbox.confirm(intent, "pm_card_authenticationRequired")
    await asked(True)
    await sandbox.control("POST", f"payment_intents/{intent['id']}/authenticate", {"outcome": "fail"})
    await asked(False)
    await sandbox.confirm(intent, "pm_card_authenticationRequired")
    await asked(True)
    await sandbox.control("POST", f"payment_intents/{intent['id']}/authenticate", {"outcome": "succeed"})
    await running.reaches(before.payment_id, State.SUCCEEDED)
    assert not (await running.charged(item)).authenticating


async def test_an_event_before_the_reference_finds_its_payment_by_id(service: Payments, sandbox: Sandbox) -> None:
    order_id, payment_id, intent = await _waiting(service, sandbox)
    await service.rows("UPDATE payments SET state = 'PROCESSING', provider_reference = NULL, client_secret = NULL")
    await sandbox.confirm(intent, VISA)
    await service.send_event(_event(intent, "succeeded", status="succeeded"))
    assert await _processed(service) == [("IN_PROGRESS", False)]  # our own answer normally follows
    await service.rows("UPDATE provider_events SET next_try_time = now()")
    assert await _processed(service) == [(None, True)]
    payment = await service.get(payment_id)
    assert (payment.state, payment.provider_reference) == (State.SUCCEEDED, intent["id"])
    assert await service.published(order_id) == ["succeeded"]


async def test_an_event_of_an_unknown_payment_is_retried_then_parked(service: Payments, sandbox: Sandbox) -> None:
    _, _, intent = await _waiting(service, sandbox)
    await service.send_event(_event(intent, "succeeded", id="pi_unknown", metadata={"payment_id": "nonsense"}))
    assert await _processed(service) == [("UNKNOWN_PAYMENT", False)]
    for _ in range(11):
        await service.rows("UPDATE provider_events SET next_try_time = now()")
        assert (await inbox.apply_events(service.db, service.dispatcher)).size == 1
    assert await _processed(service) == [("UNKNOWN_PAYMENT", True)]
    await service.rows("UPDATE provider_events SET next_try_time = now()")
    assert (await inbox.apply_events(service.db, service.dispatcher)).size == 0


async def test_an_event_with_another_amount_is_rejected(service: Payments, sandbox: Sandbox) -> None:
    order_id, payment_id, intent = await _waiting(service, sandbox)
    for changes in ({"amount": 1}, {"currency": "eur"}):
        await service.send_event(_event(intent, "succeeded", status="succeeded", **changes))
    assert await _processed(service) == [("OTHER_AMOUNT", True)] * 2
    assert (await service.get(payment_id)).state == State.AWAITING_CUSTOMER
    assert await service.published(order_id) == []
    # The provider's record decides, and it has the payment's amount.
    await service.reconciler.reconcile_once()
    await service.dispatcher.drain(seconds=10)
    assert (await service.payment(uuid.UUID(payment_id))).problem == ""


@pytest.mark.parametrize("command", ["abandon", "cancel"])
async def test_a_charge_of_another_amount_is_parked_until_a_command_returns_it(
    running: Payments, sandbox: Sandbox, command: str
) -> None:
    """As after a change in the provider's dashboard. The end of the hold, or `compensate`, cancels it as well."""
    order_id, payment_id, intent = await _waiting(running, sandbox)
    await running.rows("UPDATE payments SET amount_minor = 2000, next_check_time = now() + interval '1 hour'")
    await sandbox.confirm(intent, VISA)

    async def is_parked() -> bool:
        return (await running.payment(uuid.UUID(payment_id))).problem == "OTHER_AMOUNT"

    await until(is_parked)
    assert [one.problem for one in await list_parked(running.db, most=5)] == ["OTHER_AMOUNT"]
    if command == "abandon":
        await abandon(running.db, uuid.UUID(payment_id), "me")
    else:
        item = an_order("", order_id=order_id, minor=2000)
        await running.cancel(item)
    await running.reaches(payment_id, State.CANCELLED)

    async def is_back() -> bool:
        return [refund["amount"] for refund in await sandbox.refunds(intent["id"])] == [intent["amount"]]

    await until(is_back)
    assert await running.published(order_id) == ["cancelled"]
    assert await list_parked(running.db, most=5) == []

    async def event_is_done() -> bool:
        await inbox.watch_events(running.db)
        found = await running.rows("SELECT error FROM provider_events WHERE payload->>'charge_status' = 'SUCCEEDED'")
        return [row.error for row in found] == [None]

    await until(event_is_done)


@pytest.mark.parametrize(("kind", "status"), [("succeeded", "succeeded"), ("canceled", "canceled")])
async def test_an_event_that_the_provider_denies_moves_no_payment(
    service: Payments, sandbox: Sandbox, kind: str, status: str
) -> None:
    """Forged with the signing secret, or a mistake: the provider's record says that the customer has not paid yet."""
    order_id, payment_id, intent = await _waiting(service, sandbox)
    await service.send_event(_event(intent, kind, status=status))
    assert await _processed(service) == [("NOT_CONFIRMED", False)]
    assert (await service.get(payment_id)).state == State.AWAITING_CUSTOMER
    assert await service.published(order_id) == []


async def test_a_success_is_believed_while_the_provider_does_not_answer(service: Payments, sandbox: Sandbox) -> None:
    """A customer who has paid does not wait for a slow provider; its signature, amount and currency say so."""
    order_id, payment_id, intent = await _waiting(service, sandbox)
    await sandbox.faults(error_500={"next": 2})
    await service.send_event(_event(intent, "succeeded", status="succeeded"))
    assert await _processed(service) == [(None, True)]
    assert (await service.get(payment_id)).state == State.SUCCEEDED
    assert await service.published(order_id) == ["succeeded"]


async def test_nothing_but_a_success_is_believed(service: Payments, sandbox: Sandbox) -> None:
    """An end without money, and money of another charge, wait until the provider answers."""
    order_id, payment_id, intent = await _waiting(service, sandbox)
    await sandbox.faults(error_500=True)
    await service.send_event(_event(intent, "canceled", status="canceled"))
    await service.send_event(_event(intent, "succeeded", id="pi_another"))
    assert [done for _, done in await _processed(service)] == [False, False]
    assert (await service.get(payment_id)).state == State.AWAITING_CUSTOMER
    assert await service.published(order_id) == []


async def test_a_refund_that_the_provider_denies_is_not_counted(service: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    payment_id = (await service.charged(item)).payment_id
    (intent,) = await sandbox.intents(item.order_id)
    await service.send_event(_refund_event(intent, 1999))
    assert await _processed(service) == [(None, True)]
    payment = await service.get(payment_id)
    assert (payment.state, payment.refunded.minor_units) == (State.SUCCEEDED, 0)
    assert await service.published(item.order_id) == ["succeeded"]


async def test_the_provider_says_how_much_was_refunded(service: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    payment_id = (await service.charged(item)).payment_id
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.refund(intent["id"], 700)
    await service.send_event(_refund_event(intent, 1999))
    assert await _processed(service) == [(None, True)]
    assert (await service.get(payment_id)).refunded.minor_units == 700


async def test_a_success_of_a_charge_of_other_software_is_not_refunded(service: Payments, sandbox: Sandbox) -> None:
    """The event says that it paid our cancelled payment; the provider's record of the charge does not."""
    ours, others = an_order(""), an_order()
    payment_id = (await service.charged(ours)).payment_id
    await service.charged(others)
    (intent,) = await sandbox.intents(others.order_id)
    await service.rows("UPDATE payments SET state = 'CANCELLED' WHERE id = CAST(:id AS uuid)", id=payment_id)
    await service.rows("DELETE FROM payments WHERE id <> CAST(:id AS uuid)", id=payment_id)
    await service.send_event(_event(intent, "succeeded", metadata={"payment_id": payment_id}))
    assert await _processed(service) == [("OTHER_PAYMENT", True)]
    assert await service.rows("SELECT * FROM refunds") == []
    assert await sandbox.refunds(intent["id"]) == []


async def test_the_refund_of_another_charge_is_not_counted_as_the_payments(service: Payments, sandbox: Sandbox) -> None:
    """Metadata names the payment, as of a stray charge that was paid back."""
    item, twin = an_order(), an_order()
    payment_id = (await service.charged(item)).payment_id
    stray_id = (await service.charged(twin)).payment_id
    (stray,) = await sandbox.intents(twin.order_id)
    await service.rows("DELETE FROM payments WHERE id = CAST(:id AS uuid)", id=stray_id)
    await sandbox.refund(stray["id"], 1999)
    await service.send_event(_refund_event({**stray, "metadata": {"payment_id": payment_id}}, 1999))
    await _processed(service)
    assert (await service.get(payment_id)).refunded.minor_units == 0


async def test_an_event_waits_while_the_provider_is_unavailable(service: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    await service.charged(item)
    (intent,) = await sandbox.intents(item.order_id)
    await service.rows("UPDATE payments SET state = 'CANCELLED'")
    await sandbox.faults(error_500={"next": 2})
    await service.send_event(_event(intent, "succeeded"))
    await service.rows("UPDATE provider_events SET attempts = 40")
    assert await _processed(service) == [("PROVIDER_UNAVAILABLE", False)]
    await service.rows("UPDATE provider_events SET next_try_time = now()")
    assert await _processed(service) == [(None, True)]
    assert await service.rows("SELECT stray FROM refunds") == [(True,)]


async def test_one_event_that_cannot_be_applied_does_not_stop_the_others(service: Payments, sandbox: Sandbox) -> None:
    """A row that nobody foresaw: a trigger makes PostgreSQL refuse its payment's refund."""
    bad, good = an_order(), an_order()
    bad_id, good_id = (await service.charged(bad)).payment_id, (await service.charged(good)).payment_id
    for item in (bad, good):
        (intent,) = await sandbox.intents(item.order_id)
        await sandbox.refund(intent["id"], 500)
        await service.send_event(_refund_event(intent, 500))
    await service.rows(
        f"ALTER TABLE payments ADD CONSTRAINT planted CHECK (refund_check_time IS NULL OR id <> '{bad_id}') NOT VALID"
    )
    try:
        errors = [error for error, _ in await _processed(service)]
        assert errors[0].startswith("IntegrityError")
        assert errors[1] is None
        assert (await service.get(good_id)).refunded.minor_units == 500
        await service.rows("UPDATE provider_events SET attempts = 11, next_try_time = now() WHERE error IS NOT NULL")
        assert (await _processed(service))[0][1]  # parked after its last attempt
    finally:
        await service.rows("ALTER TABLE payments DROP CONSTRAINT planted")


async def test_a_stored_event_that_cannot_be_read_is_parked(service: Payments) -> None:
    await service.rows(
        "INSERT INTO provider_events (provider, event_id, payload, attempts)"
        " VALUES ('stripe', 'evt_odd', '{\"reference\": []}', 0), ('stripe', 'evt_list', '[]', 0)"
    )
    assert await _processed(service) == [("UNREADABLE", True)] * 2


async def test_a_refund_made_in_the_dashboard_is_counted(running: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    payment_id = (await running.charged(item)).payment_id
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.refund(intent["id"], 999)

    async def counted() -> bool:
        return (await running.get(payment_id)).refunded.minor_units == 999

    await until(counted)
    assert (await running.reverse(item))[0].state == State.REFUNDED
    assert await running.published(item.order_id) == ["succeeded", "refunded", "refunded"]


async def test_a_stray_charge_is_refunded_once(running: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    payment_id = (await running.charged(item)).payment_id
    (intent,) = await sandbox.intents(item.order_id)
    await running.rows("UPDATE payments SET state = 'CANCELLED'")
    for _ in range(2):
        await running.send_event(_event(intent, "succeeded"))

    async def back() -> bool:
        return bool(await running.rows("SELECT 1 FROM refunds WHERE state = 'SUCCEEDED'"))

    await until(back)
    assert (await running.get(payment_id)).state == State.CANCELLED
    assert [r["amount"] for r in await sandbox.refunds(intent["id"])] == [1999]


async def test_a_bank_debit_settles_later(running: Payments, sandbox: Sandbox) -> None:
    good, bad = an_order("pm_usBankAccount_processing"), an_order("pm_usBankAccount_processing")
    for item, outcome, state in ((good, "succeed", State.SUCCEEDED), (bad, "fail", State.FAILED)):
        payment = await running.charged(item)
        assert payment.state == State.PROCESSING
        (intent,) = await sandbox.intents(item.order_id)
        await sandbox.control("POST", f"payment_intents/{intent['id']}/settle", {"outcome": outcome})
        await running.reaches(payment.payment_id, state)


async def test_the_reconciler_replaces_lost_webhooks(service: Payments, sandbox: Sandbox) -> None:
    item = an_order("pm_card_authenticationRequired")
    payment = await service.charged(item)
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.control("POST", f"payment_intents/{intent['id']}/authenticate", {"outcome": "succeed"})
    service.start_loops()
    await service.rows("UPDATE payments SET next_check_time = now()")
    await service.reaches(payment.payment_id, State.SUCCEEDED)
