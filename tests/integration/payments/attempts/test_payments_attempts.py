"""Further attempts that customers ask for: the charge of the earlier one is used again, or voided first."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.chassis.data.db import Database
from services.payments.charges import Charges
from services.payments.dispatch.dispatcher import ChargeDispatcher
from services.payments.dispatch.offers import Offers
from services.payments.dispatch.reconciler import Reconciler
from services.payments.dispatch.saved_methods import SavedMethods
from services.payments.providers import Providers
from services.payments.providers.stripe.adapter import Stripe
from services.payments.providers.stripe.webhook import StripeWebhook
from services.payments.rpc import ChargeService
from stampede.payments.v1 import charge_service_pb2 as pb
from stampede.payments.v1 import charge_service_pb2_grpc as pb_grpc
from tests.integration.payments.conftest import (
    KEY,
    WEBHOOK_SECRET,
    Payments,
    Sandbox,
    State,
    an_order,
    another_attempt,
)
from tests.support import tokens
from tests.support.serving import serving
from tests.support.waiting import until

DECLINED, VISA = "pm_card_chargeDeclined", "pm_card_visa"


class Second(Stripe):
    """Another provider, which speaks the same protocol at the same sandbox."""

    name = "second"


@pytest.fixture
async def two(service: Payments, sandbox: Sandbox) -> AsyncIterator[Payments]:
    """Payments whose customers may choose between two providers."""
    webhook = StripeWebhook(WEBHOOK_SECRET, api_key=KEY)
    second = Second(KEY, webhook=webhook, api_base=sandbox.url, calls_per_second=0, concurrency=64)
    service.providers = Providers(service.provider, second, default="stripe")
    service.dispatcher = ChargeDispatcher(service.db, service.providers, service.relay.nudge)
    service.reconciler = Reconciler(service.db, service.dispatcher, service.relay)
    charges = Charges(service.db, service.dispatcher, service.relay.nudge, providers=service.providers)
    offers = Offers(service.providers, SavedMethods(service.db, service.providers))

    def add(server: object) -> None:
        handlers = ChargeService(charges, None, offers)  # type: ignore[arg-type]
        pb_grpc.add_ChargeServiceServicer_to_server(handlers, server)

    async with serving("payments", add) as channel:
        service.charges = pb_grpc.ChargeServiceStub(channel)
        yield service
        await service.stop()
        await second.aclose()


async def statuses(sandbox: Sandbox, item: pb.Charge) -> list[str]:
    """The statuses of an order's intents at the provider, oldest first."""
    return [intent["status"] for intent in reversed(await sandbox.intents(item.order_id))]


async def test_declined_order_is_paid_with_another_card(service: Payments, sandbox: Sandbox) -> None:
    item = an_order(DECLINED)
    assert (await service.charged(item)).state == State.FAILED

    paid = await service.charged(another_attempt(item, 1, VISA))

    assert (paid.state, paid.attempt, paid.latest_attempt) == (State.SUCCEEDED, 1, 1)
    assert await statuses(sandbox, item) == ["canceled", "succeeded"]
    assert await service.published(item.order_id) == ["failed", "succeeded"]
    ((former, token, terms),) = await service.rows("SELECT former_references, payment_method, terms FROM payments")
    assert (len(former), token) == (1, None)
    assert terms["payment_method"] == "", "the token of a card is not kept"


async def test_known_attempt_begins_nothing(service: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    await service.charged(item)
    second = await service.charged(another_attempt(item, 2, DECLINED))
    for number in (2, 1, 0):
        again = await service.charged(another_attempt(item, number, VISA))
        assert (again.state, again.attempt) == (second.state, 2)
    assert await statuses(sandbox, item) == ["requires_payment_method"]


async def test_attempt_waits_for_none_that_may_take_money(service: Payments, sandbox: Sandbox) -> None:
    """A bank debit takes days; whatever comes of it, the attempt that met it is not made."""
    item = an_order("pm_usBankAccount_processing")
    assert (await service.charged(item)).state == State.PROCESSING

    refused = await service.charged(another_attempt(item, 1, VISA))

    assert (refused.state, refused.attempt, refused.latest_attempt) == (State.PROCESSING, 0, 1)
    assert await statuses(sandbox, item) == ["processing"]


async def test_two_attempts_at_once_charge_once(service: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    await service.charged(item)
    await sandbox.faults(latency_ms=100)

    outcomes = await asyncio.gather(
        *(service.charged(another_attempt(item, number, VISA)) for number in (1, 2, 1, 2, 3))
    )

    assert all(one.state in (State.SUCCEEDED, State.PROCESSING) for one in outcomes)
    paid = await service.charged(item)
    assert (paid.state, paid.latest_attempt) == (State.SUCCEEDED, 3)
    assert await statuses(sandbox, item) == ["succeeded"]


async def test_another_provider_takes_over_after_the_void(two: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    secret = (await two.charged(item)).client_secret

    other = await two.charged(another_attempt(item, 1, provider="second"))

    assert (other.state, other.provider, other.attempt) == (State.AWAITING_CUSTOMER, "second", 1)
    assert other.client_secret not in ("", secret)
    assert await statuses(sandbox, item) == ["canceled", "requires_payment_method"]
    back = await two.charged(another_attempt(item, 2, VISA, provider="stripe"))
    assert (back.state, back.provider) == (State.SUCCEEDED, "stripe")
    assert await statuses(sandbox, item) == ["canceled", "canceled", "succeeded"]


async def test_charge_that_was_paid_meanwhile_is_kept(two: Payments, sandbox: Sandbox) -> None:
    """The webhook is lost: the void finds that its customer has paid."""
    item = an_order("")
    await two.charged(item)
    (intent,) = await sandbox.intents(item.order_id)
    assert await sandbox.confirm(intent, VISA) == 200

    paid = await two.charged(another_attempt(item, 1, VISA, provider="second"))

    assert (paid.state, paid.provider, paid.attempt, paid.latest_attempt) == (State.SUCCEEDED, "stripe", 0, 1)
    assert await statuses(sandbox, item) == ["succeeded"]


async def test_authentication_that_ends_after_the_void_takes_no_money(two: Payments, sandbox: Sandbox) -> None:
    item = an_order("pm_card_authenticationRequired")
    assert (await two.charged(item)).authenticating
    (intent,) = await sandbox.intents(item.order_id)

    paid = await two.charged(another_attempt(item, 1, VISA, provider="second"))

    assert (paid.state, paid.provider) == (State.SUCCEEDED, "second")
    async with sandbox.http.post(
        f"{sandbox.url}/_sandbox/payment_intents/{intent['id']}/authenticate", json={"outcome": "succeed"}
    ) as answer:
        assert answer.status == 400
    assert await statuses(sandbox, item) == ["canceled", "succeeded"]


@pytest.mark.parametrize("fault", ["void", "create"])
async def test_attempt_goes_on_once_the_provider_answers(two: Payments, sandbox: Sandbox, fault: str) -> None:
    item = an_order("")
    await two.charged(item)
    (intent,) = await sandbox.intents(item.order_id)
    path = f"POST payment_intents/{'*/cancel' if fault == 'void' else ''}".rstrip("/")
    await sandbox.faults(error_500=True, error_500_on=path)

    waiting = await two.charged(another_attempt(item, 1, VISA, provider="second"))

    assert (waiting.state, waiting.client_secret) == (State.PROCESSING, ""), "nobody can pay the earlier charge"
    await sandbox.control("DELETE", "faults")
    two.start_loops()
    await until(lambda: _is(two, item, State.SUCCEEDED))
    assert await statuses(sandbox, item) == ["canceled", "succeeded"]
    assert intent["id"] == (await two.rows("SELECT former_references FROM payments"))[0][0][0]


async def _is(service: Payments, item: pb.Charge, state: int) -> bool:
    return (await service.charged(item)).state == state


@pytest.mark.parametrize("steps", [0, 1])
async def test_attempt_survives_its_process(two: Payments, sandbox: Sandbox, db: Database, steps: int) -> None:
    """The process dies before the answer of the void is stored, or that of the create."""
    item = an_order("")
    await two.charged(item)
    stored = 0

    async def settle(pair: object) -> object:
        nonlocal stored
        if stored == steps:
            raise RuntimeError("killed")
        stored += 1
        return await real(pair)

    real = two.dispatcher._settle
    two.dispatcher._settle = settle  # type: ignore[assignment]
    assert (await two.charged(another_attempt(item, 1, VISA, provider="second"))).state == State.PROCESSING
    two.dispatcher._settle = real
    await two.rows("UPDATE payments SET next_check_time = now()")

    two.start_loops()

    await until(lambda: _is(two, item, State.SUCCEEDED))
    assert await statuses(sandbox, item) == ["canceled", "succeeded"]


async def test_cancellation_ends_an_attempt_that_waits(two: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    await two.charged(item)
    await sandbox.faults(error_500=True, error_500_on="POST payment_intents/*/cancel")
    await two.charged(another_attempt(item, 1, VISA, provider="second"))

    (cancelling,) = await two.cancel(item)

    assert cancelling.state == State.PROCESSING
    await sandbox.control("DELETE", "faults")
    two.start_loops()
    await until(lambda: _is(two, item, State.CANCELLED))
    assert await statuses(sandbox, item) == ["canceled"]
    late = await two.charged(another_attempt(item, 2, VISA))
    assert (late.state, late.latest_attempt) == (State.CANCELLED, 2)


async def test_events_of_an_earlier_charge_are_no_news(two: Payments, sandbox: Sandbox) -> None:
    """Its cancellation comes late, and is neither parked nor does it move the payment."""
    item = an_order("")
    await two.charged(item)
    await two.charged(another_attempt(item, 1, provider="second"))
    sandbox.receiver.forward = two.webhook
    two.start_loops()

    async def applied() -> bool:
        rows = await two.rows("SELECT count(*) FROM provider_events WHERE payload->>'charge_status' = 'CANCELLED'")
        waiting = await two.rows("SELECT count(*) FROM provider_events WHERE processed_time IS NULL")
        return (rows, waiting) == ([(1,)], [(0,)])

    for body, signature in sandbox.receiver.seen:
        await two.webhook(body, signature)
    await until(applied)
    assert await two.rows("SELECT error FROM provider_events WHERE error IS NOT NULL") == []
    assert (await two.charged(item)).state == State.AWAITING_CUSTOMER


@pytest.mark.parametrize(("provider", "method", "field"), [("nobody", "", "provider"), ("second", VISA, "")])
async def test_terms_are_checked(two: Payments, provider: str, method: str, field: str) -> None:
    request = pb.CheckTermsRequest(
        customer_id=an_order().customer_id, terms=pb.AttemptTerms(provider=provider), with_card=bool(method)
    )
    call = two.charges.CheckTerms(request, metadata=tokens.as_service("orders"))
    if not field:
        await call
        return
    with pytest.raises(Exception, match="not valid"):
        await call
