"""Tokens: signed access tokens (JWTs), the keys that sign them, and refresh tokens."""

import hashlib
import json
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from jwt.algorithms import ECAlgorithm

from services.chassis import ids
from services.chassis.data.sealing import Sealer, WrongSecret
from services.chassis.server.access import AUDIENCE, ISSUER
from services.identity import domain
from services.identity.domain import Lifetimes

_ALGORITHM = "ES256"


@dataclass(frozen=True, slots=True)
class Key:
    """A signing key in the memory of a process."""

    kid: str
    sign_from: datetime
    public_jwk: dict[str, Any]
    private_key: ec.EllipticCurvePrivateKey


class KeySealer:
    """Seals private keys for the database with the first of `secrets`; opens keys that any of them sealed."""

    def __init__(self, *secrets: str) -> None:
        self._sealer = Sealer("stampede signing keys", *secrets)

    def seal(self, key: ec.EllipticCurvePrivateKey) -> bytes:
        return self._sealer.seal(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def open(self, sealed: bytes) -> ec.EllipticCurvePrivateKey:
        """Return the private key. Raises `WrongSecret` if none of the secrets sealed it."""
        try:
            key = load_pem_private_key(self._sealer.open(sealed), password=None)
        except WrongSecret:
            raise WrongSecret("KEY_SECRET does not open the signing keys in the database; see the README") from None
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key


class Keyring:
    """The signing keys of this process. `keys.load_keys` fills it at start and twice a minute."""

    def __init__(self, lifetimes: Lifetimes) -> None:
        self.lifetimes = lifetimes
        self._keys: dict[datetime, Key] = {}
        self._jwks = b""

    def hold(self, keys: Sequence[Key]) -> None:
        """Replace all keys."""
        self._keys = {key.sign_from: key for key in keys}
        self._jwks = json.dumps({"keys": [key.public_jwk for key in keys]}).encode()

    async def jwks(self) -> bytes:
        """Return the public keys as a JSON Web Key Set."""
        assert self._jwks, "the keys are loaded before the first call is answered"
        return self._jwks

    def sign(self, *, user_id: uuid.UUID, roles: Sequence[str], session_id: uuid.UUID, now: datetime) -> str:
        """Return a signed access token."""
        key = self._keys[domain.current_sign_from(self._keys, now)]
        issued = int(now.timestamp())
        claims = {
            "iss": ISSUER, "aud": AUDIENCE, "sub": str(user_id), "roles": list(roles), "sid": str(session_id),
            "jti": str(ids.new()), "iat": issued, "exp": issued + self.lifetimes.access_seconds,
        }  # fmt: skip
        return jwt.encode(claims, key.private_key, algorithm=_ALGORITHM, headers={"kid": key.kid})


def new_key(sign_from: datetime) -> Key:
    private_key = ec.generate_private_key(ec.SECP256R1())
    kid = str(ids.new())
    public = json.loads(ECAlgorithm.to_jwk(private_key.public_key()))
    return Key(kid, sign_from, {**public, "kid": kid, "alg": _ALGORITHM, "use": "sig"}, private_key)


def new_refresh_token() -> str:
    return secrets.token_urlsafe(domain.REFRESH_TOKEN_BYTES)


def digest(refresh_token: str) -> bytes:
    """Return the stored hash of a refresh token. The token is random, so a fast hash without salt is safe."""
    return hashlib.sha256(refresh_token.encode()).digest()
