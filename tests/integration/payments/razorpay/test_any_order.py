"""Whatever happens at a provider, and in whatever order its events come: the payment ends as the provider has it."""

import contextlib
import json
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from services.payments.domain import Capture, Payment, State
from stampede.payments.v1 import payment_service_pb2 as pb
from tests.integration.payments.conftest import KEY, Payments, Sandbox, an_order
from tests.integration.payments.razorpay.conftest import Razorpay
from tests.support import budget, tokens
from tests.support.waiting import until

pytestmark = pytest.mark.proof

_EXAMPLES = budget(20, 200)
_MINOR = 1999
_CARDS = ("pm_card_visa", "pm_card_chargeDeclined", "pm_card_authenticationRequired", "pm_usBankAccount_processing")
Step = tuple[Any, ...]

# Our own part in any story: a cancellation, a reversal, an event that arrives (again), a call of the reconciler.
_OURS = st.sampled_from([("cancel",), ("reverse",), ("reconcile",), ("deliver", 0), ("deliver", 1), ("deliver", 2)])
_STRIPE = st.lists(
    st.one_of(
        st.tuples(st.just("confirm"), st.sampled_from(_CARDS)),
        st.tuples(st.sampled_from(["authenticate", "settle"]), st.sampled_from(["succeed", "fail"])),
        st.tuples(st.just("refund"), st.integers(1, 800)),
        # With manual capture: people at Stripe, or staff here, capture or void; or the authorisation lapses.
        st.sampled_from([("fail_refund",), ("void",), ("capture",), ("expire",), ("staff", "capture")]),
        st.just(("staff", "void")),
        _OURS,
    ),
    max_size=12,
)
_RAZORPAY = st.lists(
    st.one_of(
        st.tuples(st.just("pay"), st.sampled_from(["begin", "authorize", "capture", "fail"])),
        st.tuples(st.sampled_from(["authorize", "fail", "expire", "capture", "force"]), st.integers(0, 2)),
        st.tuples(st.just("refund"), st.integers(1, 800)),
        st.just(("fail_refund",)),
        _OURS,
    ),
    max_size=12,
)
_SETTINGS = settings(
    max_examples=_EXAMPLES, deadline=None, phases=(Phase.explicit, Phase.generate, Phase.shrink), derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


class Story:
    """One payment, what happens to it at its provider, and the events about it, which a test delivers."""

    def __init__(self, service: Payments, sandbox: Sandbox) -> None:
        self.service, self.sandbox = service, sandbox
        self.events: list[Callable[[], Awaitable[None]]] = []
        receiver = sandbox.receiver

        async def keep(body: bytes, signature: str) -> None:
            self.events.append(lambda: service.webhook(body, signature))

        async def keep_razorpay(body: bytes, signature: str, event_id: str) -> None:
            self.events.append(lambda: service.razorpay_webhook(body, signature, event_id))

        receiver.forward, receiver.forward_razorpay = keep, keep_razorpay
        self.tools = Razorpay(service, sandbox)

    async def begin(self, provider: str, capture: Capture = Capture.AUTOMATIC) -> None:
        self.service.charging.capture_of_new = capture
        self.service.providers.default = self.service.providers[provider]
        self.currency = "USD" if provider == "stripe" else "INR"
        self.item = an_order("", currency=self.currency)
        status = await self.service.charged(self.item)
        self.id = uuid.UUID(status.payment_id)

    async def row(self) -> Payment:
        return await self.service.payment(self.id)

    async def arrived(self) -> None:
        """Wait until the provider has sent all its events."""

        async def sent() -> bool:
            async with self.sandbox.http.get(f"{self.sandbox.url}/healthz") as answer:
                return bool((await answer.json())["webhooks"]["waiting"] == 0)

        await until(sent)

    async def post(self, path: str, body: Any = None, *, form: Any = None, auth: str | None = None) -> Any:
        """Post to the provider; None if it refuses."""
        headers = {"Authorization": auth} if auth else {}
        async with self.sandbox.http.post(f"{self.sandbox.url}{path}", json=body, data=form, headers=headers) as answer:
            return json.loads(await answer.text()) if answer.status == 200 else None

    async def ours(self, step: Step) -> None:
        match step:
            case ("cancel",):
                await self.service.cancel(self.item)
            case ("reverse",):
                await self.service.reverse(self.item)
            case ("staff", verb):
                call = self.service.payments.CapturePayment if verb == "capture" else self.service.payments.VoidPayment
                request = pb.CapturePaymentRequest if verb == "capture" else pb.VoidPaymentRequest
                with contextlib.suppress(grpc.aio.AioRpcError):  # the state does not allow it
                    await call(request(payment_id=str(self.id)), metadata=tokens.as_staff())
            case ("reconcile",):
                await self.tools.reconcile()
            case ("deliver", number):
                await self.arrived()
                if self.events:
                    await self.events[number % len(self.events)]()
                    await self.tools.apply_due()

    async def end(self, order: list[int]) -> Payment:
        """Deliver all events in any order, some of them twice; return the payment once nothing is left to do."""
        await self.arrived()
        for number in order:
            if self.events:
                await self.events[number % len(self.events)]()
        for event in self.events:
            await event()
        for _ in range(6):
            await self.tools.apply_due()
            await self.tools.reconcile()
            await self.arrived()
        await self.tools.apply_events()
        await self.tools.reconcile()
        return await self.row()


async def _stripe_step(story: Story, step: Step) -> None:
    reference = (await story.row()).provider_reference
    key = f"Bearer {KEY}"
    match step:
        case ("confirm", card):
            await story.post(f"/v1/payment_intents/{reference}/confirm", form={"payment_method": card}, auth=key)
        case ("authenticate" | "settle" as question, outcome):
            await story.post(f"/_sandbox/payment_intents/{reference}/{question}", {"outcome": outcome})
        case ("refund", minor):
            form = {"payment_intent": reference, "amount": str(minor)}
            await story.post("/v1/refunds", form=form, auth=key)
        case ("fail_refund",):
            for refund in (await story.sandbox.refunds(reference or ""))[:1]:
                await story.post(f"/_sandbox/refunds/{refund['id']}/fail")
        case ("void",):
            await story.post(f"/v1/payment_intents/{reference}/cancel", form={}, auth=key)
        case ("capture",):
            await story.post(f"/v1/payment_intents/{reference}/capture", form={}, auth=key)
        case ("expire",):
            await story.post(f"/_sandbox/payment_intents/{reference}/expire", {})
        case _:
            await story.ours(step)


@given(st.lists(st.integers(0, 40), max_size=12), _STRIPE, st.sampled_from([Capture.AUTOMATIC, Capture.MANUAL]))
@_SETTINGS
async def test_a_payment_ends_as_stripe_has_it(
    service: Payments, sandbox: Sandbox, order: list[int], steps: list[Step], capture: Capture
) -> None:
    story = Story(service, sandbox)
    await story.begin("stripe", capture)
    for step in steps:
        await _stripe_step(story, step)
    payment = await story.end(order)
    (intent,) = await sandbox.intents(story.item.order_id)
    refunded = sum(one["amount"] for one in await sandbox.refunds(intent["id"]) if one["status"] == "succeeded")
    expected = {
        "succeeded": State.REFUNDED if refunded == _MINOR else State.SUCCEEDED, "canceled": State.CANCELLED,
        "processing": State.PROCESSING, "requires_capture": State.AUTHORIZED,
    }.get(intent["status"], State.AWAITING_CUSTOMER)  # fmt: skip
    assert (payment.state, payment.refunded_minor, payment.refunding_minor) == (expected, refunded, 0)


async def _razorpay_step(story: Story, step: Step) -> None:
    reference = (await story.row()).provider_reference
    tries = await story.tools.payments(await story.row())
    base = "/_sandbox/razorpay"
    match step:
        case ("pay", outcome):
            await story.post(f"{base}/orders/{reference}/pay", {"outcome": outcome})
        case ("force", number) if tries:
            await story.post(f"{base}/payments/{tries[number % len(tries)]['id']}/authorize", {"capture": True})
        case ("authorize" | "fail" | "expire" | "capture" as action, number) if tries:
            await story.post(f"{base}/payments/{tries[number % len(tries)]['id']}/{action}", {})
        case ("refund", minor):
            for paid in [one for one in tries if one["status"] == "captured"][:1]:
                await story.post(f"{base}/payments/{paid['id']}/refund", {"amount": minor})
        case ("fail_refund",):
            own = (await story.row()).capture_reference
            listed = (await story.tools.get(f"payments/{own}/refunds"))["items"] if own else []
            for refund in listed[:1]:
                await story.post(f"{base}/refunds/{refund['id']}/fail", {})
        case _:
            await story.ours(step)


@given(st.lists(st.integers(0, 40), max_size=12), _RAZORPAY)
@example([], [("pay", "authorize"), ("pay", "authorize")])
@example([], [("cancel",), ("pay", "capture"), ("refund", 1)])
@_SETTINGS
async def test_a_payment_ends_as_razorpay_has_it(
    service: Payments, sandbox: Sandbox, order: list[int], steps: list[Step]
) -> None:
    """The money of one Razorpay payment counts; that of any other goes back."""
    story = Story(service, sandbox)
    await story.begin("razorpay")
    for step in steps:
        await _razorpay_step(story, step)
    payment = await story.end(order)
    tries = {one["id"]: one for one in await story.tools.payments(payment)}
    own = tries.get(payment.capture_reference or "")
    if payment.state in (State.SUCCEEDED, State.REFUNDED):
        assert own
        assert own["captured"]
        assert payment.refunded_minor == own["amount_refunded"]
        assert (payment.state is State.REFUNDED) == (own["amount_refunded"] == _MINOR)
    else:
        assert payment.state in (State.AWAITING_CUSTOMER, State.CANCELLED)
        assert payment.refunded_minor == 0
    kept = {id_ for id_, one in tries.items() if one["captured"] and one["amount_refunded"] < one["amount"]}
    # People have refunded a part of it at Razorpay, which then refuses the whole.
    for_staff = {row[0] for row in await service.rows("SELECT charge_reference FROM refunds WHERE problem <> ''")}
    assert kept <= {payment.capture_reference} | for_staff, "the shop keeps no money that nobody knows of"
    # Razorpay captures one payment of an order. Another that was authorised it gives back by itself, some days later.
    is_paid = any(one["captured"] for one in tries.values())
    assert is_paid or not [one for one in tries.values() if one["status"] == "authorized"], "it is captured"
    assert payment.refunding_minor == 0
