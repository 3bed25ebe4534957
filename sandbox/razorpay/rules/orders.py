"""The rules of orders, and of the payments that customers make at them."""

from __future__ import annotations

import re

from sandbox.razorpay.errors import ApiError, invalid
from sandbox.razorpay.parameters import AMOUNT_MAX, RECEIPT_LENGTH_MAX, Params
from sandbox.razorpay.rows import Order, Payment, Refund
from sandbox.rows import Json, Work

METHODS = ("card", "upi", "netbanking", "wallet")
FAILURES = {
    "payment_failed": "Your payment could not be completed due to a temporary technical issue.",
    "insufficient_funds": "Payment failed because your account has too little money.",
    "card_expired": "Payment failed because the card has expired.",
    "incorrect_cvv": "Payment failed because of a wrong CVV.",
    "payment_cancelled": "The customer cancelled the payment.",
    "payment_timed_out": "The payment was not completed in time.",
    "authentication_failed": "The bank did not authenticate the customer.",
    "payment_risk_check_failed": "Payment was blocked because of a risk check.",
}
CURRENCY = re.compile(r"[A-Z]{3}")
# Of a payment that is authorised and not captured, by its order; Razorpay's own bounds.
EXPIRY_MINUTES = (12, 7200)


def create(work: Work, params: Params) -> Order:
    """Creates an order. The receipt need not be unique: Razorpay makes another order for the same one."""
    currency = params.text("currency", most=3) or ""
    if not CURRENCY.fullmatch(currency):
        raise invalid("The currency is not supported.", "currency")
    amount = params.integer("amount", least=1, most=AMOUNT_MAX)
    receipt = params.text("receipt", most=RECEIPT_LENGTH_MAX)
    notes = params.notes()
    payment = params.part("payment")
    captures = payment.text("capture", default="automatic")
    if captures not in ("automatic", "manual"):
        raise invalid("The selected payment.capture is invalid.", "payment.capture")
    options = payment.part("capture_options")
    least, most = EXPIRY_MINUTES
    options.integer("automatic_expiry_period", least=least, most=most, default=least)
    options.integer("manual_expiry_period", least=least, most=most, default=most)
    if options.text("refund_speed", default="normal") not in ("normal", "optimum"):
        raise invalid("The selected payment.capture_options.refund_speed is invalid.", "refund_speed")
    for part in (options, payment, params):
        part.end()
    order = Order(work.new_id("order"), amount, currency, work.now, "created", receipt, notes, captures)
    work.put(order)
    work.effects.add("order")
    return order


def begin(work: Work, order: Order, *, method: str) -> Payment:
    """Has a customer begin a payment: the bank has not decided yet."""
    if method not in METHODS:
        raise invalid(f"The method must be one of {', '.join(METHODS)}.", "method")
    if order.status == "paid":
        raise ApiError(400, "Payment already done for this order.")
    payment = Payment(work.new_id("pay"), order.id, order.amount, order.currency, work.now, "created", method, {})
    work.put(payment)
    work.put(order._replace(status="attempted", attempts=order.attempts + 1))
    return payment


def authorise(work: Work, order: Order, payment: Payment, *, captures: bool) -> Payment:
    """Has the bank agree, at once or late. `captures`: Razorpay captures it, whatever the order says."""
    if payment.status != "created":
        raise ApiError(400, f"The payment is {payment.status}.")
    authorised = payment._replace(status="authorized")
    work.put(authorised, "payment.authorized")
    if captures or (order.captures == "automatic" and order.status != "paid"):
        return _captured(work, order, authorised)
    return authorised


def fail(work: Work, payment: Payment, *, reason: str) -> Payment:
    """Has the bank refuse, or the customer give up."""
    if payment.status != "created":
        raise ApiError(400, f"The payment is {payment.status}.")
    if reason not in FAILURES:
        raise invalid(f"The reason must be one of {', '.join(FAILURES)}.", "reason")
    error: Json = {
        "code": "BAD_REQUEST_ERROR", "description": FAILURES[reason], "source": "customer",
        "step": "payment_authorization", "reason": reason,
    }  # fmt: skip
    failed = payment._replace(status="failed", error=error)
    work.put(failed, "payment.failed")
    return failed


def capture(work: Work, order: Order, payment: Payment, params: Params) -> Payment:
    """Takes the money of an authorised payment: all of it, and only once."""
    amount, currency = params.integer("amount", least=1), params.text("currency", most=3, default="INR")
    params.end()
    if payment.captured:
        raise ApiError(400, "This payment has already been captured")
    if payment.status != "authorized":
        raise ApiError(400, "Only payments which have been authorized and not yet captured can be captured")
    if amount != payment.amount:
        raise ApiError(400, "Capture amount must be equal to the amount authorized", field="amount")
    if currency != payment.currency:
        raise ApiError(400, "Capture currency must be equal to the currency authorized", field="currency")
    if order.status == "paid":
        raise ApiError(400, "Payment already done for this order.")
    work.effects.add("charge")
    return _captured(work, order, payment)


def _captured(work: Work, order: Order, payment: Payment) -> Payment:
    captured = payment._replace(status="captured", captured=True)
    work.put(captured, "payment.captured")
    paid = order._replace(
        status="paid", attempts=max(order.attempts, 1), paid_by=order.paid_by or payment.id,
    )  # fmt: skip
    work.put(paid, *(() if order.status == "paid" else ("order.paid",)))
    return captured


def expire(work: Work, payment: Payment) -> Payment:
    """Gives an authorised payment back that nobody has captured in time."""
    if payment.status != "authorized":
        raise ApiError(400, f"The payment is {payment.status}.")
    refunded = payment._replace(status="refunded", amount_refunded=payment.amount)
    work.put(refunded)
    refund = Refund(
        work.new_id("rfnd"), payment.id, payment.amount, payment.currency, work.now, "processed", {}, None,
        payment.order, payment.amount, payment.amount, False,
    )  # fmt: skip
    work.put(refund, "refund.created", "refund.processed")
    return refunded
