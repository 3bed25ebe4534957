"""The gRPC handlers of payments: each reads a request, calls one function, and writes the response."""

import time
import uuid
from collections.abc import Container, Sequence
from typing import Any

import grpc
from google.api import httpbody_pb2
from google.protobuf import empty_pb2

from services.chassis import request_context
from services.chassis.data import db
from services.chassis.errors import AppError, InvalidFields
from services.chassis.money import Money
from services.chassis.server import paging, statuses, wire
from services.chassis.server.paging import Pages
from services.payments.charges import Charges
from services.payments.dispatch.captures import Captures
from services.payments.dispatch.offers import Offers
from services.payments.dispatch.saved_methods import SavedMethods
from services.payments.domain import Charge, Payment, State, Terms
from services.payments.providers import Providers
from services.payments.refunds.create import RefundLine, Refunds
from services.payments.sql.refunds import RefundOfPayment
from services.payments.sql.saved_methods import SavedMethod
from services.payments.webhooks.inbox import Inbox
from stampede.payments.v1 import charge_service_pb2 as charge_pb
from stampede.payments.v1 import charge_service_pb2_grpc as charge_grpc
from stampede.payments.v1 import payment_service_pb2 as pb
from stampede.payments.v1 import payment_service_pb2_grpc as pb_grpc

DOMAIN = "payments.stampede"
Context = grpc.aio.ServicerContext[Any, Any]


class ChargeService(charge_grpc.ChargeServiceServicer):
    """The methods for orders."""

    def __init__(self, charges: Charges, refunds: Refunds, offers: Offers) -> None:
        self._charges, self._refunds, self._offers = charges, refunds, offers

    async def BatchCharge(
        self, request: charge_pb.BatchChargeRequest, _context: Context
    ) -> charge_pb.BatchChargeResponse:
        outcomes = await self._charges.charge(_charges(request.charges))
        return charge_pb.BatchChargeResponse(outcomes=_outcomes(outcomes))

    async def CheckTerms(self, request: charge_pb.CheckTermsRequest, _context: Context) -> charge_pb.CheckTermsResponse:
        customer_id, terms = uuid.UUID(request.customer_id), _terms(request.terms)
        await self._offers.check(customer_id, terms, with_card=request.with_card)
        return charge_pb.CheckTermsResponse()

    async def BatchCancel(
        self, request: charge_pb.BatchCancelRequest, _context: Context
    ) -> charge_pb.BatchCancelResponse:
        outcomes = await self._charges.cancel(_charges(request.charges))
        return charge_pb.BatchCancelResponse(outcomes=_outcomes(outcomes))

    async def BatchReverse(
        self, request: charge_pb.BatchReverseRequest, _context: Context
    ) -> charge_pb.BatchReverseResponse:
        outcomes = await self._charges.reverse(_charges(request.charges))
        returning = await self._charges.find_in_process(outcomes, now=time.time())
        return charge_pb.BatchReverseResponse(outcomes=_outcomes(outcomes, returning=returning))

    async def GetPayments(
        self, request: charge_pb.GetPaymentsRequest, _context: Context
    ) -> charge_pb.GetPaymentsResponse:
        outcomes, disputed = await self._charges.get_by_orders(db.parse_uuids(request.order_ids))
        return charge_pb.GetPaymentsResponse(outcomes=_outcomes(outcomes, disputed=disputed))

    async def BatchCreateRefunds(
        self, request: charge_pb.BatchCreateRefundsRequest, _context: Context
    ) -> charge_pb.BatchCreateRefundsResponse:
        outcomes = await self._refunds.create(_refund_lines(request.refunds))
        return charge_pb.BatchCreateRefundsResponse(outcomes=[_refund_outcome(one) for one in outcomes])


class PaymentService(pb_grpc.PaymentServiceServicer):
    """The methods for staff, for customers' saved methods, and for providers."""

    def __init__(
        self,
        charges: Charges,
        captures: Captures,
        refunds: Refunds,
        saved: SavedMethods,
        inbox: Inbox,
        providers: Providers,
        pages: Pages,
    ) -> None:
        self._charges, self._captures, self._refunds, self._saved = charges, captures, refunds, saved
        self._inbox, self._providers, self._pages = inbox, providers, pages

    async def ListPaymentMethods(
        self, request: pb.ListPaymentMethodsRequest, _context: Context
    ) -> pb.ListPaymentMethodsResponse:
        customer_id, size = request_context.user_id(), paging.size(request.page_size)
        query = {"methods of": customer_id}
        position = self._pages.verify(request.page_token, query)
        before = uuid.UUID(position[0]) if position else None
        methods = await self._saved.page(customer_id, before=before, most=size + 1)
        token = self._pages.sign([str(methods[size - 1].id)], query) if len(methods) > size else ""
        return pb.ListPaymentMethodsResponse(
            payment_methods=map(_method_to_proto, methods[:size]), next_page_token=token
        )

    async def DeletePaymentMethod(self, request: pb.DeletePaymentMethodRequest, _context: Context) -> empty_pb2.Empty:
        await self._saved.remove(request_context.user_id(), uuid.UUID(request.method_id))
        return empty_pb2.Empty()

    async def GetPayment(self, request: pb.GetPaymentRequest, _context: Context) -> pb.Payment:
        return _to_proto(await self._charges.get(uuid.UUID(request.payment_id)))

    async def ListPayments(self, request: pb.ListPaymentsRequest, _context: Context) -> pb.ListPaymentsResponse:
        query = {"state": request.state}
        position = self._pages.verify(request.page_token, query)
        rows, end = await self._charges.page(
            State(pb.Payment.State.Name(request.state)) if request.state else None,
            before=uuid.UUID(position[0]) if position else None,
            most=paging.size(request.page_size),
        )
        found = paging.fit(rows, _to_proto)
        if len(found) < len(rows):
            end = rows[len(found) - 1].id
        token = self._pages.sign([str(end)], query) if end else ""
        return pb.ListPaymentsResponse(payments=found, next_page_token=token)

    async def RefundPayment(self, request: pb.RefundPaymentRequest, _context: Context) -> pb.Payment:
        payment = await self._refunds.refund_payment(
            payment_id=uuid.UUID(request.payment_id),
            amount=wire.money_of(request.amount) if request.HasField("amount") else None,
            reason=request.reason,
            request=request_context.request_key(request),
        )
        return _to_proto(payment)

    async def CapturePayment(self, request: pb.CapturePaymentRequest, _context: Context) -> pb.Payment:
        key = request_context.request_key(request)
        return _to_proto(await self._captures.capture(uuid.UUID(request.payment_id), key))

    async def VoidPayment(self, request: pb.VoidPaymentRequest, _context: Context) -> pb.Payment:
        key = request_context.request_key(request)
        return _to_proto(await self._captures.void(uuid.UUID(request.payment_id), key))

    async def ReceiveStripeWebhook(
        self, request: httpbody_pb2.HttpBody, _context: Context
    ) -> pb.ReceiveStripeWebhookResponse:
        await self._inbox.receive(self._providers.get_known("stripe"), request.data, request_context.current().metadata)
        return pb.ReceiveStripeWebhookResponse(received=True)

    async def ReceiveRazorpayWebhook(
        self, request: httpbody_pb2.HttpBody, _context: Context
    ) -> pb.ReceiveRazorpayWebhookResponse:
        await self._inbox.receive(
            self._providers.get_known("razorpay"), request.data, request_context.current().metadata
        )
        return pb.ReceiveRazorpayWebhookResponse(received=True)

    async def VerifyRazorpayPayment(
        self, request: pb.VerifyRazorpayPaymentRequest, _context: Context
    ) -> pb.VerifyRazorpayPaymentResponse:
        fields = {name: getattr(request, name) for name in pb.VerifyRazorpayPaymentRequest.DESCRIPTOR.fields_by_name}
        payment = await self._charges.take_callback("razorpay", fields)
        state = pb.Payment.State.Value(payment.state)
        return pb.VerifyRazorpayPaymentResponse(order_id=str(payment.order_id), state=state)


def _charges(items: Sequence[charge_pb.Charge]) -> list[Charge]:
    charges = [
        Charge(
            order_id=uuid.UUID(item.order_id),
            customer_id=uuid.UUID(item.customer_id),
            amount=wire.money_of(item.amount),
            payment_method=item.payment_method,
            hold_expire_time=wire.datetime_of(item.hold_expire_time) if item.HasField("hold_expire_time") else None,
            terms=_terms(item.terms, number=item.attempt) if item.attempt else None,
        )
        for item in items
    ]
    if len({charge.order_id for charge in charges}) < len(charges):
        raise InvalidFields({"charges": "must not name an order twice"})
    return charges


def _terms(message: charge_pb.AttemptTerms, *, number: int = 0) -> Terms:
    return Terms(
        number=number, provider=message.provider, checkout=message.checkout, return_url=message.return_url,
        page_end=message.hold_expire_time.seconds, saves_method=message.save_method,
        saved_method=str(uuid.UUID(message.saved_method_id)) if message.saved_method_id else "",
    )  # fmt: skip


def _refund_lines(items: Sequence[charge_pb.Refund]) -> list[RefundLine]:
    lines = [
        RefundLine(
            id=uuid.UUID(item.refund_id),
            order_id=uuid.UUID(item.order_id),
            amount=wire.money_of(item.amount) if item.HasField("amount") else None,
            reason=item.reason,
        )
        for item in items
    ]
    if len({line.id for line in lines}) < len(lines):
        raise InvalidFields({"refunds": "must not name a refund twice"})
    return lines


def _outcomes(
    results: Sequence[Payment | AppError],
    *,
    returning: Container[uuid.UUID] = (),
    disputed: Container[uuid.UUID] = (),
) -> list[charge_pb.PaymentOutcome]:
    """The outcomes of a batch; all refunds of the payments `returning` are in process at the provider."""
    now = time.time()
    return [
        charge_pb.PaymentOutcome(refusal=statuses.to_refusal(result, DOMAIN))
        if isinstance(result, AppError)
        else charge_pb.PaymentOutcome(
            payment=_to_status(
                result, in_process=result.is_in_process(now) or result.id in returning, disputed=result.id in disputed
            )
        )
        for result in results
    ]


def _refund_outcome(result: RefundOfPayment | AppError) -> charge_pb.RefundOutcome:
    if isinstance(result, AppError):
        return charge_pb.RefundOutcome(refusal=statuses.to_refusal(result, DOMAIN))
    refund, payment = result
    return charge_pb.RefundOutcome(
        refund=charge_pb.RefundStatus(
            refund_id=str(refund.id),
            state=charge_pb.RefundStatus.State.Value(refund.state),
            amount=wire.money(Money(payment.currency, refund.amount_minor)),
            refunded=wire.money(Money(payment.currency, payment.refunded_minor)),
            failure_reason=refund.failure_reason,
            whole=payment.state is State.REFUNDED,
            in_process=refund.is_in_process(time.time()),
        )
    )


def _to_status(payment: Payment, *, in_process: bool, disputed: bool) -> charge_pb.PaymentStatus:
    return charge_pb.PaymentStatus(
        payment_id=str(payment.id),
        order_id=str(payment.order_id),
        state=charge_pb.PaymentStatus.State.Value(payment.state),
        failure_reason=payment.failure_reason,
        provider=payment.provider,
        client_secret=(payment.client_secret or "") if payment.is_payable else "",
        authenticating=payment.authenticating,
        refunded=wire.money(Money(payment.currency, payment.refunded_minor)) if payment.refunded_minor else None,
        refunding=wire.money(Money(payment.currency, payment.refunding_minor)) if payment.refunding_minor else None,
        in_process=in_process,
        disputed=disputed,
        needs_attention=payment.problem,
        attempt=payment.accepted_attempt,
        latest_attempt=payment.latest_order_attempt,
        checkout_url=(payment.checkout_url or "") if payment.is_payable else "",
        provider_order_id=(payment.payable_reference or "") if payment.is_payable else "",
    )


def _to_proto(payment: Payment) -> pb.Payment:
    return pb.Payment(
        id=str(payment.id),
        order_id=str(payment.order_id),
        customer_id=str(payment.customer_id),
        amount=wire.money(Money(payment.currency, payment.amount_minor)),
        refunded=wire.money(Money(payment.currency, payment.refunded_minor)),
        state=pb.Payment.State.Value(payment.state),
        failure_reason=payment.failure_reason,
        provider=payment.provider,
        provider_reference=payment.provider_reference or "",
        etag=db.etag(payment.version),
        create_time=wire.timestamp(payment.create_time),
        update_time=wire.timestamp(payment.update_time),
    )


def _method_to_proto(method: SavedMethod) -> pb.PaymentMethod:
    return pb.PaymentMethod(
        id=str(method.id),
        provider=method.provider,
        brand=method.card.brand,
        last4=method.card.last4,
        expire_month=method.card.expire_month,
        expire_year=method.card.expire_year,
        create_time=wire.timestamp(method.create_time),
    )
