"""Attempts that a customer asks for, after a decline or in another way. Pure.

A customer never has two charges that can take money: the charge of an earlier attempt is used again, or it is voided
before the next attempt begins.
"""

import dataclasses

from services.payments.domain import Payment, State, Terms

_MAY_BEGIN = (State.AWAITING_CUSTOMER, State.PROCESSING, State.FAILED)


def ask(payment: Payment, terms: Terms) -> Payment:
    """Return the payment after its customer asked for another attempt. Its number is used up in each case."""
    asked = dataclasses.replace(payment, latest_order_attempt=terms.number)
    terms = dataclasses.replace(terms, provider=terms.provider or payment.provider)
    if payment.cancel_requested or payment.next_terms or payment.state not in _MAY_BEGIN:
        return asked
    if payment.state is State.PROCESSING:
        # A charge that only its customer can pay is being made: it is voided once it is known.
        is_harmless = payment.customer_pays and not payment.payment_method and not payment.is_begun
        return dataclasses.replace(asked, next_terms=terms) if is_harmless else asked
    if not payment.is_begun:
        return begin(asked, terms)
    if _is_same(payment, terms):
        return dataclasses.replace(asked, order_attempt=terms.number, terms=terms, failure_reason=terms.refusal)
    if _can_use_charge(payment, terms):
        return dataclasses.replace(
            asked,
            state=State.PROCESSING,
            customer_pays=True,
            payment_method=terms.payment_method,
            attempt=payment.attempt + 1,
            order_attempt=terms.number,
            terms=_without_token(terms),
            failure_reason="",
            authenticating=False,
            checks=0,
        )
    return dataclasses.replace(
        asked, state=State.PROCESSING, next_terms=terms, client_secret=None, checkout_url=None, authenticating=False,
        checks=0,
    )  # fmt: skip


def calls_now(before: Payment, asked: Payment) -> bool:
    """Whether the provider is to be called now for what a customer asked for: no call in progress goes on with it."""
    return asked.attempt != before.attempt or (asked.next_terms != before.next_terms and before.is_begun)


def begin(payment: Payment, terms: Terms, *, failure_reason: str = "") -> Payment:
    """Return the payment as its next attempt begins, with a charge of its own. The earlier charge takes no money."""
    return dataclasses.replace(
        payment,
        state=State.PROCESSING,
        provider=terms.provider,
        customer_pays=True,
        payment_method=terms.payment_method or None,
        provider_reference=None,
        capture_reference=None,
        checkout_reference=None,
        checkout_url=None,
        client_secret=None,
        attempt=payment.attempt + 1,
        order_attempt=terms.number,
        latest_order_attempt=max(payment.latest_order_attempt, terms.number),
        terms=_without_token(terms),
        next_terms=None,
        former_references=(*payment.former_references, *payment.references),
        failure_reason=failure_reason or terms.refusal,
        authenticating=False,
        problem="",
        checks=0,
    )


def go_on(before: Payment, after: Payment) -> Payment:
    """Return a payment with a waiting attempt after a result, which made `after` of it: the attempt begins, or waits.

    A charge that was voided, or that the provider never made, gives way. One that has taken money, or may be taking it,
    stays, and the waiting attempt is not made.
    """
    assert before.next_terms
    if after.state is State.CANCELLED or (after.state is State.FAILED and not after.is_begun):
        return begin(after, before.next_terms, failure_reason=after.failure_reason)
    if after.state in (State.AWAITING_CUSTOMER, State.FAILED):
        return dataclasses.replace(
            after, state=State.PROCESSING, client_secret=None, checkout_url=None, authenticating=False,
            checks=before.checks,
        )  # fmt: skip
    return dataclasses.replace(after, next_terms=None)


def _is_same(payment: Payment, terms: Terms) -> bool:
    """Whether the customer can go on with the charge that waits for them, in the way that they ask for."""
    current = payment.terms or Terms(number=0, provider=payment.provider)
    return (
        payment.is_payable and dataclasses.replace(terms, number=current.number, page_end=current.page_end) == current
    )


def _can_use_charge(payment: Payment, terms: Terms) -> bool:
    """Whether the charge that waits for its customer can take the money of another attempt's card."""
    waits = payment.state is State.AWAITING_CUSTOMER and payment.checkout_reference is None
    # A charge that saves its card must not be paid by a customer who has not agreed to that, nor the other way round.
    saves = terms.names_customer or (payment.terms is not None and payment.terms.names_customer)
    return (
        waits and not saves and not terms.checkout and terms.provider == payment.provider and bool(terms.payment_method)
    )


def _without_token(terms: Terms) -> Terms:
    return dataclasses.replace(terms, payment_method="")
