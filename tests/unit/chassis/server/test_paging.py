"""Page tokens: valid only as this service signed them, and only for the query that they continue."""

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import InvalidFields
from services.chassis.server import paging
from services.chassis.server.paging import Pages
from stampede.catalog.v1.catalog_service_pb2 import Product

PAGES = Pages("a secret of pages")
QUERY = {"category": "clocks", "order_by": "price"}
POSITION = ["1999", "01890000-0000-7000-8000-000000000000"]


def assert_refused(pages: Pages, token: str, query: dict[str, str]) -> None:
    with pytest.raises(InvalidFields) as refused:
        pages.verify(token, query)
    assert set(refused.value.violations) == {"pageToken"}


def test_empty_token_is_the_first_page() -> None:
    assert PAGES.verify("", QUERY) is None


@given(
    st.lists(st.text(max_size=50), max_size=5), st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=4)
)
def test_token_returns_its_position(position: list[str], query: dict[str, str]) -> None:
    assert PAGES.verify(PAGES.sign(position, query), query) == position


def test_order_of_query_fields_does_not_matter() -> None:
    assert PAGES.verify(PAGES.sign(POSITION, QUERY), dict(reversed(QUERY.items()))) == POSITION


def test_token_of_another_query_is_refused() -> None:
    assert_refused(PAGES, PAGES.sign(POSITION, QUERY), {**QUERY, "category": "mugs"})


@pytest.mark.parametrize("token", ["%%%", "W10", "aGVsbG8=", "-", "a" * 1000, "ümlaut", "\x00", ".", "a.b"])
def test_malformed_token_is_refused(token: str) -> None:
    assert_refused(PAGES, token, QUERY)


def test_token_with_any_changed_character_is_refused() -> None:
    token = PAGES.sign(POSITION, QUERY)
    for at in range(len(token) - 1):  # the last character also carries two bits that decode to nothing
        assert_refused(PAGES, token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :], QUERY)


def test_token_of_another_format_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(paging, "_VERSION", 2)
        later = PAGES.sign(POSITION, QUERY)
    assert_refused(PAGES, later, QUERY)


def test_secret_is_replaced_with_two_accepted() -> None:
    old, both, new = Pages("the old secret"), Pages("the new secret", "the old secret"), Pages("the new secret")
    assert both.verify(old.sign(POSITION, QUERY), QUERY) == POSITION
    assert new.verify(both.sign(POSITION, QUERY), QUERY) == POSITION
    assert_refused(new, old.sign(POSITION, QUERY), QUERY)


@pytest.mark.parametrize(("requested", "rows"), [(0, 50), (1, 1), (200, 200), (201, 200), (10**9, 200)])
def test_page_size_is_bounded(requested: int, rows: int) -> None:
    assert paging.size(requested) == rows


def test_page_holds_only_as_many_messages_as_fit_by_their_bytes() -> None:
    products = paging.fit([300_000] * 10, lambda length: Product(description="x" * length))

    assert len(products) == 3
    assert sum(len(json_format.MessageToJson(product)) for product in products) < 8 << 20


def test_page_holds_at_least_one_message() -> None:
    assert len(paging.fit([5 << 20], lambda length: Product(description="x" * length))) == 1
    assert paging.fit([], lambda length: Product()) == []
