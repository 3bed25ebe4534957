"""Requests that the contract alone refuses: each is brought to the guard of its service, in this process."""

from google.protobuf import json_format

from tests.contract.requests import refusal_of, request_of, route_of
from tests.support.bad_input import CASES, UNREADABLE, Case


async def _refusal(case: Case) -> tuple[str, str]:
    """As `refusal_of`; `UNREADABLE` where the gateway cannot make the method's request of it."""
    path, _, query = case.path.partition("?")
    route = route_of(case.verb, path)
    try:
        request = request_of(route, path, query, case.body)
    except json_format.ParseError:
        return "UNREADABLE", ""
    return await refusal_of(route, request, role=case.caller)


async def test_contract_refuses_bad_input_before_the_handler() -> None:
    wrong = []
    for case in CASES:
        if case.by_contract:
            wanted = ("UNREADABLE", "") if case.refusal == UNREADABLE else ("INVALID_ARGUMENT", "INVALID_FIELDS")
            if (found := await _refusal(case)) != wanted:
                wrong.append(f"{case}: {found}")
    assert not wrong, "\n".join(wrong)


async def test_other_bad_input_reaches_its_handler() -> None:
    """Otherwise its case would be named wrongly, and never be sent through the gateway."""
    wrong = []
    for case in CASES:
        if case.by_handler and (found := await _refusal(case)) != ("OK", ""):
            wrong.append(f"{case}: {found}")
    assert not wrong, "\n".join(wrong)
