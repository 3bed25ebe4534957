"""Excuses for what is in progress, each for a limited time. Pure."""

from deploy.audit.reading.rows import Case, Refund
from services.orders.sql.sagas import MOVING_DAYS

SAGA_SECONDS = 120
"""A saga may stand still for this long, unless it waits for its customer."""
OVER_SECONDS = 90
"""A hold may be over for this long: its grace of 30 seconds, until it expires and its saga has noticed."""
REFUND_SECONDS = 3600
"""A refund may be pending for this long, if the provider does not have it as pending."""
MOVING_SECONDS = MOVING_DAYS * 86_400
"""A refund may be pending for this long at the provider."""


def in_flight(case: Case) -> bool:
    """Whether a saga or a hold is still in progress, so that the parts need not agree yet."""
    order = case.order
    if order is None:
        held = case.reservation is not None and case.reservation.state == "HELD"
        is_young = held and case.reservation is not None and case.reservation.over_seconds < OVER_SECONDS
        return is_young and not case.payments and not case.captures
    if order.saga is None:
        return False
    if order.saga.waits_for_customer:
        return order.hold_over_seconds < OVER_SECONDS
    return order.saga.still_seconds < SAGA_SECONDS


def refund_in_flight(case: Case) -> bool:
    """Whether a refund is pending that may still end by itself."""
    refunds = [refund for payment in case.payments for refund in payment.refunds]
    return any(refund.state == "PENDING" and refund.age_seconds < pending_most(case, refund) for refund in refunds)


def pending_most(case: Case, refund: Refund) -> int:
    """For how many seconds a refund may be pending."""
    theirs = {made.id for intent in case.intents for made in intent.refunds if made.state == "pending"}
    return MOVING_SECONDS if refund.reference in theirs else REFUND_SECONDS


def waits_for_staff(case: Case) -> bool:
    """Whether it is paid with money that is set aside, and not shipped before staff have captured it."""
    order, payment = case.order, case.payment
    return order is not None and payment is not None and (order.state, payment.state) == ("PAID", "AUTHORIZED")
