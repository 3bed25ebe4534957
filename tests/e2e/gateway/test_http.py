"""HTTP as real clients, proxies and health checks speak it. Each test sends the bytes itself."""

import asyncio
import json
from typing import Any, NamedTuple

import pytest
import yarl

from tests.e2e.shop import PASSWORD, Shop
from tests.support.rest import Json

_SECONDS = 10


class Raw(NamedTuple):
    """An answer as it came over the connection."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def reason(self) -> str:
        answer: Json = json.loads(self.body)
        return str(answer["details"][0]["reason"])


async def send(shop: Shop, request: str, *headers: str, body: str = "") -> Raw:
    """Send `request` (a request line) and read the answer until the server closes the connection."""
    url = yarl.URL(shop.rest.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    lines = [request, *headers, *([f"Content-Length: {len(body)}"] if body else [])]
    if not any(header.lower().startswith("connection:") for header in headers):
        lines.append("Connection: close")
    writer.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
    try:
        async with asyncio.timeout(_SECONDS):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            pairs = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            length = pairs.get("content-length")
            is_bodyless = request.startswith("HEAD") or length is None
            text = "" if is_bodyless else (await reader.readexactly(int(length or 0))).decode()
    finally:
        writer.close()
    return Raw(int(head[0].split()[1]), pairs, text)


HOST = "Host: shop.example"


@pytest.mark.parametrize("upgrade", ["TLS/1.2", "h2c", "websocket"])
async def test_offer_to_upgrade_the_connection_is_ignored(shop: Shop, upgrade: str) -> None:
    """Java's HTTP clients offer TLS with every call. It is no request to sign in."""
    offer = (HOST, f"Upgrade: {upgrade}", "Connection: Upgrade")
    assert (await send(shop, "GET /healthz HTTP/1.1", *offer)).status == 200
    assert (await send(shop, "GET /v1/products HTTP/1.1", *offer)).status == 200


async def test_http_1_0_is_answered(shop: Shop) -> None:
    for path in ("/healthz", "/readyz", "/v1/products"):
        for headers in ((), (HOST,)):
            assert (await send(shop, f"GET {path} HTTP/1.0", *headers)).status == 200, path


async def test_health_is_answered_to_every_kind_of_check(shop: Shop) -> None:
    for path in ("/healthz", "/readyz", "/healthz?probe=1", "/readyz?probe=1"):
        for verb in ("GET", "HEAD"):
            assert (await send(shop, f"{verb} {path} HTTP/1.1", HOST)).status == 200, (verb, path)
    other = await send(shop, "POST /healthz HTTP/1.1", HOST, body="{}")
    assert (other.status, other.reason, other.headers["allow"]) == (405, "METHOD_NOT_ALLOWED", "get, head")


@pytest.mark.parametrize("coding", ["gzip, chunked", "foo"])
async def test_unknown_transfer_coding_is_not_implemented(shop: Shop, coding: str) -> None:
    headers = (HOST, "Content-Type: application/json", f"Transfer-Encoding: {coding}")
    answer = await send(shop, "POST /v1/auth/login HTTP/1.1", *headers)
    assert (answer.status, answer.reason) == (501, "NOT_IMPLEMENTED")


@pytest.mark.parametrize(
    "header",
    [
        "Content-Type: application/grpc", "Content-Type: application/grpc+proto",
        "Content-Type: application/grpc-web-text", "Content-Encoding: gzip", "Content-Encoding: br",
    ],
)  # fmt: skip
async def test_body_that_is_not_plain_json_is_an_unsupported_media_type(shop: Shop, header: str) -> None:
    for path in ("/v1/auth/login", "/v1/orders", "/v1/webhooks/stripe", "/nowhere"):
        answer = await send(shop, f"POST {path} HTTP/1.1", HOST, header, body="{}")
        assert (answer.status, answer.reason) == (415, "UNSUPPORTED_MEDIA_TYPE"), path


async def test_plus_in_a_query_is_a_space(shop: Shop) -> None:
    product = await shop.a_product(name="Retro Alarm Clock")
    found = (await shop.rest.get("/v1/products?query=retro+alarm+clock")).expect().json["products"]
    assert product["id"] in {each["id"] for each in found}


async def test_live_views_are_neither_cached_nor_held_back_by_proxies(shop: Shop) -> None:
    sale: Any = await shop.a_sale()
    async with shop.rest.http.get(f"{shop.rest.url}/v1/flash-sales/{sale['id']}:watch") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-cache"
        assert stream.headers["x-accel-buffering"] == "no"


async def test_space_after_an_email_does_not_keep_its_owner_out(shop: Shop) -> None:
    buyer = await shop.a_buyer()
    for email in (f"{buyer.email} ", f" {buyer.email.upper()}\t"):
        (await shop.rest.post("/v1/auth/login", {"email": email, "password": PASSWORD})).expect()
