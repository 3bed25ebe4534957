"""The endpoints of customers, their saved payment methods, and Checkout Sessions."""

from __future__ import annotations

from sandbox.rows import Json
from sandbox.stripe.book import StripeBook
from sandbox.stripe.routes.call import Call, find, page
from sandbox.stripe.rows import Customer, Method, Session
from sandbox.stripe.rules import checkout, customers, methods
from sandbox.stripe.rules.cards import CARDS


def create_customer(_book: StripeBook, call: Call) -> Customer:
    return customers.create(call.work, call.params)


def retrieve_customer(book: StripeBook, call: Call) -> Customer:
    call.params.only(("expand",))
    return customers.find(book, call.id, deleted=True)


def update_customer(book: StripeBook, call: Call) -> Customer:
    return customers.update(call.work, customers.find(book, call.id), call.params)


def delete_customer(book: StripeBook, call: Call) -> Customer:
    call.params.only(())
    return customers.delete(call.work, book, customers.find(book, call.id))


def list_customers(book: StripeBook, call: Call) -> Json:
    email = call.params.text("email", longest=512)
    return page(
        call, book.customers, "/v1/customers", "customer", extra=("email",),
        matches=lambda customer: not customer.deleted and (email is None or customer.email == email),
    )  # fmt: skip


def retrieve_method(book: StripeBook, call: Call) -> Method:
    call.params.only(("expand",))
    if call.id in CARDS:
        # As at Stripe, a public test name is a new method each time.
        work = call.work
        return Method(id=work.new_id("pm"), created=work.now, card=call.id, metadata={})
    return methods.find(book, call.id)


def attach_method(book: StripeBook, call: Call) -> Method:
    call.params.only(("customer", "expand"))
    customer = customers.find(book, call.params.required("customer"), param="customer")
    return methods.attach(call.work, book, call.id, customer)


def detach_method(book: StripeBook, call: Call) -> Method:
    call.params.only(("expand",))
    return methods.detach(call.work, methods.find(book, call.id))


def list_methods(book: StripeBook, call: Call) -> Json:
    customer = call.params.text("customer")
    if customer is None:
        return _methods(book, call, None, "/v1/payment_methods")
    return _methods(book, call, customer, "/v1/payment_methods")


def list_methods_of_customer(book: StripeBook, call: Call) -> Json:
    return _methods(book, call, call.id, f"/v1/customers/{call.id}/payment_methods")


def create_session(book: StripeBook, call: Call) -> Session:
    return checkout.create(call.work, book, call.params)


def retrieve_session(book: StripeBook, call: Call) -> Session:
    call.params.only(("expand",))
    return find_session(book, call.id)


def expire_session(book: StripeBook, call: Call) -> Session:
    call.params.only(checkout.EXPIRE)
    return checkout.expire(call.work, book, find_session(book, call.id))


def list_sessions(book: StripeBook, call: Call) -> Json:
    wanted = {name: call.params.text(name) for name in ("payment_intent", "customer", "status")}

    def matches(session: Session) -> bool:
        found = {"payment_intent": session.intent, "customer": session.customer, "status": session.status}
        return all(value is None or found[name] == value for name, value in wanted.items())

    return page(call, book.sessions, "/v1/checkout/sessions", "checkout.session", extra=tuple(wanted), matches=matches)


def find_session(book: StripeBook, identifier: str) -> Session:
    return find(book.sessions, "checkout.session", identifier, param="session")


def _methods(book: StripeBook, call: Call, customer: str | None, url: str) -> Json:
    kind = call.params.text("type")
    keys: tuple[str, ...] = ()
    if customer is not None:
        keys = book.methods_of.get(customers.find(book, customer, param="customer").id, ())
    return page(
        call, book.methods, url, "payment_method", extra=("customer", "type", "allow_redisplay"),
        rows=(book.methods.rows[key] for key in reversed(keys)),
        matches=lambda method: kind is None or CARDS[method.card].kind == kind,
    )  # fmt: skip
