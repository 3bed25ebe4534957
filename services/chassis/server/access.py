"""Access: the .proto declares the callers of each method; the gatekeeper admits them before a handler runs."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import jwt
from google.protobuf import descriptor_pool

from services.chassis.errors import AppError, PermissionDenied, Unauthenticated
from services.chassis.request_context import ANONYMOUS, Caller, Metadata
from services.chassis.telemetry.heartbeats import beat
from stampede.access.v1 import access_pb2

ISSUER = "https://stampede.local"
AUDIENCE = "stampede"
MESH_ISSUER = "stampede-mesh"
MESH_HEADER = "x-mesh-token"
_MESH_SECONDS = 600
_CACHE_MAX = 20_000
_REFETCH_SECONDS = 2.0
_LEEWAY_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Rule:
    """The declared access of a method."""

    access: int
    callers: frozenset[str]
    reads: bool = False
    """Whether a call changes nothing."""


def rule_of(method: str) -> Rule:
    """Returns the rule of `/package.Service/Method`. An undeclared one admits no caller."""
    name = method.lstrip("/").replace("/", ".")
    options = descriptor_pool.Default().FindMethodByName(name).GetOptions()
    callers = frozenset(options.Extensions[access_pb2.callers])
    reads = options.idempotency_level == options.NO_SIDE_EFFECTS
    return Rule(options.Extensions[access_pb2.access], callers, reads)


def is_for_mesh(method: str) -> bool:
    """Whether only services may call `method`."""
    return rule_of(method).access == access_pb2.ACCESS_MESH


class MeshIdentity:
    """The name of this service, and its proof for others: a short-lived token.

    The first of `secrets` signs; a token that any of them signed is accepted.
    """

    def __init__(self, service: str, *secrets: str) -> None:
        self.service = service
        self._secrets = secrets
        self._token, self._renew_at = "", 0.0

    def token(self) -> str:
        """Returns a token that is valid for at least five more minutes."""
        now = time.time()
        if now >= self._renew_at:
            claims = {"iss": MESH_ISSUER, "sub": self.service, "exp": int(now) + _MESH_SECONDS}
            self._token = jwt.encode(claims, self._secrets[0], algorithm="HS256")
            self._renew_at = now + _MESH_SECONDS / 2
        return self._token

    def verify(self, token: str) -> tuple[Caller, float]:
        """Returns the service that made `token` and when the token expires; raises `Unauthenticated`."""
        for secret in self._secrets:
            with contextlib.suppress(jwt.InvalidTokenError):
                claims = jwt.decode(
                    token, secret, algorithms=["HS256"], issuer=MESH_ISSUER, leeway=_LEEWAY_SECONDS,
                    options={"require": ["exp", "sub"]},
                )  # fmt: skip
                return Caller(service=claims["sub"]), claims["exp"]
        raise Unauthenticated


class Gatekeeper:
    """Admits or refuses calls. Verifies each token once and keeps the result until the token expires."""

    def __init__(self, mesh: MeshIdentity, fetch_jwks: Callable[[], Awaitable[bytes]]) -> None:
        """`fetch_jwks` returns identity's public keys as a JSON Web Key Set."""
        self._mesh, self._fetch_jwks = mesh, fetch_jwks
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = -_REFETCH_SECONDS
        self._fetching = asyncio.Lock()
        self._verified_tokens: dict[str, tuple[Caller, float]] = {}

    async def admit(self, rule: Rule, metadata: Metadata) -> Caller:
        """Returns the caller if `rule` admits it; raises `Unauthenticated` or `PermissionDenied`."""
        if rule.access == access_pb2.ACCESS_PUBLIC:
            return ANONYMOUS
        if rule.access == access_pb2.ACCESS_MESH:
            caller = await self._verified(str(metadata.get(MESH_HEADER, "")), mesh=True)
            allowed = caller.service in rule.callers
        else:
            scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
            if scheme.lower() != "bearer":
                raise Unauthenticated()
            caller = await self._verified(token.strip(), mesh=False)  # several spaces may follow the scheme
            allowed = _role_suffices(rule.access, caller)
        if not allowed:
            raise PermissionDenied()
        return caller

    async def _verified(self, token: str, *, mesh: bool) -> Caller:
        known = self._verified_tokens.get(token)
        # Users and services share the cache, so a token of one kind must not pass as one of the other.
        if known and known[1] > time.time() and bool(known[0].service) == mesh:
            return known[0]
        if not token:
            raise Unauthenticated()
        caller, expires = self._mesh.verify(token) if mesh else await self._verify_user(token)
        if len(self._verified_tokens) >= _CACHE_MAX:
            self._verified_tokens.clear()  # rare, and cheaper than an order of use kept on every call
        self._verified_tokens[token] = caller, expires
        return caller

    async def _verify_user(self, token: str) -> tuple[Caller, float]:
        try:
            key_id = jwt.get_unverified_header(token).get("kid", "")
            key = self._keys.get(key_id) or await self._refetched(key_id)
            claims = jwt.decode(
                token, key, algorithms=["ES256"], audience=AUDIENCE, issuer=ISSUER, leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "sub", "iat"]},
            )  # fmt: skip
            user_id = uuid.UUID(claims["sub"])
        except (jwt.InvalidTokenError, ValueError):
            raise Unauthenticated() from None
        return Caller(user_id=user_id, roles=frozenset(claims.get("roles", ()))), claims["exp"]

    async def _refetched(self, key_id: str) -> jwt.PyJWK:
        """Fetches the keys for an unknown `key_id`, at most every two seconds."""
        async with self._fetching:
            if key_id not in self._keys and time.monotonic() - self._fetched_at >= _REFETCH_SECONDS:
                await self._fetch()
        if key_id not in self._keys:
            raise Unauthenticated()
        return self._keys[key_id]

    async def _fetch(self) -> None:
        found = json.loads(await self._fetch_jwks())["keys"]
        before, self._keys = self._keys, {key["kid"]: jwt.PyJWK(key) for key in found}
        self._fetched_at = time.monotonic()
        if before.keys() - self._keys.keys():
            self._verified_tokens.clear()  # a key that is no longer published may have been stolen

    async def follow_keys(self) -> None:
        """Fetches the keys every two seconds, until cancelled. While identity is unavailable, the last ones count."""
        while beat():
            await asyncio.sleep(_REFETCH_SECONDS)
            if not self._keys:
                continue  # nobody has called yet
            async with self._fetching:
                with contextlib.suppress(AppError):
                    await self._fetch()


def _role_suffices(access: int, caller: Caller) -> bool:
    if access == access_pb2.ACCESS_CUSTOMER:
        return True
    if access == access_pb2.ACCESS_STAFF:
        return caller.is_staff
    return access == access_pb2.ACCESS_ADMIN and "admin" in caller.roles
