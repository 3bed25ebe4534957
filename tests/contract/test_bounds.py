"""Sizes of requests: each list has a bound, bounds come before other rules, and a legal request fits its route."""

import uuid
from typing import Any

import protovalidate
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from buf.validate import validate_pb2
from services.chassis.errors import InvalidFields
from services.chassis.server.bounds import check_lists, most_items
from stampede.inventory.v1.reservation_service_pb2 import BatchReserveRequest, Hold, HoldLine
from stampede.orders.v1.order_service_pb2 import PlaceOrderLine, PlaceOrderRequest
from tests.contract.requests import ROUTES, refusal_of, route_of
from tests.contract.test_protos import REQUEST_FIELDS

# The longest form of one character in JSON, as an escaped surrogate pair.
_BYTES_A_CHARACTER = 12
_OTHER_BYTES = 100
"""More than the JSON of a number, a time, an enum value or a UUID."""


def test_every_list_of_a_request_has_a_bound() -> None:
    without = [field.full_name for field in REQUEST_FIELDS if field.is_repeated and not most_items(field)]
    # Field masks are bounded by the gateway's limit of a body or an address.
    assert not [name for name in without if not name.startswith("google.")]


def too_many_lines() -> PlaceOrderRequest:
    return PlaceOrderRequest(request_id=str(uuid.uuid4()), lines=[PlaceOrderLine()] * 9000)


async def test_too_long_list_is_refused_before_other_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that compares all items of 27 KB of empty lines would block the process for seconds."""
    validated: list[Message] = []
    monkeypatch.setattr(protovalidate.Validator, "collect_violations", lambda _self, request: validated.append(request))

    refusal = await refusal_of(route_of("POST", "/v1/orders"), too_many_lines(), role="customer")

    assert refusal == ("INVALID_ARGUMENT", "INVALID_FIELDS")
    assert not validated


def test_refusal_of_a_too_long_list_names_it() -> None:
    with pytest.raises(InvalidFields) as refused:
        check_lists(too_many_lines())
    assert refused.value.violations == {"lines": "must contain no more than 20 item(s)"}

    with pytest.raises(InvalidFields) as refused:
        check_lists(BatchReserveRequest(holds=[Hold(), Hold(lines=[HoldLine()] * 21)]))
    assert list(refused.value.violations) == ["holds[1].lines"]


async def test_rule_that_cannot_be_evaluated_is_invalid_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: object, _request: Message) -> None:
        raise protovalidate.EvaluationError("too complex")

    monkeypatch.setattr(protovalidate.Validator, "collect_violations", fail)
    refusal = await refusal_of(route_of("POST", "/v1/orders"), PlaceOrderRequest(), role="customer")

    assert refusal == ("INVALID_ARGUMENT", "INVALID_FIELDS")


def test_largest_legal_request_of_each_route_fits_its_body_limit() -> None:
    pool = descriptor_pool.Default()
    too_small = {}
    for route in ROUTES:
        request = pool.FindMethodByName(route.method).input_type
        if route.verb not in ("GET", "DELETE") and request.full_name != "google.api.HttpBody":
            largest = most_bytes(request)
            if largest > route.body_bytes_max:
                too_small[route.method] = (largest, route.body_bytes_max)
    assert not too_small


def test_body_limits_follow_the_purpose_of_routes() -> None:
    kib = {path: route_of("POST", path).body_bytes_max // 1024 for path in ("/v1/orders", "/v1/auth/login")}
    assert kib == {"/v1/orders": 64, "/v1/auth/login": 8}
    assert route_of("POST", "/v1/webhooks/stripe").body_bytes_max == 256 * 1024
    assert max(route.body_bytes_max for route in ROUTES) <= 1 << 20


def most_bytes(message: Descriptor) -> int:
    """The length of the longest legal JSON of `message`."""
    return 2 + sum(len(field.json_name) + 4 + _field_bytes(field) for field in message.fields)


def _field_bytes(field: FieldDescriptor) -> int:
    rules: Any = field.GetOptions().Extensions[validate_pb2.field]
    if not field.is_repeated:
        return _one(field, rules)
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        key, value = message.fields_by_name["key"], message.fields_by_name["value"]
        return most_items(field) * (_one(key, rules.map.keys) + _one(value, rules.map.values) + 2)
    return most_items(field) * (_one(field, rules.repeated.items) + 1)


def _one(field: FieldDescriptor, rules: Any) -> int:
    if field.message_type is not None and field.message_type.full_name.startswith("stampede."):
        return most_bytes(field.message_type)
    if field.type == FieldDescriptor.TYPE_STRING:
        text = rules.string
        return 2 + int(max(text.max_len * _BYTES_A_CHARACTER, text.max_bytes * 6, _OTHER_BYTES))
    return _OTHER_BYTES
