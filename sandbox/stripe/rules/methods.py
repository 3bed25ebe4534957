"""The rules of saved payment methods."""

from __future__ import annotations

from sandbox.rows import Work
from sandbox.stripe.book import StripeBook
from sandbox.stripe.errors import invalid, no_such
from sandbox.stripe.rows import Customer, Intent, Method
from sandbox.stripe.rules.cards import CARDS


def resolve(work: Work, book: StripeBook, name: str, customer: str | None) -> tuple[str, str]:
    """The id and the card of a payment method that an intent of `customer` names.

    A public test name stands for a new method, a `pm_…` for a saved one.
    """
    if name in CARDS:
        return work.new_id("pm"), name
    method = find(book, name, param="payment_method", status=400)
    if method.customer is None:
        raise invalid(
            "The provided PaymentMethod was previously used with a PaymentIntent without Customer attachment, shared "
            "with a connected account without Customer attachment, or was detached from a Customer. It may not be "
            "used again. To use a PaymentMethod multiple times, you must attach it to a Customer first.",
            param="payment_method",
        )
    if customer is None:
        raise invalid(
            f"The provided PaymentMethod cannot be used without its Customer. Please include the Customer "
            f"{method.customer} in the `customer` parameter of the PaymentIntent.",
            param="payment_method",
        )
    if customer != method.customer:
        raise invalid(
            f"The customer does not have a payment method with the ID {name[:100]}. The payment method must be "
            "attached to the customer.",
            param="payment_method",
            code="resource_missing",
        )
    return method.id, method.card


def find(book: StripeBook, identifier: str, *, param: str = "id", status: int = 404) -> Method:
    method = book.methods.rows.get(identifier)
    if method is None:
        raise no_such("PaymentMethod", identifier[:100], param=param, status=status)
    return method


def attach(work: Work, book: StripeBook, name: str, customer: Customer) -> Method:
    """Saves a method for a customer. A public test name makes a new method each time, as at Stripe."""
    if name in CARDS:
        fresh = Method(id=work.new_id("pm"), created=work.now, card=name, metadata={}, customer=customer.id)
        work.put(fresh, "payment_method.attached")
        return fresh
    method = find(book, name)
    if method.customer == customer.id:
        return method
    if method.customer is not None:
        raise invalid(
            "The payment method you provided has already been attached to a customer.",
            param="payment_method",
        )
    raise invalid(
        "This PaymentMethod was previously used without being attached to a Customer or was detached from a "
        "Customer, and may not be used again.",
        param="payment_method",
    )


def detach(work: Work, method: Method) -> Method:
    if method.customer is None:
        raise invalid(
            "The payment method you provided is not attached to a customer so detachment is impossible.",
            param="payment_method",
        )
    alone = method._replace(customer=None)
    work.put(alone, "payment_method.detached")
    return alone


def save_used(work: Work, book: StripeBook, intent: Intent) -> None:
    """Saves the method of a successful intent with `setup_future_usage`, and remembers that the buyer agreed to it."""
    usage = intent.options.get("setup_future_usage")
    if usage is None or intent.customer is None or intent.card is None:
        return
    assert intent.payment_method is not None
    set_up = usage == "off_session"
    known = book.methods.rows.get(intent.payment_method)
    if known is None:
        saved = Method(
            id=intent.payment_method,
            created=work.now,
            card=intent.card,
            metadata={},
            customer=intent.customer,
            set_up=set_up,
        )
        work.put(saved, "payment_method.attached")
    elif set_up and not known.set_up:
        work.put(known._replace(set_up=True))
