"""Every public route at the guard of its service, called by each kind of caller."""

import uuid

import pytest

from gateway.contract import Route
from services.chassis.server.access import rule_of
from stampede.access.v1.access_pb2 import ACCESS_ADMIN, ACCESS_CUSTOMER, ACCESS_PUBLIC, ACCESS_STAFF
from tests.contract.requests import ROUTES, refusal_of, request_of

_MAY = {
    "": {ACCESS_PUBLIC},
    "customer": {ACCESS_PUBLIC, ACCESS_CUSTOMER},
    "staff": {ACCESS_PUBLIC, ACCESS_CUSTOMER, ACCESS_STAFF},
    "admin": {ACCESS_PUBLIC, ACCESS_CUSTOMER, ACCESS_STAFF, ACCESS_ADMIN},
}


def path_of(route: Route) -> str:
    """The path of something that does not exist."""
    path = route.path
    while "{" in path:
        path = path[: path.index("{")] + str(uuid.UUID(int=1)) + path[path.index("}") + 1 :]
    return path


@pytest.mark.parametrize("role", list(_MAY), ids=lambda role: role or "nobody")
async def test_guard_admits_exactly_the_callers_that_the_contract_names(role: str) -> None:
    wrong = []
    for route in ROUTES:
        request = request_of(route, path_of(route), "", None)
        code, _ = await refusal_of(route, request, role=role)
        admitted = code in ("OK", "INVALID_ARGUMENT")  # an empty request is invalid for many
        denied = "PERMISSION_DENIED" if role else "UNAUTHENTICATED"
        if rule_of(route.method).access in _MAY[role] and not admitted:
            wrong.append(f"{route.verb} {route.path}: {code}")
        elif rule_of(route.method).access not in _MAY[role] and code != denied:
            wrong.append(f"{route.verb} {route.path}: {code} instead of {denied}")
    assert not wrong, "\n".join(wrong)
