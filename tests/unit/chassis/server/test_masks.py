"""Field masks: the fields that an update changes."""

import pytest

from services.chassis.errors import InvalidFields
from services.chassis.server import masks

MUTABLE = frozenset({"title", "sale_price", "limit"})
REQUIRED = frozenset({"title", "sale_price"})


def select(paths: list[str], given: set[str]) -> frozenset[str]:
    return masks.select_fields(paths, given, mutable=MUTABLE, required=REQUIRED)


def test_empty_mask_selects_set_fields() -> None:
    assert select([], {"sale_id", "title", "etag"}) == {"title"}


def test_star_selects_every_field() -> None:
    assert select(["*"], set(MUTABLE)) == MUTABLE


def test_mask_selects_only_named_fields() -> None:
    assert select(["title", "limit"], {"sale_id", "title", "etag"}) == {"title", "limit"}


def refused_fields(paths: list[str], given: set[str]) -> list[str]:
    with pytest.raises(InvalidFields) as caught:
        select(paths, given)
    return list(caught.value.violations)


def test_set_field_outside_the_mask_is_refused() -> None:
    assert refused_fields(["title"], {"title", "sale_price", "limit"}) == ["limit", "salePrice"]


@pytest.mark.parametrize("given", [set(), {"sale_id", "etag", "request_id"}])
def test_update_of_no_field_is_refused(given: set[str]) -> None:
    assert refused_fields([], given) == ["updateMask"]


def test_named_optional_field_is_selected_if_unset() -> None:
    assert select(["limit"], set()) == {"limit"}


@pytest.mark.parametrize(("field", "in_json"), [("title", "title"), ("sale_price", "salePrice")])
def test_named_required_field_must_be_set(field: str, in_json: str) -> None:
    assert refused_fields([field], set()) == [in_json]
    assert refused_fields(["*"], set(MUTABLE) - {field}) == [in_json]


@pytest.mark.parametrize("path", ["id", "state", "sale_id", "sale_price.minor_units", "salePrice", "", "x"])
def test_mask_that_names_an_immutable_field_is_refused(path: str) -> None:
    with pytest.raises(InvalidFields) as caught:
        select(["title", path], {"title"})
    assert list(caught.value.violations) == ["updateMask"]
