"""Access: callers are admitted by role or name, on tokens that cannot be forged, exchanged or outlived."""

import base64
import json
import time
import uuid
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2  # noqa: F401  # contains a method without access
from jwt.algorithms import ECAlgorithm

from services.chassis.errors import PermissionDenied, Unauthenticated
from services.chassis.request_context import ANONYMOUS
from services.chassis.server import access
from services.chassis.server.access import AUDIENCE, ISSUER, Gatekeeper, MeshIdentity, Rule
from stampede.access.v1 import access_pb2
from stampede.catalog.v1 import catalog_service_pb2, snapshot_service_pb2  # noqa: F401  # declares the methods

ADA = uuid.UUID("01890000-0000-7000-8000-0000000000ad")
MESH_SECRET = "a mesh secret for tests, long enough"
CUSTOMER = Rule(access_pb2.ACCESS_CUSTOMER, frozenset())
MESH = Rule(access_pb2.ACCESS_MESH, frozenset({"orders"}))


class Identity:
    """Signs tokens and publishes keys; counts the fetches."""

    def __init__(self) -> None:
        self.keys = {"first": ec.generate_private_key(ec.SECP256R1())}
        self.fetches = 0

    async def jwks(self) -> bytes:
        self.fetches += 1
        published = [
            {**json.loads(ECAlgorithm.to_jwk(key.public_key())), "kid": kid, "alg": "ES256", "use": "sig"}
            for kid, key in self.keys.items()
        ]
        return json.dumps({"keys": published}).encode()

    def claims(self, *roles: str, **other: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": str(ADA), "iat": now, "exp": now + 600, "roles": list(roles)}
        return {key: value for key, value in {**claims, **other}.items() if value is not None}

    def token(self, *roles: str, kid: str = "first", **other: Any) -> str:
        return jwt.encode(self.claims(*roles, **other), self.keys[kid], algorithm="ES256", headers={"kid": kid})


@pytest.fixture
def identity() -> Identity:
    return Identity()


@pytest.fixture
def gate(identity: Identity) -> Gatekeeper:
    return Gatekeeper(MeshIdentity("catalog", MESH_SECRET), identity.jwks)


def bearer(token: str) -> access.Metadata:
    return {"authorization": f"Bearer {token}"}


def mesh(token: str) -> access.Metadata:
    return {"x-mesh-token": token}


def part(content: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


# Users


async def test_signed_in_user_is_admitted(gate: Gatekeeper, identity: Identity) -> None:
    caller = await gate.admit(CUSTOMER, bearer(identity.token("customer", "staff")))
    assert (caller.user_id, caller.roles, caller.service) == (ADA, {"customer", "staff"}, "")


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BeArEr ", "Bearer   "])
async def test_scheme_of_a_token_is_written_in_many_ways(gate: Gatekeeper, identity: Identity, scheme: str) -> None:
    """RFC 9110, 11.4: its case does not matter, and any number of spaces follows."""
    assert (await gate.admit(CUSTOMER, {"authorization": f"{scheme}{identity.token('customer')}"})).user_id == ADA


@pytest.mark.parametrize("scheme", ["", "Basic ", "Bearer:", "Bearer\t"])
async def test_token_of_another_scheme_is_refused(gate: Gatekeeper, identity: Identity, scheme: str) -> None:
    with pytest.raises(Unauthenticated):
        await gate.admit(CUSTOMER, {"authorization": f"{scheme}{identity.token('customer')}"})


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1_000_000_000},
        {"exp": None},
        {"sub": None},
        {"sub": "ada"},
        {"iat": None},
        {"iss": "https://elsewhere.example"},
        {"iss": None},
        {"aud": "another-shop"},
        {"aud": None},
        {"nbf": 4_000_000_000},
    ],
    ids="-".join,  # without the times, which differ between workers
)
async def test_token_with_a_wrong_or_missing_claim_is_refused(
    gate: Gatekeeper, identity: Identity, claims: dict[str, Any]
) -> None:
    with pytest.raises(Unauthenticated):
        await gate.admit(CUSTOMER, bearer(identity.token("admin", **claims)))


async def test_token_signed_by_another_key_of_the_same_id_is_refused(gate: Gatekeeper) -> None:
    with pytest.raises(Unauthenticated):
        await gate.admit(CUSTOMER, bearer(Identity().token("admin")))


async def test_token_with_added_roles_is_refused(gate: Gatekeeper, identity: Identity) -> None:
    header, _, signature = identity.token("customer").split(".")
    with pytest.raises(Unauthenticated):
        await gate.admit(CUSTOMER, bearer(f"{header}.{part(identity.claims('admin'))}.{signature}"))


async def test_unsigned_token_is_refused(gate: Gatekeeper, identity: Identity) -> None:
    for algorithm in ("none", "None", "NONE"):
        header = part({"alg": algorithm, "typ": "JWT", "kid": "first"})
        with pytest.raises(Unauthenticated):
            await gate.admit(CUSTOMER, bearer(f"{header}.{part(identity.claims('admin'))}."))


async def test_public_key_as_hmac_secret_is_refused(gate: Gatekeeper, identity: Identity) -> None:
    """HS256 with the published key as its secret, which a verifier that trusts the header would accept."""
    public = identity.keys["first"].public_key()
    for secret in (
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint),
        await identity.jwks(),
    ):
        signed = f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': 'first'})}.{part(identity.claims('admin'))}"
        signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(signed.encode(), secret)
        forged = f"{signed}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"
        with pytest.raises(Unauthenticated):
            await gate.admit(CUSTOMER, bearer(forged))


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer a.b.c", "Basic YWRhOmFkYQ==", "a.b.c", "Bearer ü"])
async def test_malformed_bearer_token_is_refused(gate: Gatekeeper, header: str) -> None:
    with pytest.raises(Unauthenticated):
        await gate.admit(CUSTOMER, {"authorization": header} if header else {})


async def test_cached_token_expires(gate: Gatekeeper, identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    token = identity.token("customer")
    await gate.admit(CUSTOMER, bearer(token))
    later = time.time() + 3600
    monkeypatch.setattr(access.time, "time", lambda: later)
    monkeypatch.setattr(jwt.api_jwt, "datetime", _Later)
    with pytest.raises(Unauthenticated):
        await gate.admit(CUSTOMER, bearer(token))


class _Later(jwt.api_jwt.datetime):  # type: ignore[misc, name-defined]
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return super().now(tz) + jwt.api_jwt.timedelta(hours=1)


# Keys


async def test_unknown_key_is_fetched_once_in_two_seconds(
    gate: Gatekeeper, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(access.time, "monotonic", lambda: now)
    identity.keys["second"] = ec.generate_private_key(ec.SECP256R1())
    unpublished = identity.token(kid="second")
    del identity.keys["second"]
    for _ in range(20):
        with pytest.raises(Unauthenticated):
            await gate.admit(CUSTOMER, bearer(unpublished))
    assert identity.fetches == 1
    now += 2.1
    with pytest.raises(Unauthenticated):
        await gate.admit(CUSTOMER, bearer(unpublished))
    assert identity.fetches == 2


async def test_new_key_is_fetched(gate: Gatekeeper, identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(access.time, "monotonic", lambda: now)
    await gate.admit(CUSTOMER, bearer(identity.token()))
    identity.keys["second"] = ec.generate_private_key(ec.SECP256R1())
    now += 2.1
    await gate.admit(CUSTOMER, bearer(identity.token(kid="second")))
    await gate.admit(CUSTOMER, bearer(identity.token()))
    assert identity.fetches == 2


async def test_known_keys_are_used_while_identity_is_unavailable(gate: Gatekeeper, identity: Identity) -> None:
    await gate.admit(CUSTOMER, bearer(identity.token()))

    async def away() -> bytes:
        raise ConnectionError

    identity.jwks = away  # type: ignore[method-assign]
    await gate.admit(CUSTOMER, bearer(identity.token("customer", jti="another")))


# Services


async def test_named_service_is_admitted(gate: Gatekeeper) -> None:
    caller = await gate.admit(MESH, mesh(MeshIdentity("orders", MESH_SECRET).token()))
    assert (caller.service, caller.user_id) == ("orders", None)


async def test_other_service_is_refused(gate: Gatekeeper) -> None:
    with pytest.raises(PermissionDenied):
        await gate.admit(MESH, mesh(MeshIdentity("payments", MESH_SECRET).token()))


async def test_mesh_secret_is_rotated_with_two_accepted(identity: Identity) -> None:
    both = MeshIdentity("catalog", "a new mesh secret, just as long as ours", MESH_SECRET)
    gate = Gatekeeper(both, identity.jwks)
    for token in (MeshIdentity("orders", MESH_SECRET).token(), MeshIdentity("orders", *both._secrets).token()):
        assert (await gate.admit(MESH, mesh(token))).service == "orders"


async def test_mesh_token_of_another_secret_is_refused(gate: Gatekeeper) -> None:
    with pytest.raises(Unauthenticated):
        await gate.admit(MESH, mesh(MeshIdentity("orders", "another secret, just as long as ours").token()))


async def test_expired_mesh_token_is_refused(gate: Gatekeeper) -> None:
    claims = {"iss": access.MESH_ISSUER, "sub": "orders", "exp": int(time.time()) - 60}
    with pytest.raises(Unauthenticated):
        await gate.admit(MESH, mesh(jwt.encode(claims, MESH_SECRET, algorithm="HS256")))


async def test_tokens_of_users_and_services_are_not_interchangeable(gate: Gatekeeper, identity: Identity) -> None:
    """Neither at first nor from the cache, which both kinds share."""
    user, service = identity.token("admin", sub=str(ADA)), MeshIdentity("orders", MESH_SECRET).token()
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            await gate.admit(MESH, mesh(user))
        with pytest.raises(Unauthenticated):
            await gate.admit(CUSTOMER, bearer(service))
        await gate.admit(CUSTOMER, bearer(user))
        await gate.admit(MESH, mesh(service))


# Rules


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [
        (access_pb2.ACCESS_CUSTOMER, {"customer", "staff", "admin", "none"}),
        (access_pb2.ACCESS_STAFF, {"staff", "admin"}),
        (access_pb2.ACCESS_ADMIN, {"admin"}),
        (access_pb2.ACCESS_UNSPECIFIED, set()),
    ],
)
@pytest.mark.parametrize("role", ["customer", "staff", "admin", "none"])
async def test_access_admits_exactly_its_roles(
    gate: Gatekeeper, identity: Identity, rule: int, allowed: set[str], role: str
) -> None:
    admitted = gate.admit(Rule(rule, frozenset()), bearer(identity.token(role)))
    if role in allowed:
        await admitted
    else:
        with pytest.raises(PermissionDenied):
            await admitted


async def test_public_method_ignores_the_token(gate: Gatekeeper) -> None:
    assert await gate.admit(Rule(access_pb2.ACCESS_PUBLIC, frozenset()), bearer("rubbish")) is ANONYMOUS


async def test_undeclared_method_admits_no_caller(gate: Gatekeeper) -> None:
    undeclared = access.rule_of("/grpc.health.v1.Health/Check")
    with pytest.raises(Unauthenticated):
        await gate.admit(undeclared, mesh(MeshIdentity("orders", MESH_SECRET).token()))


def test_rules_are_read_from_the_contract() -> None:
    public = access.rule_of("/stampede.catalog.v1.CatalogService/GetProduct")
    snapshots = access.rule_of("/stampede.catalog.v1.SnapshotService/GetSnapshots")
    assert public == Rule(access_pb2.ACCESS_PUBLIC, frozenset(), reads=True)
    assert snapshots == Rule(access_pb2.ACCESS_MESH, frozenset({"inventory", "orders"}), reads=True)
