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
    assert select(["title"], set(MUTABLE)) == {"title"}


def test_named_optional_field_is_selected_if_unset() -> None:
    assert select(["limit"], set()) == {"limit"}


@pytest.mark.parametrize(("field", "in_json"), [("title", "title"), ("sale_price", "salePrice")])
def test_named_required_field_must_be_set(field: str, in_json: str) -> None:
    for paths in ([field], ["*"]):
        with pytest.raises(InvalidFields) as caught:
            select(paths, set(MUTABLE) - {field})
        assert list(caught.value.violations) == [in_json]


@pytest.mark.parametrize("path", ["id", "state", "sale_id", "sale_price.minor_units", "salePrice", "", "x"])
def test_mask_that_names_an_immutable_field_is_refused(path: str) -> None:
    with pytest.raises(InvalidFields) as caught:
        select(["title", path], {"title"})
    assert list(caught.value.violations) == ["updateMask"]
