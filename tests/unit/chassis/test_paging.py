"""Page tokens: opened by nobody but us, and only for the query they belong to."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import InvalidFields
from services.chassis.server import paging
from services.chassis.server.paging import Pages

PAGES = Pages("a secret of pages")
QUERY = {"category": "clocks", "order_by": "price"}
POSITION = ["1999", "01890000-0000-7000-8000-000000000000"]


def test_no_token_is_the_first_page() -> None:
    assert PAGES.unseal("", QUERY) is None


@given(
    st.lists(st.text(max_size=50), max_size=5), st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=4)
)
def test_a_position_comes_back(position: list[str], query: dict[str, str]) -> None:
    assert PAGES.unseal(PAGES.seal(position, query), query) == position


def test_the_order_of_the_querys_fields_does_not_matter() -> None:
    assert PAGES.unseal(PAGES.seal(POSITION, QUERY), dict(reversed(QUERY.items()))) == POSITION


def test_a_token_of_another_query_is_refused() -> None:
    with pytest.raises(InvalidFields) as refused:
        PAGES.unseal(PAGES.seal(POSITION, QUERY), {**QUERY, "category": "mugs"})
    assert set(refused.value.violations) == {"pageToken"}


def test_a_token_of_another_secret_is_refused() -> None:
    with pytest.raises(InvalidFields):
        PAGES.unseal(Pages("another secret of pages").seal(POSITION, QUERY), QUERY)


@pytest.mark.parametrize("token", ["%%%", "W10", "aGVsbG8=", "-", "a" * 1000, "ümlaut", "\x00"])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidFields):
        PAGES.unseal(token, QUERY)


def test_no_byte_can_be_changed() -> None:
    token = PAGES.seal(POSITION, QUERY)
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(InvalidFields):
            PAGES.unseal(base64.urlsafe_b64encode(changed).decode(), QUERY)


@pytest.mark.parametrize(("asked", "rows"), [(0, 50), (1, 1), (200, 200), (201, 200), (10**9, 200)])
def test_page_sizes(asked: int, rows: int) -> None:
    assert paging.size(asked) == rows
