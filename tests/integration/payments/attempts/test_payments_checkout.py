"""Pages of the provider on which customers pay: made once, ended with the hold, and found when they are paid."""

import time
from functools import partial
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.payments.providers.stripe import checkout
from stampede.payments.v1 import charge_service_pb2 as pb
from tests.integration.payments.conftest import KEY, Payments, Sandbox, State, an_order, another_attempt
from tests.support.waiting import until

BACK = "https://shop.example/orders?from=mail"
DEBIT = "pm_usBankAccount_processing"


async def sessions(sandbox: Sandbox, item: pb.Charge) -> list[dict[str, Any]]:
    """The provider's records of an order's pages, oldest first."""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with sandbox.http.get(f"{sandbox.url}/v1/checkout/sessions?limit=100", headers=headers) as answer:
        found = (await answer.json())["data"]
    return [one for one in reversed(found) if one["metadata"].get("order_id") == item.order_id]


async def pay(sandbox: Sandbox, session: dict[str, Any], method: str = "pm_card_visa") -> int:
    """Pay on a page as its customer does; return the status of the answer."""
    url = f"{sandbox.url}/_sandbox/checkout/sessions/{session['id']}/pay"
    async with sandbox.http.post(url, json={"payment_method": method, "email": "a@b.test"}) as answer:
        return answer.status


def a_page(item: pb.Charge, number: int = 1, *, seconds: float = 600) -> pb.Charge:
    end = Timestamp(seconds=int(time.time() + seconds))
    return another_attempt(item, number, checkout=True, return_url=BACK, hold_expire_time=end)


async def is_in(service: Payments, item: pb.Charge, state: int) -> pb.PaymentStatus | None:
    found = await service.charged(item)
    return found if found.state == state else None


async def reconciled(service: Payments, item: pb.Charge, state: int) -> pb.PaymentStatus:
    """The payment, once the reconciler has asked about it; no event arrives."""
    await service.rows("UPDATE payments SET next_check_time = now() WHERE next_check_time IS NOT NULL")
    await service.reconciler.reconcile_once()
    found: pb.PaymentStatus = await until(lambda: is_in(service, item, state))
    return found


@pytest.mark.parametrize(("hold", "least"), [(600, 1800), (7000, 6990)])
async def test_page_lasts_as_long_as_the_hold_or_the_shortest_time(
    service: Payments, sandbox: Sandbox, hold: int, least: int
) -> None:
    item = an_order("")
    waits = await service.charged(a_page(item, seconds=hold))
    (session,) = await sessions(sandbox, item)
    assert (waits.state, waits.checkout_url, waits.client_secret) == (State.AWAITING_CUSTOMER, session["url"], "")
    assert least <= session["expires_at"] - time.time() <= max(hold, 2700) + 5
    assert session["success_url"] == f"{BACK}&result=paid"
    assert session["cancel_url"] == f"{BACK}&result=cancelled"
    assert (session["amount_total"], session["currency"]) == (1999, "usd")
    assert await service.charged(a_page(item, seconds=hold)) == waits, "a repeat finds it"
    assert len(await sessions(sandbox, item)) == 1


async def test_paid_page_is_found_without_an_event(service: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    await service.charged(a_page(item))
    (session,) = await sessions(sandbox, item)
    assert await pay(sandbox, session) == 200

    paid = await reconciled(service, item, State.SUCCEEDED)

    assert paid.checkout_url == ""
    (intent,) = await sandbox.intents(item.order_id)
    assert await service.rows("SELECT provider_reference, checkout_reference FROM payments") == [
        (intent["id"], session["id"])
    ]


async def test_events_of_a_page_settle_its_payment(running: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    await running.charged(a_page(item))
    (session,) = await sessions(sandbox, item)
    assert await pay(sandbox, session, "pm_card_chargeDeclined") == 402
    assert await pay(sandbox, session) == 200
    await until(lambda: is_in(running, item, State.SUCCEEDED))
    assert await running.published(item.order_id) == ["succeeded"]

    async def applied() -> bool:
        return await running.rows("SELECT count(*) FROM provider_events WHERE processed_time IS NULL") == [(0,)]

    await until(applied)
    assert await running.rows("SELECT error FROM provider_events WHERE error IS NOT NULL") == []


async def test_cancelled_page_cannot_be_paid(service: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    await service.charged(a_page(item))
    (session,) = await sessions(sandbox, item)
    assert await pay(sandbox, session, "pm_card_chargeDeclined") == 402, "the page has a charge now"

    (cancelled,) = await service.cancel(item)

    assert cancelled.state == State.CANCELLED
    assert await pay(sandbox, session) == 400
    assert [intent["status"] for intent in await sandbox.intents(item.order_id)] == ["canceled"]


async def test_page_that_was_paid_in_time_is_kept(service: Payments, sandbox: Sandbox) -> None:
    """At the end of the hold the provider is asked before anything is given up."""
    item = an_order("")
    await service.charged(a_page(item))
    (session,) = await sessions(sandbox, item)
    assert await pay(sandbox, session) == 200
    (paid,) = await service.cancel(item)
    assert paid.state == State.SUCCEEDED


async def test_card_takes_over_from_a_page_and_a_page_from_a_card(service: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    await service.charged(item)
    page = await service.charged(a_page(item))
    assert (page.state, bool(page.checkout_url)) == (State.AWAITING_CUSTOMER, True)
    (intent,) = await sandbox.intents(item.order_id)
    assert intent["status"] == "canceled"

    paid = await service.charged(another_attempt(item, 2, "pm_card_visa"))

    assert (paid.state, paid.attempt) == (State.SUCCEEDED, 2)
    (session,) = await sessions(sandbox, item)
    assert session["status"] == "expired"
    assert await pay(sandbox, session) == 400
    assert sorted(i["status"] for i in await sandbox.intents(item.order_id)) == ["canceled", "succeeded"]


@pytest.mark.parametrize("succeeds", [True, False])
async def test_bank_debit_of_a_page_ends_days_later(service: Payments, sandbox: Sandbox, succeeds: bool) -> None:
    item = an_order("")
    await service.charged(a_page(item))
    (session,) = await sessions(sandbox, item)
    assert await pay(sandbox, session, DEBIT) == 200
    moving = await reconciled(service, item, State.PROCESSING)
    assert moving.checkout_url == ""
    refused = await service.charged(another_attempt(item, 2, "pm_card_visa"))
    assert (refused.state, refused.attempt, refused.latest_attempt) == (State.PROCESSING, 1, 2)

    (intent,) = await sandbox.intents(item.order_id)
    outcome = "succeed" if succeeds else "fail"
    await sandbox.control("POST", f"payment_intents/{intent['id']}/settle", {"outcome": outcome})

    if succeeds:
        await reconciled(service, item, State.SUCCEEDED)
        return
    failed = await reconciled(service, item, State.AWAITING_CUSTOMER)
    assert (failed.failure_reason, failed.checkout_url) == ("DECLINED_BY_BANK", ""), "nobody can pay there again"
    assert (await service.charged(another_attempt(item, 3, "pm_card_visa"))).state == State.SUCCEEDED
    statuses = sorted(i["status"] for i in await sandbox.intents(item.order_id))
    assert statuses == ["requires_payment_method", "succeeded"], "Stripe cancels no charge of a page"


@pytest.mark.parametrize("is_old", [False, True])
async def test_lost_answer_makes_no_second_page(
    service: Payments, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, is_old: bool
) -> None:
    """Repeated under its key, or searched for once the provider may have forgotten the key."""
    item = an_order("")
    await sandbox.faults(drop_answer={"next": 1}, drop_answer_on="POST checkout/sessions")
    limits = service.provider.limits
    monkeypatch.setattr(limits, "run", partial(limits.run, repeats=False))
    assert (await service.charged(a_page(item))).state == State.PROCESSING
    if is_old:
        await service.rows("UPDATE payments SET attempt_time = now() - interval '21 hours'")
    waits = await reconciled(service, item, State.AWAITING_CUSTOMER)
    (session,) = await sessions(sandbox, item)
    assert waits.checkout_url == session["url"]


async def test_page_that_is_refused_leaves_the_customer_a_secret(
    service: Payments, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = an_order("", currency="JPY", minor=1999)
    first = await service.charged(item)
    monkeypatch.setattr(checkout, "_with_result", lambda *_: "nowhere")
    waits = await service.charged(a_page(item))
    assert (waits.state, waits.checkout_url, waits.failure_reason) == (
        State.AWAITING_CUSTOMER, "", "REFUSED_BY_PROVIDER",
    )  # fmt: skip
    assert waits.client_secret not in ("", first.client_secret)
