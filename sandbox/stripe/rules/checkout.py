"""The life of a Checkout Session: a page with a price, on which a buyer pays with any method."""

from __future__ import annotations

from typing import Any

from sandbox.rows import Json, Work, random_hex
from sandbox.stripe.book import StripeBook
from sandbox.stripe.errors import ApiError, invalid, missing_param
from sandbox.stripe.forms import Params
from sandbox.stripe.rows import Customer, Intent, Session
from sandbox.stripe.rules import charging, customers, intents, methods
from sandbox.stripe.rules.currencies import check_amount, check_currency

OPEN_S_LEAST, OPEN_S_MOST = 30 * 60, 24 * 3600
ITEMS_MOST = 100
_CREATE = (
    "mode line_items success_url cancel_url client_reference_id customer customer_email customer_creation expires_at "
    "metadata payment_intent_data payment_method_types locale submit_type ui_mode saved_payment_method_options "
    "billing_address_collection expand"
)
CREATE = frozenset(_CREATE.split())
_PAYMENT_TEXT = (
    "capture_method setup_future_usage metadata description receipt_email statement_descriptor "
    "statement_descriptor_suffix"
)
PAYMENT = frozenset(_PAYMENT_TEXT.split())
EXPIRE = frozenset(("expand",))


def create(work: Work, book: StripeBook, params: Params) -> Session:
    params.only(CREATE)
    if (mode := params.choice("mode", ("payment", "setup", "subscription"))) != "payment":
        if mode is None:
            raise missing_param("mode")
        raise invalid("The sandbox supports mode=payment only.", param="mode")
    params.choice("ui_mode", ("hosted", "hosted_page"))
    amount, currency, items = _items(params)
    customer = params.text("customer")
    if customer is not None:
        customers.find(book, customer, param="customer", status=400)
        for name in ("customer_email", "customer_creation"):
            if name in params:
                raise invalid(f"You may only specify one of these parameters: customer, {name}.", param=name)
    success_url = intents.url_param(params, "success_url")
    if success_url is None:
        raise missing_param("success_url")
    session = Session(
        id=f"cs_test_a1{random_hex(56)}",
        created=work.now,
        amount=amount,
        currency=currency,
        items=items,
        expires_at=_expires_at(work, params),
        metadata=params.metadata(),
        options=_options(params) | {"success_url": success_url, "base": work.base_url},
        payment=_payment(params),
        customer=customer,
        email=params.text("customer_email", longest=512),
    )
    work.put(session)
    return session


def expire(work: Work, book: StripeBook, session: Session) -> Session:
    """Closes the page; a payment that waits there for its buyer is cancelled."""
    if session.status != "open":
        raise ApiError(
            400,
            'Only Checkout Sessions with a status in ["open"] can be expired. This Checkout Session has a status of '
            f"`{session.status}`.",
            saved=True,
        )
    intent = book.intents.rows.get(session.intent or "")
    if intent is not None and intent.status in charging.CONFIRMABLE:
        intents.end(work, intent, "expired")
    expired = session._replace(status="expired")
    work.put(expired, "checkout.session.expired")
    return expired


def pay(work: Work, book: StripeBook, session: Session, method: str, email: str | None) -> Intent:
    """Pays as the page does for its buyer: makes the intent the first time, and confirms it.

    Raises a saved error for a decline; the buyer may try another method then.
    """
    if session.status != "open":
        raise ApiError(400, f"This Checkout Session is {session.status}.")
    if session.expires_at <= work.now:
        raise ApiError(400, "This Checkout Session has expired.")
    session = _with_customer(work, session, email)
    intent = book.intents.rows.get(session.intent or "")
    if intent is None:
        identifier = work.new_id("pi")
        options = {name: value for name, value in session.payment.items() if name not in ("metadata", "description")}
        intent = Intent(
            id=identifier,
            amount=session.amount,
            currency=session.currency,
            created=work.now,
            status="requires_payment_method",
            client_secret=f"{identifier}_secret_{random_hex(24)}",
            metadata=session.payment.get("metadata", {}),
            options={**options, "checkout": session.id, "payment_method_types": session.options["types"]},
            description=session.payment.get("description"),
        )
        work.put(intent, "payment_intent.created")
    elif intent.status not in charging.CONFIRMABLE:
        raise ApiError(400, f"This payment is {intent.status}.")
    if session.customer is not None:
        intent = intent._replace(options={**intent.options, "customer": session.customer})
    session = session._replace(intent=intent.id)
    work.put(session)
    used, card = methods.resolve(work, book, method, session.customer)
    intent = intent._replace(card=card, payment_method=used, next_action=None)
    back = f"{work.base_url}/c/pay/{session.id}"
    return charging.attempt(work, book, intent, charging.Terms(return_url=back))


def _with_customer(work: Work, session: Session, email: str | None) -> Session:
    session = session._replace(email=session.email or email)
    wanted = session.options.get("customer_creation") == "always" or "setup_future_usage" in session.payment
    if session.customer is not None or not wanted:
        return session
    made = Customer(id=work.new_id("cus"), created=work.now, metadata={}, email=session.email)
    work.put(made, "customer.created")
    return session._replace(customer=made.id)


def _items(params: Params) -> tuple[int, str, list[Json]]:
    """The total, its currency and the line items."""
    listed = params.items("line_items", most=ITEMS_MOST)
    if not listed:
        raise missing_param("line_items")
    items: list[Json] = []
    for given in listed:
        given.only(("price_data", "quantity", "price"))
        if (price := given.text("price")) is not None:
            raise ApiError(400, f"No such price: '{price[:100]}'", param="line_items", code="resource_missing")
        data = given.nested("price_data")
        if data is None:
            raise missing_param("line_items[0][price_data]")
        data.only(("currency", "unit_amount", "product_data", "tax_behavior"))
        product = data.nested("product_data")
        if product is None:
            raise missing_param("line_items[0][price_data][product_data]")
        product.only(("name", "description", "images", "metadata", "tax_code"))
        unit = data.integer("unit_amount", least=0, most=10**12)
        if unit is None:
            raise missing_param("line_items[0][price_data][unit_amount]")
        items.append(
            {
                "name": product.required("name"),
                "unit_amount": unit,
                "currency": check_currency(data.required("currency"), "line_items"),
                "quantity": given.integer("quantity", least=1, most=999_999) or 1,
            }
        )
    currency = str(items[0]["currency"])
    if any(item["currency"] != currency for item in items):
        raise invalid("All line items must have the same currency.", param="line_items")
    total = sum(item["unit_amount"] * item["quantity"] for item in items)
    check_amount(total, currency, "line_items")
    return total, currency, items


def _expires_at(work: Work, params: Params) -> int:
    at = params.integer("expires_at", least=0, most=2**40)
    if at is None:
        return work.now + OPEN_S_MOST
    # A second of tolerance, because the caller read its clock before the request travelled.
    if at < work.now + OPEN_S_LEAST - 1:
        message = "The `expires_at` timestamp must be at least 30 minutes from Checkout Session creation."
        raise invalid(message, param="expires_at")
    if at > work.now + OPEN_S_MOST:
        message = "The `expires_at` timestamp must be less than 24 hours from Checkout Session creation."
        raise invalid(message, param="expires_at")
    return at


def _options(params: Params) -> Json:
    options: dict[str, Any] = {"types": params.strings("payment_method_types") or ["card"]}
    for name in ("client_reference_id", "locale", "billing_address_collection"):
        if (value := params.text(name, longest=200)) is not None:
            options[name] = value
    if (cancel_url := intents.url_param(params, "cancel_url")) is not None:
        options["cancel_url"] = cancel_url
    if (creation := params.choice("customer_creation", ("always", "if_required"))) is not None:
        options["customer_creation"] = creation
    if (submit := params.choice("submit_type", ("auto", "book", "donate", "pay"))) is not None:
        options["submit_type"] = submit
    if (saved := params.nested("saved_payment_method_options")) is not None:
        saved.only(("payment_method_save", "payment_method_remove", "allow_redisplay_filters"))
        options["saved"] = {
            "allow_redisplay_filters": saved.strings("allow_redisplay_filters") or None,
            "payment_method_remove": saved.choice("payment_method_remove", ("enabled", "disabled")),
            "payment_method_save": saved.choice("payment_method_save", ("enabled", "disabled")),
        }
    return options


def _payment(params: Params) -> Json:
    """The parameters of the intent, without those at their default."""
    data = params.nested("payment_intent_data")
    if data is None:
        return {}
    data.only(PAYMENT)
    payment: Json = {}
    for name in (*intents.ECHOED, "description"):
        if (value := data.text(name, longest=500)) is not None:
            payment[name] = value
    if (capture := data.choice("capture_method", intents.CAPTURE_METHODS)) is not None:
        payment["capture_method"] = capture
    if (usage := data.choice("setup_future_usage", intents.USAGES)) is not None:
        payment["setup_future_usage"] = usage
    if metadata := data.metadata():
        payment["metadata"] = metadata
    return payment
