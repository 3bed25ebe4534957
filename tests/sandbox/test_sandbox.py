"""The sandbox as Stampede uses it: over loopback, through the official SDK."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys

import pytest
import stripe

from sandbox.state import journal, store
from sandbox.stripe.handler import StripeHandler


def keyed(key):
    return {"idempotency_key": key}


async def test_a_card_payment_succeeds(provider, order):
    sdk = provider.sdk()
    made = await sdk.v1.payment_intents.create_async(order(expand=["latest_charge"]))
    assert (made.status, made.amount_received, made.metadata["order"]) == ("succeeded", 2500, "o-1")
    assert made.latest_charge.payment_method_details.card.brand == "visa"
    found = await sdk.v1.payment_intents.retrieve_async(made.id)
    assert (found.latest_charge, found.client_secret) == (made.latest_charge.id, made.client_secret)
    charges = await sdk.v1.charges.list_async({"payment_intent": made.id})
    assert [(c.id, c.paid) for c in charges.data] == [(made.latest_charge.id, True)]
    assert (await provider.control("GET", "ledger"))["usd"]["captured"] == 2500


@pytest.mark.parametrize(
    ("method", "code", "decline_code"),
    [
        ("pm_card_chargeDeclined", "card_declined", "generic_decline"),
        ("pm_card_chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds"),
        ("pm_card_chargeDeclinedExpiredCard", "expired_card", None),
        ("pm_card_chargeDeclinedIncorrectCvc", "incorrect_cvc", None),
        ("pm_card_chargeDeclinedProcessingError", "processing_error", None),
    ],
)
async def test_a_decline_carries_the_intent_and_takes_nothing(provider, order, method, code, decline_code):
    sdk = provider.sdk()
    with pytest.raises(stripe.CardError) as caught:
        await sdk.v1.payment_intents.create_async(order(method))
    error = caught.value
    assert (error.http_status, error.code) == (402, code)
    assert error.json_body["error"].get("decline_code") == decline_code
    inside = error.json_body["error"]["payment_intent"]
    found = await sdk.v1.payment_intents.retrieve_async(inside["id"])
    assert found.status == inside["status"] == "requires_payment_method"
    assert found.last_payment_error.code == code
    paid = await sdk.v1.payment_intents.confirm_async(
        found.id, {"payment_method": "pm_card_mastercard", "return_url": "https://shop.test/back"}
    )
    assert paid.status == "succeeded"
    assert (await provider.control("GET", "ledger"))["usd"]["payments"] == 1


async def test_a_key_repeats_the_answer_and_even_the_decline(provider, order):
    sdk = provider.sdk()
    first = await sdk.v1.payment_intents.create_async(order(), keyed("k1"))
    again = await sdk.v1.payment_intents.create_async(order(), keyed("k1"))
    assert again.id == first.id
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    ids = []
    for _ in range(2):
        with pytest.raises(stripe.CardError) as caught:
            await sdk.v1.payment_intents.create_async(order("pm_card_chargeDeclined"), keyed("k2"))
        ids.append(caught.value.json_body["error"]["payment_intent"]["id"])
    assert ids[0] == ids[1]
    assert len(provider.sandbox.stripe.intents.rows) == 2


async def test_a_key_belongs_to_its_parameters_and_its_endpoint(provider, order):
    sdk = provider.sdk()
    made = await sdk.v1.payment_intents.create_async(order(), keyed("k"))
    with pytest.raises(stripe.IdempotencyError) as caught:
        await sdk.v1.payment_intents.create_async(order(amount=2600), keyed("k"))
    assert caught.value.http_status == 400
    with pytest.raises(stripe.IdempotencyError):
        await sdk.v1.refunds.create_async({"payment_intent": made.id}, keyed("k"))


async def test_a_key_in_use_is_refused_and_a_retry_finds_the_one_charge(provider, order, monkeypatch):
    entered, release = asyncio.Event(), asyncio.Event()

    async def held(_handler, _operation):
        entered.set()
        await release.wait()

    monkeypatch.setattr(StripeHandler, "_wait_latency", held)
    sdk = provider.sdk()
    first = asyncio.create_task(sdk.v1.payment_intents.create_async(order(), keyed("k")))
    await entered.wait()
    with pytest.raises(stripe.APIError) as caught:
        await sdk.v1.payment_intents.create_async(order(), keyed("k"))
    assert caught.value.http_status == 409
    assert caught.value.json_body["error"]["code"] == "idempotency_key_in_use"
    release.set()
    made = await first
    assert (await sdk.v1.payment_intents.create_async(order(), keyed("k"))).id == made.id
    assert (await provider.control("GET", "ledger"))["usd"]["payments"] == 1


async def test_bad_parameters_are_refused_and_leave_the_key_free(provider, order):
    sdk = provider.sdk()
    for change, code in (
        ({"amount": 0}, "parameter_invalid_integer"),
        ({"amount": 49}, "amount_too_small"),
        ({"amount": 100_000_000}, "amount_too_large"),
        ({"amount": "12x"}, "parameter_invalid_integer"),
        ({"currency": "xyz"}, None),
        ({"currency": "kwd", "amount": 1234}, None),
        ({"colour": "red"}, "parameter_unknown"),
        ({"payment_method": "pm_card_unheard"}, "resource_missing"),
        ({"metadata": {f"k{n}": "v" for n in range(51)}}, None),
        ({"metadata": {"k": "v" * 501}}, None),
        ({"automatic_payment_methods": {"enabled": True}}, None),
    ):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            await sdk.v1.payment_intents.create_async(order() | change, keyed("k"))
        assert (caught.value.http_status, caught.value.code) == (400, code), change
    yen = await sdk.v1.payment_intents.create_async(order(currency="jpy", amount=50), keyed("k"))
    assert yen.status == "succeeded"


async def test_strong_authentication_waits_for_the_buyer(provider, order):
    sdk = provider.sdk()
    waiting = await sdk.v1.payment_intents.create_async(
        order("pm_card_authenticationRequired", return_url="https://shop.test/back")
    )
    assert (waiting.status, waiting.next_action.type) == ("requires_action", "redirect_to_url")
    done = await provider.control("POST", f"payment_intents/{waiting.id}/authenticate", {"outcome": "succeed"})
    assert (done["status"], done["amount_received"]) == ("succeeded", 2500)

    other = await sdk.v1.payment_intents.create_async(order("pm_card_authenticationRequired"))
    await provider.control("POST", f"payment_intents/{other.id}/authenticate", {"outcome": "fail"})
    failed = await sdk.v1.payment_intents.retrieve_async(other.id)
    assert failed.status == "requires_payment_method"
    assert failed.last_payment_error.code == "payment_intent_authentication_failure"

    with pytest.raises(stripe.CardError) as caught:
        await sdk.v1.payment_intents.create_async(order("pm_card_authenticationRequired", off_session=True))
    assert caught.value.code == "authentication_required"


async def test_the_banks_page_sends_the_buyer_back(provider, order):
    waiting = await provider.sdk().v1.payment_intents.create_async(
        order("pm_card_authenticationRequired", return_url="https://shop.test/back?a=1")
    )
    page = waiting.next_action.redirect_to_url.url
    async with provider.http.get(page) as answer:
        assert "25.00 usd" in await answer.text()
    async with provider.http.post(
        page, data={"outcome": "succeed"}, headers={"Accept": "text/html"}, allow_redirects=False
    ) as answer:
        assert answer.status == 303
        assert answer.headers["Location"].startswith(f"https://shop.test/back?a=1&payment_intent={waiting.id}")


async def test_cancel_ends_an_open_intent_and_refuses_a_paid_one(provider, order):
    sdk = provider.sdk()
    opened = await sdk.v1.payment_intents.create_async({"amount": 500, "currency": "eur"})
    assert opened.status == "requires_payment_method"
    canceled = await sdk.v1.payment_intents.cancel_async(opened.id, {"cancellation_reason": "abandoned"})
    assert (canceled.status, canceled.cancellation_reason) == ("canceled", "abandoned")
    paid = await sdk.v1.payment_intents.create_async(order())
    for call in (
        sdk.v1.payment_intents.cancel_async(paid.id),
        sdk.v1.payment_intents.confirm_async(paid.id, {"return_url": "https://shop.test/"}),
    ):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            await call
        assert (caught.value.http_status, caught.value.code) == (400, "payment_intent_unexpected_state")
        assert caught.value.json_body["error"]["payment_intent"]["status"] == "succeeded"


async def test_the_buyer_confirms_with_publishable_key_and_client_secret_only(provider):
    opened = await provider.sdk().v1.payment_intents.create_async({"amount": 500, "currency": "eur"})
    url = f"{provider.url}/v1/payment_intents/{opened.id}/confirm"
    form = {"key": "pk_test_sandbox", "payment_method": "pm_card_visa", "client_secret": "wrong"}
    async with provider.http.post(url, data=form) as answer:
        assert (answer.status, (await answer.json())["error"]["param"]) == (400, "client_secret")
    async with provider.http.post(url, data=form | {"client_secret": opened.client_secret}) as answer:
        body = await answer.json()
        assert (answer.status, body["status"]) == (200, "succeeded")
        assert "latest_charge" not in body
    with pytest.raises(stripe.StripeError) as caught:
        await provider.sdk("pk_test_sandbox").v1.refunds.create_async({"payment_intent": opened.id})
    assert caught.value.json_body["error"]["code"] == "secret_key_required"


async def test_refunds_never_exceed_the_charge(provider, order):
    sdk = provider.sdk()
    paid = await sdk.v1.payment_intents.create_async(order())
    part = await sdk.v1.refunds.create_async({"payment_intent": paid.id, "amount": 1000})
    assert (part.status, part.amount, part.charge) == ("succeeded", 1000, paid.latest_charge)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await sdk.v1.refunds.create_async({"charge": paid.latest_charge, "amount": 1501})
    assert caught.value.param == "amount"
    rest = await sdk.v1.refunds.create_async({"charge": paid.latest_charge, "reason": "duplicate"})
    assert rest.amount == 1500
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await sdk.v1.refunds.create_async({"payment_intent": paid.id})
    assert caught.value.code == "charge_already_refunded"
    charge = await sdk.v1.charges.retrieve_async(paid.latest_charge)
    assert (charge.amount_refunded, charge.refunded) == (2500, True)
    listed = await sdk.v1.refunds.list_async({"payment_intent": paid.id})
    assert [r.id for r in listed.data] == [rest.id, part.id]
    async with provider.http.get(f"{provider.url}/_sandbox/ledger?detail=true") as answer:
        lines = (await answer.text()).splitlines()
    assert len(lines) == 1
    assert '"amount_refunded":2500' in lines[0]
    async with provider.http.get(f"{provider.url}/_sandbox/ledger?detail=records") as answer:
        (record,) = map(json.loads, (await answer.text()).splitlines())
    assert (record["id"], record["status"], record["amount_refunded"]) == (paid.id, "succeeded", 2500)
    assert [made["id"] for made in record["refunds"]] == [part.id, rest.id]


async def test_lists_are_newest_first_and_page_without_gaps(provider, order):
    sdk = provider.sdk()
    made = [(await sdk.v1.payment_intents.create_async(order())).id for _ in range(7)]
    first = await sdk.v1.payment_intents.list_async({"limit": 3})
    assert first.has_more
    walked = [item.id async for item in first.auto_paging_iter()]
    assert walked == made[::-1]
    since = (await sdk.v1.payment_intents.retrieve_async(made[0])).created
    assert len((await sdk.v1.payment_intents.list_async({"created": {"gte": since}})).data) == 7
    assert not (await sdk.v1.payment_intents.list_async({"created": {"gt": since + 60}})).data
    with pytest.raises(stripe.InvalidRequestError):
        await sdk.v1.payment_intents.list_async({"limit": 101})


async def test_webhooks_are_signed_and_name_what_happened(notifying, listener, order):
    made = await notifying.sdk().v1.payment_intents.create_async(order(), keyed("k"))
    events = [event for _, event in await listener.take(3)]
    assert {e.type for e in events} == {
        "payment_intent.created",
        "charge.succeeded",
        "payment_intent.succeeded",
    }
    paid = next(e for e in events if e.type == "payment_intent.succeeded")
    assert (paid.data.object.id, paid.request.idempotency_key) == (made.id, "k")
    found = await notifying.sdk().v1.events.retrieve_async(paid.id)
    assert found.data.object.status == "succeeded"


async def test_a_webhook_comes_again_after_a_500(notifying, listener):
    listener.answers = [500, 500]
    await notifying.sdk().v1.payment_intents.create_async({"amount": 500, "currency": "eur"})
    tries = await listener.take(3)
    assert [status for status, _ in tries] == [500, 500, 200]
    assert len({event.id for _, event in tries}) == 1


async def test_an_undelivered_webhook_survives_a_restart(notifying, listener):
    await notifying.control("POST", "faults", {"webhooks": {"delay_ms": 600_000}})
    made = await notifying.sdk().v1.payment_intents.create_async({"amount": 500, "currency": "eur"})
    await notifying.restart()
    ((_, event),) = await listener.take(1)
    assert event.data.object.id == made.id


async def test_webhooks_can_be_lost_and_doubled(notifying, listener):
    sdk = notifying.sdk()
    await notifying.control("POST", "faults", {"webhooks": {"drop": {"next": 1}, "duplicate": {"next": 1}}})
    await sdk.v1.payment_intents.create_async({"amount": 500, "currency": "eur"})
    second = await sdk.v1.payment_intents.create_async({"amount": 501, "currency": "eur"})
    got = [event for _, event in await listener.take(2)]
    assert [e.data.object.id for e in got] == [second.id] * 2
    assert got[0].id == got[1].id


async def test_the_queue_spills_to_the_journal_and_loses_nothing(notifying, listener, monkeypatch):
    monkeypatch.setattr("sandbox.webhooks.QUEUE_MAX", 20)
    monkeypatch.setattr("sandbox.webhooks.RETRIES_MAX", 5)
    await notifying.control("POST", "faults", {"webhooks": {"delay_ms": 50}})
    sdk = notifying.sdk()
    params = {"amount": 500, "currency": "eur"}
    made = await asyncio.gather(*(sdk.v1.payment_intents.create_async(params) for _ in range(80)))
    assert notifying.sandbox.webhooks.spilled > 0
    await notifying.control("DELETE", "faults")
    events = [event for _, event in await listener.take(80)]
    assert {e.data.object.id for e in events} == {i.id for i in made}


async def test_a_lost_answer_is_found_again_under_its_key_and_charged_once(provider, order):
    await provider.control("POST", "faults", {"drop_after_charge": {"next": 1}})
    sdk = provider.sdk()
    with pytest.raises(stripe.APIConnectionError):
        await sdk.v1.payment_intents.create_async(order(), keyed("k"))
    ledger = await provider.control("GET", "ledger")
    assert (ledger["usd"]["payments"], ledger["usd"]["captured"]) == (1, 2500)
    found = await sdk.v1.payment_intents.create_async(order(), keyed("k"))
    assert found.status == "succeeded"
    assert (await provider.control("GET", "ledger")) == ledger
    assert (await provider.control("GET", "faults"))["drop_after_charge"] == {"next": 0}


async def test_server_errors_and_rate_limits_do_nothing_and_may_be_repeated(provider, order):
    sdk = provider.sdk()
    await provider.control("POST", "faults", {"error_500": 1, "rate_limit_429": 1})
    with pytest.raises(stripe.RateLimitError):
        await sdk.v1.payment_intents.create_async(order(), keyed("k"))
    with pytest.raises(stripe.APIError) as caught:
        await sdk.v1.payment_intents.create_async(order(), keyed("k"))
    assert caught.value.http_status == 500
    assert await provider.control("GET", "ledger") == {}
    assert (await sdk.v1.payment_intents.create_async(order(), keyed("k"))).status == "succeeded"


async def test_a_wrong_fault_changes_nothing(provider):
    before = await provider.control("GET", "faults")
    wrong = {"rate_limit_429": True, "latency_ms": -1}
    async with provider.http.post(f"{provider.url}/_sandbox/faults", json=wrong) as answer:
        assert answer.status == 400
    assert await provider.control("GET", "faults") == before


@pytest.mark.parametrize("compacted", [False, True])
async def test_a_restart_keeps_payments_keys_order_and_events(provider, order, monkeypatch, compacted):
    sdk = provider.sdk()
    paid = await sdk.v1.payment_intents.create_async(order(), keyed("k"))
    opened = await sdk.v1.payment_intents.create_async({"amount": 500, "currency": "eur"})
    await sdk.v1.refunds.create_async({"payment_intent": paid.id, "amount": 100}, keyed("r"))
    await sdk.v1.payment_intents.cancel_async(opened.id)
    ledger = await provider.control("GET", "ledger")
    events = [e.to_dict() for e in (await sdk.v1.events.list_async()).data]
    if compacted:
        monkeypatch.setattr("sandbox.service.COMPACT_ABOVE_BYTES", 0)
    await provider.restart()
    sdk = provider.sdk()
    assert await provider.control("GET", "ledger") == ledger
    assert [e.to_dict() for e in (await sdk.v1.events.list_async()).data] == events
    assert [i.id for i in (await sdk.v1.payment_intents.list_async()).data] == [opened.id, paid.id]
    replayed = await sdk.v1.payment_intents.create_async(order(), keyed("k"))
    assert replayed.to_dict() == paid.to_dict()
    with pytest.raises(stripe.IdempotencyError):
        await sdk.v1.refunds.create_async({"payment_intent": paid.id, "amount": 101}, keyed("r"))


async def test_a_torn_last_line_is_cut_off(provider, order):
    paid = await provider.sdk().v1.payment_intents.create_async(order())
    path = provider.settings.state
    await provider.stop()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:100])
    await provider.start()
    assert (await provider.sdk().v1.payment_intents.retrieve_async(paid.id)).status == "succeeded"
    assert path.read_bytes() == whole


async def test_one_state_file_serves_one_sandbox(provider):
    with pytest.raises(journal.Busy):
        journal.Journal(provider.settings.state, {})


async def test_a_wrong_key_is_turned_away(provider, order):
    for key in ("sk_test_wrong", "sk_test_sandboxx"):
        with pytest.raises(stripe.AuthenticationError) as caught:
            await provider.sdk(key).v1.payment_intents.create_async(order())
        assert caught.value.http_status == 401
    async with provider.http.get(f"{provider.url}/v1/events") as answer:
        assert answer.status == 401
        assert (await answer.json())["error"]["type"] == "invalid_request_error"


async def test_old_events_are_forgotten_in_order(provider, monkeypatch):
    table = provider.sandbox.stripe.events
    monkeypatch.setattr(table, "_kept", 10)
    sdk = provider.sdk()
    for _ in range(25):
        await sdk.v1.payment_intents.create_async({"amount": 500, "currency": "eur"})
    kept = list(table.newest_first())
    assert 10 <= len(kept) == len(table.rows) <= 11
    assert store.EVENTS_KEPT > 10


async def test_the_process_starts_stops_and_says_when_the_port_is_taken(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = await launch("--listen", f"127.0.0.1:{port}", "--state", str(tmp_path / "a"))
        _, output = await refused.communicate()
    assert refused.returncode == 2
    assert b"the port is taken" in output
    running = await launch("--listen", "127.0.0.1:0", "--state", str(tmp_path / "b"))
    assert b'"listening"' in await running.stderr.readline()
    running.send_signal(signal.SIGTERM)
    _, output = await running.communicate()
    assert running.returncode == 0
    assert b'"stopped"' in output


async def test_an_answered_payment_survives_kill_9(tmp_path, order):
    options = ("--listen", "127.0.0.1:0", "--state", str(tmp_path / "state"))
    ids = []
    for _ in range(2):
        running = await launch(*options)
        url = json.loads(await running.stderr.readline())["url"]
        sdk = stripe.StripeClient("sk_test_sandbox", base_addresses={"api": url}, http_client=stripe.AIOHTTPClient())
        ids.append((await sdk.v1.payment_intents.create_async(order(), keyed("k"))).id)
        await sdk._requestor._client.close_async()
        running.kill()
        await running.communicate()
    assert ids[0] == ids[1]


async def launch(*options):
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sandbox", *options, stderr=asyncio.subprocess.PIPE, env=os.environ
    )


async def test_rules_never_show_an_unsaved_key_as_running(provider, order):
    """A request that was refused leaves its key free at once."""
    sdk = provider.sdk()
    with pytest.raises(stripe.InvalidRequestError):
        await sdk.v1.payment_intents.retrieve_async("pi_unheard")
    with pytest.raises(stripe.InvalidRequestError):
        await sdk.v1.payment_intents.cancel_async("pi_unheard", options=keyed("k"))
    assert (await sdk.v1.payment_intents.create_async(order(), keyed("k"))).status == "succeeded"


async def test_a_bank_debit_settles_later(provider, order):
    sdk = provider.sdk()
    made = [await sdk.v1.payment_intents.create_async(order("pm_usBankAccount_processing")) for _ in range(2)]
    assert {i.status for i in made} == {"processing"}
    paid = await provider.control("POST", f"payment_intents/{made[0].id}/settle", {"outcome": "succeed"})
    lost = await provider.control("POST", f"payment_intents/{made[1].id}/settle", {"outcome": "fail"})
    assert (paid["status"], lost["status"]) == ("succeeded", "requires_payment_method")


async def test_a_saved_500_is_repeated_under_its_key(provider, order):
    await provider.control("POST", "faults", {"error_500": {"next": 1, "saved": True}})
    sdk = provider.sdk()
    for _ in range(2):
        with pytest.raises(stripe.APIError) as caught:
            await sdk.v1.payment_intents.create_async(order(), keyed("k"))
        assert caught.value.http_status == 500
    assert await provider.control("GET", "ledger") == {}


async def test_odd_requests_get_stripes_error_and_not_a_stack_trace(provider):
    auth = {"Authorization": "Bearer sk_test_sandbox"}
    form = auth | {"Content-Type": "application/x-www-form-urlencoded"}
    for headers, body in (
        (auth | {"Content-Type": "application/json"}, b'{"amount": 1}'),
        (form, b"amount=1&amount[x]=2"),
        (form, b"a[b][c][d][e][f]=2"),
        (form, b"amount=%ff"),
        (form, b"amount=\xff"),
        (form, b"[x]=1"),
        (form, b"amount=1&currency=usd&metadata[a][b]=1"),
        (form, b"amount=1&currency=usd&expand=latest_charge"),
        (form, b"amount=1&currency=usd&expand[]=customer"),
        (form, b"&".join(b"k%d=1" % n for n in range(300))),
    ):
        async with provider.http.post(f"{provider.url}/v1/payment_intents", data=body, headers=headers) as answer:
            assert answer.status == 400, body
            assert (await answer.json())["error"]["type"] == "invalid_request_error"
    big = b"amount=" + b"1" * 200_000
    async with provider.http.post(f"{provider.url}/v1/payment_intents", data=big, headers=form) as answer:
        assert answer.status == 413
    async with provider.http.get(f"{provider.url}/v1/nothing", headers=auth) as answer:
        assert answer.status == 404
    assert not provider.sandbox.stripe.intents.rows
