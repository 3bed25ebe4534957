"""Payments on a real PostgreSQL; its provider is the real sandbox, with webhooks."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import stripe
from aiohttp import web
from google.api import httpbody_pb2
from sqlalchemy import text

from services.chassis.data.db import Database, connect
from services.chassis.events.outbox import Relay
from services.chassis.server.paging import Pages
from services.payments.books.rpc import BooksService
from services.payments.charges import Charges
from services.payments.dispatch.captures import Captures
from services.payments.dispatch.dispatcher import ChargeDispatcher
from services.payments.dispatch.offers import Offers
from services.payments.dispatch.reconciler import Reconciler
from services.payments.dispatch.saved_methods import SavedMethods
from services.payments.domain import Payment
from services.payments.providers import Providers
from services.payments.providers.limits import ProviderLimits
from services.payments.providers.razorpay.adapter import Razorpay
from services.payments.providers.razorpay.signatures import Signatures
from services.payments.providers.razorpay.transport import Transport
from services.payments.providers.razorpay.webhook import RazorpayWebhook
from services.payments.providers.stripe.adapter import Stripe
from services.payments.providers.stripe.webhook import StripeWebhook
from services.payments.refunds.create import Refunds
from services.payments.rpc import ChargeService, PaymentService
from services.payments.sql import journal
from services.payments.sql import payments as sql
from services.payments.webhooks.inbox import Inbox
from services.payments.webhooks.walk import EventWalk
from stampede.payments.v1 import books_service_pb2_grpc as books_grpc
from stampede.payments.v1 import charge_service_pb2 as charge_pb
from stampede.payments.v1 import charge_service_pb2_grpc as charge_grpc
from stampede.payments.v1 import events_pb2
from stampede.payments.v1 import payment_service_pb2 as pb
from stampede.payments.v1 import payment_service_pb2_grpc as pb_grpc
from stampede.type.v1 import money_pb2
from tests.support import tokens
from tests.support.databases import empty
from tests.support.infra import Infra
from tests.support.ports import free_port
from tests.support.serving import serving
from tests.support.waiting import until

KEY, WEBHOOK_SECRET = "sk_test_sandbox", "whsec_for_payments_tests"
RAZORPAY_KEY, RAZORPAY_WEBHOOK_SECRET = ("rzp_test_sandbox", "secret_of_the_sandbox"), "hooks_of_razorpay"
ROOT = Path(__file__).parents[3]
ORDERS = tokens.as_service("orders")
State = charge_pb.PaymentStatus.State


class Receiver:
    """Receives the sandbox's webhooks; forwards them while a test has set `forward`, or `forward_razorpay`."""

    def __init__(self) -> None:
        self.forward: Callable[[bytes, str], Awaitable[None]] | None = None
        self.forward_razorpay: Callable[[bytes, str, str], Awaitable[None]] | None = None
        self.seen: list[tuple[bytes, str]] = []

    async def handle(self, request: web.BaseRequest) -> web.Response:
        if event_id := request.headers.get("x-razorpay-event-id"):
            if self.forward_razorpay is not None:
                await self.forward_razorpay(await request.read(), request.headers["X-Razorpay-Signature"], event_id)
            return web.Response()
        body, signature = await request.read(), request.headers["Stripe-Signature"]
        self.seen.append((body, signature))
        if self.forward is not None:
            await self.forward(body, signature)
        return web.Response()


class Sandbox:
    """The process of the sandbox, and its faults."""

    def __init__(self, url: str, receiver: Receiver, http: aiohttp.ClientSession) -> None:
        self.url, self.receiver, self.http = url, receiver, http

    async def control(self, method: str, path: str, body: Any = None) -> Any:
        async with self.http.request(method, f"{self.url}/_sandbox/{path}", json=body) as answer:
            assert answer.status == 200, await answer.text()
            return json.loads(await answer.text())

    async def faults(self, **faults: Any) -> None:
        await self.control("POST", "faults", faults)

    async def intents(self, *order_ids: str) -> list[dict[str, Any]]:
        """Return the provider's records of orders."""
        headers = {"Authorization": f"Bearer {KEY}"}
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            async with self.http.get(f"{self.url}/v1/payment_intents?limit=100{after}", headers=headers) as answer:
                page = await answer.json()
            found += [i for i in page["data"] if i["metadata"].get("order_id") in order_ids]
            if not page["has_more"]:
                return found
            after = f"&starting_after={page['data'][-1]['id']}"

    async def confirm(self, intent: dict[str, Any], card: str) -> int:
        """Confirm an intent as Stripe's script in a browser does; return the status of the answer."""
        form = {"client_secret": intent["client_secret"], "payment_method": card}
        headers = {"Authorization": f"Bearer {KEY.replace('sk_', 'pk_')}"}
        url = f"{self.url}/v1/payment_intents/{intent['id']}/confirm"
        async with self.http.post(url, data=form, headers=headers) as answer:
            return answer.status

    async def refund(self, intent: str, minor: int) -> None:
        """Refund as staff can in Stripe's dashboard."""
        form = {"payment_intent": intent, "amount": str(minor)}
        headers = {"Authorization": f"Bearer {KEY}"}
        async with self.http.post(f"{self.url}/v1/refunds", data=form, headers=headers) as answer:
            assert answer.status == 200, await answer.text()

    async def fail_refund(self, refund_id: str) -> None:
        """Fail a refund that has succeeded, as a bank does that cannot find the card."""
        await self.control("POST", f"refunds/{refund_id}/fail")

    async def dispute(self, intent: str, **wanted: Any) -> str:
        """Have a customer's bank demand a payment back; return the dispute's id."""
        made = await self.control("POST", f"payment_intents/{intent}/dispute", wanted)
        return str(made["id"])

    async def decide(self, dispute: str, outcome: str) -> None:
        """Have the bank decide a dispute: `win` or `lose` for the shop."""
        await self.control("POST", f"disputes/{dispute}/decide", {"outcome": outcome})

    async def refunds(self, intent: str) -> list[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with self.http.get(f"{self.url}/v1/refunds?limit=100&payment_intent={intent}", headers=headers) as answer:
            data: list[dict[str, Any]] = (await answer.json())["data"]
            return data


@pytest.fixture(scope="session")
async def sandbox_process(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sandbox]:
    receiver = Receiver()
    runner = web.ServerRunner(web.Server(receiver.handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    hooks = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    url = f"http://127.0.0.1:{free_port()}"
    home = tmp_path_factory.mktemp("sandbox")
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220  # starting it blocks for a moment only
            [
                sys.executable, "-m", "sandbox", "--listen", url.removeprefix("http://"), "--state",
                home / "state.jsonl", "--webhook-url", hooks, "--webhook-secret", WEBHOOK_SECRET,
                "--razorpay-webhook-url", hooks, "--razorpay-webhook-secret", RAZORPAY_WEBHOOK_SECRET,
            ],
            cwd=ROOT, stdout=log, stderr=log, env={**os.environ},
        )  # fmt: skip
    async with aiohttp.ClientSession() as http:

        async def healthy() -> bool:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(f"{url}/healthz") as answer:
                    return answer.status == 200
            return False

        await until(healthy)
        yield Sandbox(url, receiver, http)
    process.terminate()
    assert process.wait(20) == 0
    await runner.cleanup()


@pytest.fixture
async def sandbox(sandbox_process: Sandbox) -> AsyncIterator[Sandbox]:
    """The provider without faults. Its webhooks are dropped."""
    await sandbox_process.control("DELETE", "faults")
    receiver = sandbox_process.receiver
    receiver.forward = receiver.forward_razorpay = None
    receiver.seen.clear()
    yield sandbox_process
    receiver.forward = receiver.forward_razorpay = None
    await sandbox_process.control("DELETE", "faults")


class Payments:
    """The parts of a payments process. Its background loops run once a test starts them."""

    def __init__(self, db: Database, sandbox: Sandbox) -> None:
        self.db, self.sandbox = db, sandbox
        webhook = StripeWebhook([WEBHOOK_SECRET], api_key=KEY)
        self.provider = Stripe(KEY, webhook=webhook, api_base=sandbox.url, calls_per_second=0, concurrency=64)
        self.razorpay = Razorpay(
            Transport(
                *RAZORPAY_KEY, api_base=f"{sandbox.url}/razorpay", threads=16,
                limits=ProviderLimits("razorpay", calls_per_second=0, concurrency=16),
            ),
            webhook=RazorpayWebhook(Signatures([RAZORPAY_WEBHOOK_SECRET])), callbacks=Signatures([RAZORPAY_KEY[1]]),
        )  # fmt: skip
        self.providers = Providers(self.provider, self.razorpay, default="stripe")
        self.relay = Relay(db)
        self.dispatcher = ChargeDispatcher(db, self.providers, self.relay.nudge)
        self.reconciler = Reconciler(db, self.dispatcher, self.relay)
        self.charges: Any = None
        self.payments: Any = None
        self.books: Any = None
        self.altered = False
        """Whether a test has made rows of money by SQL, so that the journal need not agree with them."""
        self._loops: list[asyncio.Task[None]] = []

    def add(self, server: grpc.aio.Server) -> None:
        charges = Charges(self.db, self.dispatcher, self.relay.nudge, self.providers)
        self.charging = charges
        captures = Captures(self.db, self.dispatcher, self.providers)
        self.saved = SavedMethods(self.db, self.providers)
        refunds, inbox = Refunds(self.db, self.dispatcher), Inbox(self.db, self.reconciler.wake)
        offers = Offers(self.providers, self.saved, return_hosts=["shop.example"])
        charge_grpc.add_ChargeServiceServicer_to_server(ChargeService(charges, refunds, offers), server)
        books_grpc.add_BooksServiceServicer_to_server(BooksService(self.db, Pages("a-page-secret")), server)
        pb_grpc.add_PaymentServiceServicer_to_server(
            PaymentService(charges, captures, refunds, self.saved, inbox, self.providers, Pages("p" * 32)), server
        )

    @property
    def walk(self) -> EventWalk:
        """The walk through the events that the provider lists."""
        return self.walk_of("stripe")

    def walk_of(self, provider: str) -> EventWalk:
        """The walk through what a provider lists."""
        return EventWalk(self.db, self.providers[provider], Inbox(self.db, self.reconciler.wake))

    def start_loops(self) -> None:
        for loop in (self.reconciler.reconcile, self.reconciler.renew_leases, self.reconciler.apply_events):
            self._loops.append(asyncio.create_task(loop()))

    async def stop(self) -> None:
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self.dispatcher.drain(seconds=10)
        await self.providers.aclose()

    async def charge(self, *items: charge_pb.Charge) -> list[charge_pb.PaymentOutcome]:
        return list(
            (await self.charges.BatchCharge(charge_pb.BatchChargeRequest(charges=items), metadata=ORDERS)).outcomes
        )

    async def cancel(self, *items: charge_pb.Charge) -> list[charge_pb.PaymentStatus]:
        answer = await self.charges.BatchCancel(charge_pb.BatchCancelRequest(charges=items), metadata=ORDERS)
        return [outcome.payment for outcome in answer.outcomes]

    async def reverse(self, *items: charge_pb.Charge) -> list[charge_pb.PaymentStatus]:
        answer = await self.charges.BatchReverse(charge_pb.BatchReverseRequest(charges=items), metadata=ORDERS)
        return [outcome.payment for outcome in answer.outcomes]

    async def charged(self, item: charge_pb.Charge) -> charge_pb.PaymentStatus:
        (outcome,) = await self.charge(item)
        return outcome.payment

    async def payment(self, payment_id: uuid.UUID) -> Payment:
        """The row of a payment."""
        async with self.db() as tx:
            return await sql.read_one(tx, payment_id, lock=False)

    async def get(self, payment_id: str) -> pb.Payment:
        return await self.payments.GetPayment(pb.GetPaymentRequest(payment_id=payment_id), metadata=tokens.as_staff())

    async def webhook(self, body: bytes, signature: str) -> None:
        await self.payments.ReceiveStripeWebhook(
            httpbody_pb2.HttpBody(content_type="application/json", data=body),
            metadata=(("stripe-signature", signature),),
        )

    async def razorpay_webhook(self, body: bytes, signature: str, event_id: str) -> None:
        await self.payments.ReceiveRazorpayWebhook(
            httpbody_pb2.HttpBody(content_type="application/json", data=body),
            metadata=(("x-razorpay-signature", signature), ("x-razorpay-event-id", event_id)),
        )

    async def send_event(self, event: dict[str, Any]) -> None:
        """Send a signed event as Stripe does."""
        body = json.dumps(event)
        await self.webhook(body.encode(), stripe.WebhookSignature.generate_signature_header(body, WEBHOOK_SECRET))

    async def reaches(self, payment_id: str, state: int) -> pb.Payment:
        async def there() -> pb.Payment | None:
            payment = await self.get(payment_id)
            return payment if payment.state == state else None

        found: pb.Payment = await until(there)
        return found

    async def rows(self, sql: str, **parameters: Any) -> list[Any]:
        self.altered |= any(words in sql for words in ("SET state", "SET provider_reference", "DELETE FROM"))
        async with self.db.begin() as tx:
            result = await tx.execute(text(sql), parameters)
            return list(result.all()) if result.returns_rows else []

    async def published(self, order_id: str) -> list[str]:
        """Return the states that were published about an order, in their order."""
        return [subject.rpartition(".")[2] for subject, _ in await self._events(order_id)]

    async def published_refunds(self, order_id: str) -> list[int]:
        """Return the sums that were published as refunded, in their order."""
        events = await self._events(order_id)
        return [event.refunded_minor_units for subject, event in events if subject.endswith(".refunded")]

    async def _events(self, order_id: str) -> list[tuple[str, events_pb2.PaymentChanged]]:
        found = await self.rows("SELECT subject, payload FROM outbox ORDER BY id")
        events = [(subject, events_pb2.PaymentChanged.FromString(payload)) for subject, payload in found]
        return [(subject, event) for subject, event in events if event.order_id == order_id]


@pytest.fixture(scope="session")
async def one_database(infra: Infra, template: Callable[[str], Awaitable[str]]) -> AsyncIterator[Database]:
    """One database for all tests here: to empty it costs a tenth of making one."""
    infra.admin(f"CREATE DATABASE test_all_payments TEMPLATE {await template('payments')}")
    engine, sessions = connect(infra.database_url("test_all_payments"), pool_size=20)
    yield sessions
    await engine.dispose()


@pytest.fixture
async def db(one_database: Database) -> Database:
    async with one_database.begin() as tx:
        await empty(tx)
    return one_database


@pytest.fixture
async def service(db: Database, sandbox: Sandbox) -> AsyncIterator[Payments]:
    """Payments behind a real channel, without background loops."""
    made = Payments(db, sandbox)
    async with serving("payments", made.add) as channel:
        made.charges = charge_grpc.ChargeServiceStub(channel)
        made.payments = pb_grpc.PaymentServiceStub(channel)
        made.books = books_grpc.BooksServiceStub(channel)
        yield made
        sandbox.receiver.forward = sandbox.receiver.forward_razorpay = None
        await made.stop()
    if not made.altered:
        async with db.begin() as tx:
            assert await journal.complete(tx) == [], "the journal has every movement of money"


@pytest.fixture
async def running(service: Payments, sandbox: Sandbox) -> Payments:
    """Payments with its background loops; it receives the provider's webhooks."""
    sandbox.receiver.forward, sandbox.receiver.forward_razorpay = service.webhook, service.razorpay_webhook
    service.start_loops()
    return service


def another_attempt(item: charge_pb.Charge, number: int, method: str = "", **terms: Any) -> charge_pb.Charge:
    """The same order, whose customer asks for another attempt."""
    again = charge_pb.Charge(attempt=number, payment_method=method, terms=charge_pb.AttemptTerms(**terms))
    again.order_id, again.customer_id = item.order_id, item.customer_id
    again.amount.CopyFrom(item.amount)
    return again


def an_order(
    method: str = "pm_card_visa",
    *,
    minor: int = 1999,
    currency: str = "USD",
    order_id: str = "",
    customer_id: str = "018f0000-0000-7000-8000-000000000001",
) -> charge_pb.Charge:
    return charge_pb.Charge(
        order_id=order_id or str(uuid.uuid4()),
        customer_id=customer_id,
        amount=money_pb2.Money(currency_code=currency, minor_units=minor),
        payment_method=method,
    )
