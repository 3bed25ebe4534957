"""The terms that customers may ask for: no address outside of the shop, and nothing that a provider cannot do."""

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import pytest

from services.chassis.errors import InvalidFields
from services.payments.dispatch.offers import Offers
from services.payments.domain import Terms
from services.payments.providers import Capabilities, Providers


class Fake:
    def __init__(self, name: str, *, can: bool) -> None:
        self.name, self.vault = name, object() if can else None
        self.can = Capabilities(
            charges_tokens=can, voids=can, charged_once=can, hosts_pages=can, signs_callbacks=not can,
            authorises_for=timedelta(days=7),
        )  # fmt: skip


def offers(*, is_local: bool = False) -> Offers:
    able, unable = Fake("able", can=True), Fake("unable", can=False)
    providers: Any = Providers(able, unable, default="able")  # type: ignore[arg-type]
    nothing: Any = None
    return Offers(providers, nothing, return_hosts=["shop.example", "www.shop.example"], is_local=is_local)


def refused(terms: Terms, *, with_card: bool = False, is_local: bool = False) -> list[str]:
    try:
        asyncio.run(offers(is_local=is_local).check(uuid.UUID(int=1), terms, with_card=with_card))
    except InvalidFields as error:
        return list(error.violations)
    return []


@pytest.mark.parametrize(
    ("terms", "with_card", "fields"),
    [
        (Terms(number=0), True, []),
        (Terms(number=0, provider="able"), True, []),
        (Terms(number=0, provider="unable"), False, []),
        (Terms(number=0, provider="unable"), True, ["paymentMethod"]),
        (Terms(number=0, provider="nobody"), False, ["provider"]),
        (Terms(number=0, provider="unable", saves_method=True), False, ["saveMethod"]),
        (Terms(number=0, provider="able", saves_method=True), False, []),
        (Terms(number=0, provider="unable", checkout=True, return_url="https://shop.example/"), False, ["checkout"]),
    ],
)
def test_provider_must_be_able_to(terms: Terms, with_card: bool, fields: list[str]) -> None:
    assert refused(terms, with_card=with_card) == fields


@pytest.mark.parametrize(
    "url", ["https://shop.example", "https://shop.example/orders/1?from=mail#top", "https://WWW.shop.example/"]
)
def test_pages_send_customers_back_to_the_shop(url: str) -> None:
    assert refused(Terms(number=0, checkout=True, return_url=url)) == []


@pytest.mark.parametrize(
    "url",
    [
        "", "/orders/1", "//shop.example/", "http://shop.example/", "https://evil.example/", "https://shop.example.evil.example/",
        "https://evil.example/?https://shop.example", "https://shop.example@evil.example/", "https://user:pw@shop.example/",
        "https://evil.example\\@shop.example/", "https://shop.example:8443/", "javascript:alert(1)", "https://",
        "https://shop.example\t.evil.example/", "https://shop.example\n/", "ftp://shop.example/", "https://[::1/",
        "https://shop.example:x/", "http://localhost/", "http://127.0.0.1:3000/", "https:shop.example",
    ],
)  # fmt: skip
def test_pages_send_nobody_anywhere_else(url: str) -> None:
    assert refused(Terms(number=0, checkout=True, return_url=url)) == ["returnUrl"]


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        ("http://localhost:3000/back", []), ("http://127.0.0.1:8080/", []), ("http://[::1]:8080/", []),
        ("http://localhost.evil.example/", ["returnUrl"]), ("http://evil.example/", ["returnUrl"]),
    ],
)  # fmt: skip
def test_local_shop_may_be_at_a_loopback_address(url: str, fields: list[str]) -> None:
    assert refused(Terms(number=0, checkout=True, return_url=url), is_local=True) == fields
