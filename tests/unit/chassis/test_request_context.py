"""The client of a call: what its bounds are counted by."""

import uuid
from collections.abc import Iterator

import pytest

from services.chassis import request_context
from services.chassis.request_context import Call, Caller

_USER = uuid.UUID(int=7)


@pytest.fixture(autouse=True)
def _no_call() -> Iterator[None]:
    yield
    request_context.enter(None)  # type: ignore[arg-type]


def client_at(address: str, caller: Caller = request_context.ANONYMOUS) -> str | None:
    request_context.enter(Call("/m", "r", caller, metadata={"x-envoy-external-address": address}))
    return request_context.client()


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ],
)
def test_customers_of_a_provider_have_one_client_each(first: str, second: str, same: bool) -> None:
    """One customer has all addresses of 64 bits of IPv6. Otherwise each could count as another client."""
    assert (client_at(first) == client_at(second)) is same


def test_signed_in_user_is_one_client_everywhere() -> None:
    user = Caller(user_id=_USER)
    assert client_at("192.0.2.1", user) == client_at("2001:db8::1", user) == str(_USER)


@pytest.mark.parametrize("address", ["", "nonsense", "192.0.2.1, 10.0.0.1"])
def test_call_without_an_address_has_no_client(address: str) -> None:
    assert client_at(address) is None
