"""Which fields an update changes."""

import pytest

from services.chassis.errors import InvalidFields
from services.chassis.server import masks

MUTABLE = frozenset({"title", "sale_price", "limit"})
REQUIRED = frozenset({"title", "sale_price"})


def named(paths: list[str], given: set[str]) -> frozenset[str]:
    return masks.select_fields(paths, given, mutable=MUTABLE, required=REQUIRED)


def test_an_empty_mask_means_what_is_set() -> None:
    assert named([], {"sale_id", "title", "etag"}) == {"title"}


def test_a_star_means_every_field() -> None:
    assert named(["*"], set(MUTABLE)) == MUTABLE


def test_a_mask_leaves_out_what_it_does_not_name() -> None:
    assert named(["title"], set(MUTABLE)) == {"title"}


def test_a_named_field_that_may_be_empty_is_emptied() -> None:
    assert named(["limit"], set()) == {"limit"}


@pytest.mark.parametrize(("field", "in_json"), [("title", "title"), ("sale_price", "salePrice")])
def test_a_named_field_that_cannot_be_empty_must_be_set(field: str, in_json: str) -> None:
    for paths in ([field], ["*"]):
        with pytest.raises(InvalidFields) as caught:
            named(paths, set(MUTABLE) - {field})
        assert list(caught.value.violations) == [in_json]


@pytest.mark.parametrize("path", ["id", "state", "sale_id", "sale_price.minor_units", "salePrice", "", "x"])
def test_a_mask_that_names_another_field_is_refused(path: str) -> None:
    with pytest.raises(InvalidFields) as caught:
        named(["title", path], {"title"})
    assert list(caught.value.violations) == ["updateMask"]
