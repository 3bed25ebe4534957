"""Calls as the gateway makes them of REST requests, brought to a service's real guard in this process."""

import json
import re
import urllib.parse
import uuid
from functools import cache
from pathlib import Path
from typing import Any

import generate
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from gateway.contract import Route, read
from services.chassis.server.guard import Guard
from stampede.access.v1 import access_pb2  # noqa: F401 - the rules stand in the descriptors
from stampede.catalog.v1 import catalog_service_pb2  # noqa: F401
from stampede.identity.v1 import identity_service_pb2  # noqa: F401
from stampede.inventory.v1 import flash_sale_service_pb2, stock_service_pb2  # noqa: F401
from stampede.orders.v1 import order_service_pb2, saga_service_pb2  # noqa: F401
from stampede.payments.v1 import payment_service_pb2  # noqa: F401
from stampede.type.v1 import money_pb2
from tests.support import tokens

ROUTES = read(Path(generate.__file__).parent / "gen/gateway.binpb")
_SOMEBODY = uuid.UUID(int=1)
_ADMITTED = money_pb2.Money()
"""The answer of a handler that was reached."""


def route_of(verb: str, path: str) -> Route:
    """The route that the gateway takes; one with fewer variables wins."""
    found = [route for route in ROUTES if route.verb == verb and re.fullmatch(route.pattern, path)]
    assert found, f"no route for {verb} {path}"
    return min(found, key=lambda route: route.variables)


def request_of(route: Route, path: str, query: str, body: Any) -> Message:
    """The method's request with path, query and body bound to its fields. Raises `json_format.ParseError`."""
    method = descriptor_pool.Default().FindMethodByName(route.method)
    request = message_factory.GetMessageClass(method.input_type)()
    if body is not None:
        json_format.Parse(json.dumps(body), request, ignore_unknown_fields=True)
    fields: dict[str, Any] = {}
    for name, value in urllib.parse.parse_qsl(query, keep_blank_values=True):
        field = next((f for f in method.input_type.fields if name in (f.name, f.json_name)), None)
        fields[name] = [value] if field is not None and field.is_repeated else value
    json_format.ParseDict(fields, request)
    variables = re.fullmatch(re.sub(r"\{(\w+)[^}]*\}", r"(?P<\1>[^/:]+)", route.path), path)
    assert variables, f"{path} is not {route.path}"
    json_format.ParseDict(variables.groupdict(), request)
    return request


@cache
def _guard(service: str) -> Guard:
    return Guard(service, tokens.gatekeeper(service))


async def refusal_of(route: Route, request: Message, *, role: str) -> tuple[str, str]:
    """Code and reason of the guard's refusal; `("OK", "")` where the call reaches its handler."""
    answer = await answer_of(route, request, role=role)
    if answer is _ADMITTED:
        return "OK", ""
    info = error_details_pb2.ErrorInfo()
    [(_, packed)] = answer.trailing
    assert status_pb2.Status.FromString(packed).details[0].Unpack(info)
    return answer.code.name, info.reason


async def answer_of(route: Route, request: Message, *, role: str) -> Any:
    """The guard's answer; a message where the call reaches its handler."""
    metadata: dict[str, str | bytes] = {}
    if role:
        metadata["authorization"] = f"Bearer {tokens.access_token(_SOMEBODY, role)}"

    async def handler(_request: Message, _context: None) -> Message:
        return _ADMITTED

    service, _, method = route.method.rpartition(".")
    return await _guard(route.owner).unary(f"/{service}/{method}", handler)(request, metadata, None)
