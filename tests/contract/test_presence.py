"""No field that a client leaves out or misspells does harm: the gateway drops unknown fields without a word.

So a field whose absence would mean a price of 0, no limit, everything or at once must be required.
"""

from collections.abc import Iterator

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from buf.validate import validate_pb2
from stampede.inventory.v1 import flash_sale_service_pb2 as sale_pb
from stampede.orders.v1 import order_service_pb2 as order_pb
from stampede.payments.v1 import payment_service_pb2 as payment_pb
from stampede.type.v1.money_pb2 import Money
from tests.contract.test_protos import METHODS, REQUEST_FIELDS, REQUESTED, VALIDATOR, is_mesh, reachable_from

HARMLESS = {
    "account": "a filter of a list for staff",
    "attribute": "a filter of a list; more is listed than was wanted",
    "category": "a filter of a list, or a text of the product",
    "customer_id": "a filter of a list for staff",
    "from_time": "a filter of a list",
    "max_price": "a filter of a list",
    "min_price": "a filter of a list",
    "order_by": "the order of a list",
    "page_size": "the default size of a page",
    "page_token": "the first page",
    "problem": "a filter of a list for staff",
    "product_id": "a filter of a list",
    "query": "a filter of a list",
    "state": "a filter of a list",
    "stuck": "a filter of a list",
    "to_time": "a filter of a list",
    "attributes": "texts of the product",
    "carrier": "a text of the shipment",
    "description": "a text of the product",
    "display_name": "a text of the user",
    "line2": "a text of the address",
    "note": "a text of the order, which the answer shows",
    "reholds": "orders sends it; a reservation that it held never again needs none",
    "postal_code": "a text of the address; some countries have none",
    "reason": "a text of the log",
    "region": "a text of the address",
    "slug": "derived from name and sku",
    "tracking_number": "a text of the shipment",
    "active": "a new product without stock cannot be bought, and the answer shows it as active",
    "etag": "any version is changed, as by a client that has not read it",
    "hold_duration": "ten minutes, and the answer shows it",
    "abandoned_hold_limit": "ten, and the answer shows it",
    "prefer_wait": "the answer comes at once",
    "request_id": "a repeat is another request, and the client knows that it has sent no id",
    "restock": "units do not return; nothing is sold that is not there, and staff adjust the stock",
    "restock_lines": "as restock",
    "shipping_address": "the order shows that it has none, before it is shipped",
    "payment_method": "nothing is charged; the order waits for its customer",
    "provider": "that of the earlier attempt to pay, or that of new payments; the answer names it",
    "checkout": "return_url is refused without it",
    "return_url": "refused with checkout",
    "saved_method_id": "nothing is charged; the order waits for its customer",
    "save_method": "the method is not saved",
    "expected_total": "the order is placed at the current prices, as it was before the field",
    "flash_sale_id": "an ordinary line at the product's own price; expected_total holds it to what the buyer was shown",
    "amount": "refused unless full is true",
    "full": "refused unless amount is set",
}
"""The fields that a client may leave out, and what happens then."""
BY_SERVICES = {
    "stampede.inventory.v1.BatchConfirmRequest.retake": "expired reservations retake nothing",
    "stampede.inventory.v1.Return.lines": "all units",
    "stampede.inventory.v1.BatchReleaseRequest.abandoned_ids": "no customer has given up",
    "stampede.inventory.v1.BatchReleaseRequest.reholds": "they were held once, and one that was held again is kept",
    "stampede.payments.v1.Refund.amount": "all that is left",
    "stampede.payments.v1.Charge.hold_expire_time": "the charge goes after those that have one",
    "stampede.payments.v1.Charge.attempt": "the attempt that the order came with",
    "stampede.payments.v1.Charge.terms": "the customer pays in the browser, at the provider of the earlier attempt",
    "stampede.payments.v1.AttemptTerms.hold_expire_time": "a page ends after its shortest time",
    "stampede.payments.v1.CheckTermsRequest.with_card": "whether the provider charges cards at once is not checked",
}
"""Those that only services leave out. Their clients are generated, so that a misspelt field does not compile."""


def optional_fields() -> Iterator[FieldDescriptor]:
    """Yield the fields of requests that pass validation if they are not set. An update leaves such a field as it is."""
    for message in REQUESTED.values():
        if message.GetOptions().map_entry:
            continue
        empty = message_factory.GetMessageClass(message)()
        fields = [v.proto.field.elements for v in VALIDATOR.collect_violations(empty) if v.proto.field]
        refused = {elements[0].field_name for elements in fields if elements}
        for field in message.fields:
            unchanged = message.name.startswith("Update") and field.has_presence
            if field.name not in refused and not unchanged:
                yield field


def test_no_absent_field_of_a_request_is_dangerous() -> None:
    listed = HARMLESS | BY_SERVICES
    assert not [f.full_name for f in optional_fields() if f.name not in listed and f.full_name not in listed]


def test_every_field_listed_as_harmless_can_be_absent() -> None:
    found = {name for field in optional_fields() for name in (field.name, field.full_name)}
    assert not sorted({*HARMLESS, *BY_SERVICES} - found)


def test_only_services_leave_out_what_only_they_may() -> None:
    public = reachable_from(method.input_type for method in METHODS if not is_mesh(method))
    assert not [name for name in BY_SERVICES if name.rpartition(".")[0] in public]


def refused(message: Message) -> set[str]:
    return {
        v.proto.field.elements[-1].field_name if v.proto.field else v.proto.rule_id
        for v in VALIDATOR.collect_violations(message)
    }


def test_money_without_minor_units_is_refused() -> None:
    assert refused(Money(currency_code="USD")) == {"minor_units"}
    assert refused(Money(currency_code="USD", minor_units=0)) == set()


@pytest.mark.parametrize("kind", [order_pb.RefundOrderRequest, payment_pb.RefundPaymentRequest])
def test_a_refund_says_either_an_amount_or_full(kind: type[Message]) -> None:
    amount = Money(currency_code="USD", minor_units=5)
    assert "full" in refused(kind())
    assert "full" in refused(kind(full=True, amount=amount))  # type: ignore[call-arg]  # both kinds have the fields
    assert "full" not in refused(kind(full=True))  # type: ignore[call-arg]
    assert "full" not in refused(kind(amount=amount))  # type: ignore[call-arg]


def test_a_sale_says_when_it_opens_and_its_limit() -> None:
    missing = refused(sale_pb.CreateFlashSaleRequest())
    assert missing >= {"sale_price", "allocation", "per_customer_limit", "start_time", "end_time"}


def _takes(field: FieldDescriptor, text: str) -> bool:
    """Whether a field takes `text`."""
    message = message_factory.GetMessageClass(field.containing_type)()
    setattr(message, field.name, text)
    found = VALIDATOR.collect_violations(message)
    # A rule of the message has no field.
    return not any(v.proto.field and v.proto.field.elements[0].field_name == field.name for v in found)


@pytest.mark.parametrize("blank", [" ", "\t\n ", "\u00a0\u3000", "\u200b"])
def test_texts_for_people_refuse_only_spaces(blank: str) -> None:
    """A product called "   " can be found by nobody. The others are looked up, or compared with what is stored."""
    texts = [
        field
        for field in REQUEST_FIELDS
        if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated
        and (field.GetOptions().Extensions[validate_pb2.field].string.min_len == 1 or field.name == "display_name")
    ]  # fmt: skip
    looked_up = {"slug", "email", "refresh_token"}
    taken = {field.full_name for field in texts if field.name not in looked_up and _takes(field, blank)}
    assert len(texts) > 10
    assert not taken
    assert not [field.full_name for field in texts if not _takes(field, "Ré 日本 \U0001f600")]
