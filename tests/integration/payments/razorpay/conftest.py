"""New payments begin at Razorpay; customers and banks act through the sandbox's helpers."""

import uuid
from typing import Any

import aiohttp
import pytest

from services.chassis.money import Money
from services.payments.domain import Charge, Payment, State
from services.payments.sql import payments as sql
from services.payments.webhooks import inbox
from stampede.payments.v1 import charge_service_pb2 as charge_pb
from stampede.payments.v1 import payment_service_pb2 as pb
from tests.integration.payments.conftest import RAZORPAY_KEY, Payments, Sandbox, an_order
from tests.support.waiting import until

INR = "INR"


class Razorpay:
    """Payments at Razorpay, their customers, and Razorpay's records."""

    def __init__(self, service: Payments, sandbox: Sandbox) -> None:
        self.service, self.sandbox = service, sandbox
        service.providers.default = service.providers["razorpay"]

    async def begun(self, *, minor: int = 1999, method: str = "", order_id: str = "") -> Payment:
        """Begin the payment of an order; return its row, which waits for the customer."""
        item = an_order(method, minor=minor, currency=INR, order_id=order_id)
        status = await self.service.charged(item)
        assert (status.state, status.provider) == (charge_pb.PaymentStatus.AWAITING_CUSTOMER, "razorpay")
        return await self.row(status.payment_id)

    async def row(self, payment_id: object) -> Payment:
        return await self.service.payment(uuid.UUID(str(payment_id)))

    async def act(self, path: str, **body: Any) -> Any:
        """Act as a customer, a bank, or people at the dashboard."""
        return await self.sandbox.control("POST", f"razorpay/{path}", body)

    async def pay(self, payment: Payment, outcome: str = "authorize", **more: Any) -> Any:
        """Pay as the customer; return what Checkout hands to the page."""
        return await self.act(f"orders/{payment.provider_reference}/pay", outcome=outcome, **more)

    async def verify(self, answer: dict[str, Any], **changes: Any) -> pb.VerifyRazorpayPaymentResponse:
        """Hand over what Checkout has given to the page."""
        names = ("razorpay_order_id", "razorpay_payment_id", "razorpay_signature")
        request = pb.VerifyRazorpayPaymentRequest(**{name: answer[name] for name in names} | changes)
        return await self.service.payments.VerifyRazorpayPayment(request)

    async def get(self, path: str) -> Any:
        """Ask Razorpay's API."""
        headers = {"Authorization": aiohttp.encode_basic_auth(*RAZORPAY_KEY)}
        async with self.sandbox.http.get(f"{self.sandbox.url}/razorpay/v1/{path}", headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def orders(self, payment: Payment) -> list[Any]:
        """Return Razorpay's orders for a payment."""
        return list((await self.get(f"orders?receipt={payment.id}"))["items"])

    async def payments(self, payment: Payment) -> list[Any]:
        """Return what customers have tried for a payment, the newest first."""
        return list((await self.get(f"orders/{payment.provider_reference}/payments"))["items"])

    async def insert(self, item: charge_pb.Charge, *, provider: str = "razorpay") -> None:
        """Commit a payment's row, as a process that is killed before it calls the provider."""
        charge = Charge(
            order_id=uuid.UUID(item.order_id), customer_id=uuid.UUID(item.customer_id),
            amount=Money(item.amount.currency_code, item.amount.minor_units),
        )  # fmt: skip
        await sql.insert_alone(self.service.db, [charge], state=State.PROCESSING, provider=provider)

    async def apply_one(self) -> None:
        """Apply the events that are due now, once."""
        await inbox.apply_events(self.service.db, self.service.dispatcher)

    async def apply_due(self) -> None:
        """Apply the events that wait, once, as if their pauses were over."""
        await self.service.rows("UPDATE provider_events SET next_try_time = now() WHERE processed_time IS NULL")
        await self.apply_one()

    async def apply_events(self) -> None:
        """Apply the events that wait, and find nothing left."""
        while (await inbox.apply_events(self.service.db, self.service.dispatcher)).size:
            await self.service.rows("UPDATE provider_events SET next_try_time = now() WHERE processed_time IS NULL")

    async def reconcile(self) -> None:
        """Make the calls that are due, as the reconciler does, and wait for their results."""
        await self.service.rows("UPDATE payments SET next_check_time = now() WHERE next_check_time IS NOT NULL")
        # By themselves: a call about an ended payment would lock its row, and the comparison would pass over it.
        await self.service.rows("UPDATE payments SET refund_check_time = now() WHERE refund_check_time IS NOT NULL")
        await self.service.rows("UPDATE refunds SET next_check_time = now() WHERE next_check_time IS NOT NULL")
        await self.service.reconciler.reconcile_once()
        dispatcher = self.service.dispatcher

        async def idle() -> bool:
            return not dispatcher.payment_ids and not dispatcher.refund_ids and not dispatcher._others

        await until(idle)

    async def refunds(self, payment: Payment) -> list[Any]:
        """Return the rows of a payment's refunds, oldest first."""
        return await self.service.rows(
            "SELECT state, amount_minor, stray, external, charge_reference FROM refunds WHERE payment_id = :id"
            " ORDER BY id",
            id=payment.id,
        )


@pytest.fixture
def razorpay(service: Payments, sandbox: Sandbox) -> Razorpay:
    """Without background loops and webhooks."""
    return Razorpay(service, sandbox)


@pytest.fixture
def running_razorpay(running: Payments, sandbox: Sandbox) -> Razorpay:
    """With background loops; it receives webhooks."""
    return Razorpay(running, sandbox)
