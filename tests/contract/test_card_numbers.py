"""No text of a public request may contain a card number, besides those that the contract excuses."""

from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from buf.validate import validate_pb2
from services.chassis.server.card_numbers import fields_with, may_contain
from stampede.catalog.v1.catalog_service_pb2 import ListProductsRequest
from stampede.orders.v1.order_service_pb2 import CancelOrderRequest
from tests.contract.requests import answer_of, refusal_of, route_of
from tests.contract.test_protos import PUBLIC_METHODS

CARD = "4242424242424242"
EXCUSED = {"sku": "articles have numbers of their own", "tracking_number": "parcels have numbers of their own"}


def _filled(message: Descriptor, name: str) -> Message:
    """A message whose field `name` contains a card number; one of a message inside of it has it in all texts."""
    made = message_factory.GetMessageClass(message)()
    _fill(made, message.fields_by_name[name])
    return made


def _fill(made: Any, field: FieldDescriptor) -> None:
    inner = field.message_type
    if inner is None:
        if field.is_repeated:
            getattr(made, field.name).append(CARD)
        else:
            setattr(made, field.name, CARD)
    elif inner.GetOptions().map_entry:
        getattr(made, field.name)["key"] = CARD
    else:
        part = getattr(made, field.name).add() if field.is_repeated else getattr(made, field.name)
        part.SetInParent()
        for each in inner.fields:
            if _is_text(each):
                _fill(part, each)


def _is_text(field: FieldDescriptor) -> bool:
    inner = field.message_type
    if inner is not None and not inner.GetOptions().map_entry:
        return inner.full_name.startswith("stampede.") and any(map(_is_text, inner.fields))
    is_text = inner is not None or field.type == FieldDescriptor.TYPE_STRING
    return is_text and not _is_id(field) and field.name not in EXCUSED


def _is_id(field: FieldDescriptor) -> bool:
    rules = field.GetOptions().Extensions[validate_pb2.field]
    return bool(rules.string.uuid or rules.repeated.items.string.uuid)


def test_each_text_of_a_public_request_is_looked_into() -> None:
    looked_into, missed = 0, []
    for method in PUBLIC_METHODS:
        if method.input_type.full_name == "google.api.HttpBody":
            continue
        for field in method.input_type.fields:
            if not _is_text(field):
                continue
            request = _filled(method.input_type, field.name)
            looked_into += 1
            named = list(fields_with(request))
            if not may_contain(request, request.SerializeToString()) or not named[0].startswith(field.json_name):
                missed.append(f"{method.full_name}: {field.name}")
    assert looked_into > 40
    assert not missed


async def test_a_card_number_is_refused_with_field_and_reason() -> None:
    order_id, request_id = "0196f5c0-abcd-7000-8000-00000000000a", "0196f5c0-abcd-7000-8000-00000000000b"
    request = CancelOrderRequest(order_id=order_id, request_id=request_id, reason=f"wrong card, {CARD}")
    answer = await answer_of(route_of("POST", f"/v1/orders/{order_id}:cancel"), request, role="customer")
    bad = error_details_pb2.BadRequest()
    [(_, packed)] = answer.trailing
    assert status_pb2.Status.FromString(packed).details[1].Unpack(bad)
    (violation,) = bad.field_violations
    assert (answer.code.name, violation.field, violation.reason) == ("INVALID_ARGUMENT", "reason", "CARD_NUMBER")
    assert CARD not in str(answer)
    assert CARD.encode() not in packed


async def test_a_list_for_everybody_refuses_card_numbers() -> None:
    refused = await refusal_of(route_of("GET", "/v1/products"), ListProductsRequest(query=CARD), role="")
    assert refused == ("INVALID_ARGUMENT", "INVALID_FIELDS")
