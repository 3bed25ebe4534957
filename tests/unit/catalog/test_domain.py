"""The rules of products, without a database."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.catalog import domain
from services.chassis.errors import AppError

SKUS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


@given(name=st.text(min_size=1, max_size=200), sku=SKUS)
def test_a_derived_slug_is_always_valid(name: str, sku: str) -> None:
    slug = domain.make_slug(name, sku)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug)
    assert len(slug) <= domain.SLUG_LENGTH_MAX


@pytest.mark.parametrize(
    ("name", "sku", "slug"),
    [
        ("Crème brûlée, für Köche!", "CB.42", "creme-brulee-fur-koche-cb-42"),
        ("時計", "CLOCK-1", "clock-1"),
        ("x" * 200, "S" * 64, "x" * 35 + "-" + "s" * 64),
    ],
)
def test_a_derived_slug_contains_name_and_sku(name: str, sku: str, slug: str) -> None:
    assert domain.make_slug(name, sku) == slug


@given(name=st.text(min_size=1, max_size=200), skus=st.lists(SKUS, min_size=2, max_size=2, unique=True))
def test_distinct_slugs_of_different_skus_differ(name: str, skus: list[str]) -> None:
    first, second = (domain.make_slug(name, sku, distinct=True) for sku in skus)
    assert first != second
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", first)
    assert len(first) <= domain.SLUG_LENGTH_MAX


@pytest.mark.parametrize(
    ("query", "split"),
    [
        ("red sho", ("red ", "sho")),
        ("sho", ("", "sho")),
        ("MUG-4", ("", "MUG-4")),
        ('red "running shoe"', ('red "running shoe"', "")),
        ("red -sho", ("red -sho", "")),
        ("it's", ("it's", "")),
        ("!!!", ("!!!", "")),
    ],
)
def test_only_a_bare_last_word_is_still_being_typed(query: str, split: tuple[str, str]) -> None:
    assert domain.split_last_word(query) == split


@given(st.text(max_size=200))
def test_a_last_word_has_no_operators_of_text_queries(query: str) -> None:
    head, last = domain.split_last_word(query)
    assert head + last == query.removesuffix("\n") or not last
    assert not set(last) & set("'\\&|!():* ")


@pytest.mark.parametrize(
    ("price", "original", "percent"),
    [(1999, None, None), (1500, 2000, 25), (1999, 2000, 0), (0, 100, 100), (667, 1000, 33)],
)
def test_a_discount_is_rounded_down(price: int, original: int | None, percent: int | None) -> None:
    assert domain.discount_percent(price, original) == percent


@pytest.mark.parametrize("error", [domain.ProductNotFound, domain.SkuTaken, domain.SlugTaken])
def test_reasons_are_those_of_the_contract(error: type[AppError]) -> None:
    assert error.reason in {"PRODUCT_NOT_FOUND", "SKU_TAKEN", "SLUG_TAKEN"}
