"""Tokens as identity would sign them, and the gatekeeper that believes them."""

import json
import time
import uuid

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from services.chassis.server.access import AUDIENCE, ISSUER, MESH_ISSUER, Gatekeeper, MeshIdentity

MESH_SECRET = "a mesh secret for tests and long enough"
_A_DAY = 86_400
_KEY = ec.generate_private_key(ec.SECP256R1())


async def jwks() -> bytes:
    key = {**json.loads(ECAlgorithm.to_jwk(_KEY.public_key())), "kid": "test", "alg": "ES256", "use": "sig"}
    return json.dumps({"keys": [key]}).encode()


def access_token(user_id: uuid.UUID, *roles: str, lifetime_seconds: int = _A_DAY, **claims: object) -> str:
    """A token for a user; `claims` override what it says. Good for a day, for modules that make it once."""
    now = int(time.time())
    said = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": str(user_id), "iat": now, "exp": now + lifetime_seconds,
        "roles": list(roles or ("customer",)),
    }  # fmt: skip
    return jwt.encode({**said, **claims}, _KEY, algorithm="ES256", headers={"kid": "test"})


def gatekeeper(service: str) -> Gatekeeper:
    return Gatekeeper(MeshIdentity(service, MESH_SECRET), jwks)


def as_user(user_id: uuid.UUID, *roles: str) -> tuple[tuple[str, str], ...]:
    """Metadata of a call by a signed-in user."""
    return (("authorization", f"Bearer {access_token(user_id, *roles)}"),)


def as_staff() -> tuple[tuple[str, str], ...]:
    return as_user(uuid.uuid4(), "staff")


def as_service(name: str) -> tuple[tuple[str, str], ...]:
    """Metadata of a call by another service of the mesh. Good for a day, for modules that make it once."""
    claims = {"iss": MESH_ISSUER, "sub": name, "exp": int(time.time()) + _A_DAY}
    return (("x-mesh-token", jwt.encode(claims, MESH_SECRET, algorithm="HS256")),)
