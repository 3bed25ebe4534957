"""Tokens: JWTs that prove who someone is, refresh tokens that buy the next, and the keys that sign."""

import base64
import hashlib
import hmac
import json
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jwt
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from jwt.algorithms import ECAlgorithm

from services.chassis import ids
from services.chassis.server.access import AUDIENCE, ISSUER
from services.identity import domain

_ALGORITHM = "ES256"


class WrongSecret(Exception):
    """This process was given another secret than the one that made the keys; somebody must act."""


@dataclass(frozen=True, slots=True)
class Key:
    """A signing key as a process holds it."""

    kid: str
    sign_from: datetime
    public_jwk: dict[str, Any]
    private_key: ec.EllipticCurvePrivateKey


class Vault:
    """Seals private keys for the database, with keys of its own that are derived from `secret`."""

    def __init__(self, secret: str) -> None:
        self._fernet = Fernet(base64.urlsafe_b64encode(_derived(secret, b"stampede signing keys")))
        self._pepper = _derived(secret, b"stampede request digests")

    def seal(self, key: ec.EllipticCurvePrivateKey) -> bytes:
        return self._fernet.encrypt(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    def unseal(self, sealed: bytes) -> ec.EllipticCurvePrivateKey:
        """Raises `WrongSecret` where the key was sealed with another."""
        try:
            key = serialization.load_pem_private_key(self._fernet.decrypt(sealed), password=None)
        except InvalidToken:
            raise WrongSecret("KEY_SECRET does not open the signing keys in the database; see the README") from None
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    def peppered(self, digest: bytes) -> bytes:
        """A digest of something that holds a password, from which nobody without the secret can try passwords."""
        return hmac.digest(self._pepper, digest, hashlib.sha256)


class Keyring:
    """The keys of this process's memory; filled at start, and again every minute."""

    def __init__(self) -> None:
        self._keys: tuple[Key, ...] = ()
        self._jwks = b""

    def hold(self, keys: Sequence[Key]) -> None:
        """Replaces what is held."""
        self._keys = tuple(keys)
        self._jwks = json.dumps({"keys": [key.public_jwk for key in keys]}).encode()

    async def jwks(self) -> bytes:
        """The public keys, as a JSON Web Key Set."""
        assert self._jwks, "the keys are loaded before the first call is answered"
        return self._jwks

    def sign(
        self, *, user_id: uuid.UUID, roles: Sequence[str], session_id: uuid.UUID, now: datetime, lifetime_seconds: int
    ) -> str:
        """An access token."""
        key = domain.signing_key(self._keys, now)
        issued = int(now.timestamp())
        claims = {
            "iss": ISSUER, "aud": AUDIENCE, "sub": str(user_id), "roles": list(roles), "sid": str(session_id),
            "jti": str(ids.new()), "iat": issued, "exp": issued + lifetime_seconds,
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
    """What is stored of a refresh token. It is random, so a fast hash without salt is safe."""
    return hashlib.sha256(refresh_token.encode()).digest()


def _derived(secret: str, purpose: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=purpose).derive(secret.encode())
