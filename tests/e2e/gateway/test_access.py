"""Access through the gateway, and what its answers and logs show."""

import base64
import hashlib
import hmac
import itertools
import json
import time
import uuid
from pathlib import Path
from typing import Any

import generate
import jwt
import pytest
import yarl
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.contract import Route, read
from services.chassis.server.access import AUDIENCE, ISSUER, MESH_HEADER, MeshIdentity, rule_of
from services.identity.tokens import KeySealer
from stampede.access.v1 import access_pb2
from stampede.catalog.v1 import catalog_service_pb2  # noqa: F401 - the rules stand in the descriptors
from stampede.identity.v1 import identity_service_pb2  # noqa: F401
from stampede.inventory.v1 import flash_sale_service_pb2, stock_service_pb2  # noqa: F401
from stampede.orders.v1 import order_service_pb2, saga_service_pb2  # noqa: F401
from stampede.payments.v1 import books_service_pb2, payment_service_pb2  # noqa: F401
from tests.e2e.shop import PASSWORD, Shop
from tests.support.rest import Json, Rest, new_id
from tests.support.waiting import eventually

ROUTES = read(Path(generate.__file__).parent / "gen/gateway.binpb")
_OTHER_KEY = ec.generate_private_key(ec.SECP256R1())


def path_of(route: Route) -> str:
    """The route's path, of something that does not exist."""
    path = route.path
    while "{" in path:
        path = path[: path.index("{")] + new_id() + path[path.index("}") + 1 :]
    return path


async def call(rest: Rest, route: Route) -> Any:
    body = None if route.verb in ("GET", "DELETE") else {}
    return await rest.send(route.verb, path_of(route), json_body=body)


async def a_token(shop: Shop, *, key: object = None, algorithm: str = "ES256", roles: Any = None, **claims: Any) -> str:
    """A token that says what identity's would, under identity's key id, but is signed by somebody else."""
    kid = (await shop.rest.get("/.well-known/jwks.json")).expect().json["keys"][0]["kid"]
    now = int(time.time())
    said: Json = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": str(uuid.uuid4()), "iat": now, "exp": now + 600,
        "roles": roles or ["customer", "staff", "admin"],
    } | claims  # fmt: skip
    return jwt.encode(said, key or _OTHER_KEY, algorithm=algorithm, headers={"kid": kid})


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


async def forged(shop: Shop) -> str:
    return await a_token(shop)


async def unsigned(shop: Shop) -> str:
    header, claims, _ = (await a_token(shop)).split(".")
    none = json.loads(base64.urlsafe_b64decode(header + "==")) | {"alg": "none"}
    return f"{encoded(json.dumps(none).encode())}.{claims}."


async def signed_with_the_public_key(shop: Shop) -> str:
    """The classic confusion: the public key taken for an HMAC secret."""
    [key, *_] = (await shop.rest.get("/.well-known/jwks.json")).expect().json["keys"]
    header, claims, _ = (await a_token(shop)).split(".")
    said = json.loads(base64.urlsafe_b64decode(header + "==")) | {"alg": "HS256"}
    signed = f"{encoded(json.dumps(said).encode())}.{claims}"
    return f"{signed}.{encoded(hmac.digest(json.dumps(key).encode(), signed.encode(), hashlib.sha256))}"


async def with_more_rights(shop: Shop) -> str:
    """A customer's own token, its claims exchanged."""
    header, claims, signature = (await shop.a_buyer()).rest.token.split(".")
    said = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4))) | {"roles": ["admin"]}
    return f"{header}.{encoded(json.dumps(said).encode())}.{signature}"


async def of_the_mesh(shop: Shop) -> str:
    return MeshIdentity("orders", shop.mesh.site.secrets["mesh"]).token()


async def nobody(_: Shop) -> str:
    return ""


async def nonsense(_: Shop) -> str:
    return "nonsense"


async def three_dots(_: Shop) -> str:
    return "e30.e30.e30"


async def of_another_audience(shop: Shop) -> str:
    return await genuine(shop, aud="another shop")


async def of_another_issuer(shop: Shop) -> str:
    return await genuine(shop, iss="https://elsewhere.example")


async def expired(shop: Shop) -> str:
    now = int(time.time())
    return await genuine(shop, iat=now - 1000, exp=now - 100)


async def without_end(shop: Shop) -> str:
    return await genuine(shop, exp=None)


async def genuine(shop: Shop, **claims: Any) -> str:
    """Signed with identity's real key, taken from its database with its secret."""
    [(kid, sealed)] = await shop.rows(
        "identity",
        "SELECT kid, sealed_private_key FROM signing_keys WHERE sign_from <= now() ORDER BY sign_from LIMIT 1",
    )
    key = KeySealer(shop.mesh.site.secrets["keys"]).open(bytes(sealed))
    now = int(time.time())
    said: Json = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": str(uuid.uuid4()), "iat": now, "exp": now + 600, "roles": ["admin"],
    } | claims  # fmt: skip
    said = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(said, key, algorithm="ES256", headers={"kid": kid})


async def test_the_genuine_tokens_of_these_tests_are_believed(shop: Shop) -> None:
    """Otherwise the refusals below would prove nothing."""
    (await shop.rest.as_(await genuine(shop)).get("/v1/orders")).expect()


_BAD_TOKENS = (
    nobody, nonsense, three_dots, forged, unsigned, signed_with_the_public_key, with_more_rights, of_the_mesh,
    of_another_audience, of_another_issuer, expired, without_end,
)  # fmt: skip


async def test_a_token_that_is_not_good_lets_nobody_in(shop: Shop) -> None:
    """At a customer's route and at one of staff."""
    admitted = []
    for made in _BAD_TOKENS:
        token = await made(shop)
        for path in ("/v1/orders", f"/v1/payments/{new_id()}"):
            answer = await shop.rest.as_(token).get(path)
            if answer.refusal != (401, "UNAUTHENTICATED"):
                admitted.append(f"{made.__name__} at {path}: {answer.status} {answer.text}")
    assert not admitted, "\n".join(admitted)


async def test_401_carries_a_challenge(shop: Shop) -> None:
    """RFC 9110 wants a challenge on every 401."""
    for token in (await nobody(shop), await expired(shop)):
        answer = await shop.rest.as_(token).get("/v1/orders")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    by_a_service = await shop.rest.post("/v1/auth/login", {"email": "nobody@example.com", "password": PASSWORD})
    assert (by_a_service.status, by_a_service.headers["www-authenticate"][:6]) == (401, "Bearer")


async def test_case_of_the_bearer_scheme_does_not_matter(shop: Shop) -> None:
    token = (await shop.a_buyer()).rest.token
    for scheme in ("Bearer", "bearer", "BEARER", "bEaReR", "Bearer "):
        (await shop.rest.send("GET", "/v1/orders", headers={"authorization": f"{scheme} {token}"})).expect()


async def test_only_bearer_tokens_are_tokens(shop: Shop) -> None:
    token = (await shop.a_buyer()).rest.token
    for header in (token, f"Basic {token}", f"Token {token}", "Bearer", "Bearer ", f"Bearer {token} {token}"):
        answer = await shop.rest.send("GET", "/v1/orders", headers={"authorization": header})
        assert answer.refusal == (401, "UNAUTHENTICATED"), header
    in_query = await shop.rest.send("GET", f"/v1/orders?access_token={token}")
    assert in_query.status in (400, 401), "a token does not belong into an address"


async def test_each_route_admits_only_the_callers_that_the_contract_names(shop: Shop) -> None:
    """Called with the emptiest request. `tests/contract/test_access.py` does the same without the gateway."""
    [buyer] = await shop.a_crowd(1)
    public, customer = {access_pb2.ACCESS_PUBLIC}, {access_pb2.ACCESS_PUBLIC, access_pb2.ACCESS_CUSTOMER}
    wrong = []
    for route in ROUTES:
        needed = rule_of(route.method).access
        if needed not in public and (answer := await call(shop.rest, route)).refusal != (401, "UNAUTHENTICATED"):
            wrong.append(f"{route.verb} {route.path}, nobody: {answer.refusal}")
        if needed not in customer and (answer := await call(buyer.rest, route)).refusal != (403, "PERMISSION_DENIED"):
            wrong.append(f"{route.verb} {route.path}, a customer: {answer.refusal}")
        if (answer := await call(shop.staff, route)).status >= 500:
            wrong.append(f"{route.verb} {route.path}, staff: {answer.refusal}")
    assert not wrong, "\n".join(wrong)


MESH_ONLY = (
    "/stampede.inventory.v1.ReservationService/BatchReserve",
    "/stampede.payments.v1.ChargeService/BatchReverse",
    "/stampede.catalog.v1.SnapshotService/GetSnapshots",
    "/stampede.orders.v1.OrderService/PlaceOrder",
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)


async def test_what_is_for_the_mesh_cannot_be_reached_from_outside(shop: Shop) -> None:
    """Not even with the mesh's own token."""
    before, token, reached = await shop.counts(), await of_the_mesh(shop), []
    for path, kind in itertools.product(
        MESH_ONLY, ("application/json", "application/grpc", "application/grpc-web+proto")
    ):
        url, headers = shop.rest.url + path, {"content-type": kind, MESH_HEADER: token, "te": "trailers"}
        async with shop.rest.http.post(url, data=b"\x00\x00\x00\x00\x00", headers=headers) as answer:
            found = answer.status, answer.headers.get("grpc-status")
        if found not in ((404, None), (415, None)):
            reached.append(f"{path} as {kind}: {found}")
    assert not reached, "\n".join(reached)
    assert await shop.counts() == before


async def test_an_address_that_is_not_there_is_not_found(shop: Shop) -> None:
    paths = (
        "/nowhere", "/", "/v1", "/v1/", "/v2/orders", "/v1/orders/", "/admin", "/metrics", "/stats", "/config_dump",
        "/v1/orders/x/y/z", "/v1/products/../../admin", "/.env", "/v1/orders:watch",
    )  # fmt: skip
    found = {path: (await shop.staff.get(path)).refusal for path in paths}
    assert found == dict.fromkeys(paths, (404, "NOT_FOUND"))


async def test_a_method_that_is_not_served_here_is_refused(shop: Shop) -> None:
    for method, path in (
        ("DELETE", "/v1/orders"), ("PUT", "/v1/orders"), ("PATCH", "/v1/auth/login"), ("GET", "/v1/auth/login"),
        ("GET", "/v1/webhooks/stripe"), ("DELETE", "/v1/flash-sales"), ("POST", "/.well-known/jwks.json"),
        ("TRACE", "/v1/orders"),
    ):  # fmt: skip
        answer = await shop.staff.send(method, path)
        assert answer.refusal == (405, "METHOD_NOT_ALLOWED"), (method, path)
        assert answer.headers["allow"]


async def test_a_body_longer_than_the_limit_of_its_route_is_too_large(shop: Shop) -> None:
    for path, field, most in (
        ("/v1/orders", "paymentMethod", 64), ("/v1/orders", "unknown", 64), ("/v1/auth/login", "email", 8),
        ("/v1/webhooks/stripe", "id", 256), ("/v1/products", "description", 1024),
    ):  # fmt: skip
        for size in (most * 1024, 8 << 20):
            answer = await shop.staff.send("POST", path, body=b'{"%s": "%s"}' % (field.encode(), b"x" * size))
            assert answer.refusal == (413, "REQUEST_TOO_LARGE"), (path, field, size)
        fits = await shop.staff.send("POST", path, body=b'{"%s": "%s"}' % (field.encode(), b"x" * (most * 1024 - 100)))
        assert fits.status == 400, (path, field)


async def test_headers_of_more_than_32_kib_are_too_large(shop: Shop) -> None:
    url, headers = f"{shop.rest.url}/v1/products", {f"x-{n}": "x" * 4000 for n in range(10)}
    async with shop.rest.http.get(url, headers=headers) as answer:
        assert answer.status == 431
        assert (await answer.json())["code"] == 3


@pytest.mark.parametrize("path", ["/v1/orders%2Fmine", "/v1/products/by-slug/a%00b", "/v1/products/%5c..%5cadmin"])
async def test_a_path_that_tries_to_walk_around_the_rules_is_refused(shop: Shop, path: str) -> None:
    """Envoy refuses it before it has given the request an id, so only status and body are looked at."""
    async with shop.rest.http.get(yarl.URL(shop.rest.url + path, encoded=True)) as answer:
        body = await answer.text()
        assert answer.status in (400, 404), body
        assert json.loads(body)["code"] in (3, 5)


async def test_answers_do_not_say_what_serves_them(shop: Shop) -> None:
    [buyer] = await shop.a_crowd(1)
    answers = [
        await shop.rest.get("/v1/products"), await shop.rest.get("/nowhere"), await shop.rest.get("/v1/orders"),
        await buyer.rest.get("/v1/orders"), await shop.rest.get("/healthz"), await shop.rest.get("/readyz"),
        await shop.rest.send("POST", "/v1/orders", body=b"x" * (2 << 20)), await shop.rest.post("/v1/auth/login"),
    ]  # fmt: skip

    for answer in answers:
        names = {name.lower() for name in answer.headers}
        assert not {name for name in names if name.startswith(("x-envoy", "x-powered", "via"))}, names
        assert "envoy" not in answer.headers.get("server", "").lower()
        assert "python" not in answer.headers.get("server", "").lower()
        assert "envoy" not in answer.text.lower()


async def test_a_client_cannot_choose_who_it_is_by_headers(shop: Shop) -> None:
    [buyer] = await shop.a_crowd(1)
    lies = {
        "x-mesh-token": await of_the_mesh(shop), "x-stampede-user": "admin", "x-envoy-original-path": "/v1/products",
        "x-forwarded-for": "127.0.0.1", "x-user-id": new_id(), "x-roles": "admin",
    }  # fmt: skip

    answer = await buyer.rest.send("GET", f"/v1/payments/{new_id()}", headers=lies)

    assert answer.refusal == (403, "PERMISSION_DENIED")


async def test_the_request_id_of_an_answer_leads_to_the_logs_of_every_service_it_touched(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    answer = await buyer.buy(product)
    assert answer.expect().json["state"] == "PAID"
    request_id = answer.headers["x-request-id"]

    touched = {"orders", "catalog", "inventory", "payments"}

    async def found_in() -> set[str]:
        return {part for part in touched if request_id in shop.mesh.site.log(part).read_text(errors="replace")}

    await eventually(found_in, lambda found: found == touched)


async def test_a_client_cannot_choose_the_request_id_that_is_logged(shop: Shop) -> None:
    mine = f"mine-{new_id()}"

    answer = await shop.rest.send("GET", "/v1/products", headers={"x-request-id": mine})

    assert answer.headers["x-request-id"] != mine


async def test_logs_hold_no_secret(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    order = await buyer.buy_unpaid(product)
    await shop.rest.post("/v1/auth/login", {"email": buyer.email, "password": "wrong but private"})
    await shop.rest.get(f"/v1/orders?access_token={buyer.rest.token}")
    (await buyer.cancel(order["id"])).expect()

    secrets = {
        PASSWORD, "wrong but private", buyer.rest.token, buyer.rest.token.split(".")[2], shop.staff.token, buyer.email,
        order["payment"]["clientSecret"], *shop.mesh.site.secrets.values(),
    }  # fmt: skip
    for log in (shop.mesh.site.home / "logs").glob("*.log"):
        text = log.read_text(errors="replace")
        assert not {secret for secret in secrets if secret in text}, log.name
