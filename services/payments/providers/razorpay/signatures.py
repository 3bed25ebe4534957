"""Razorpay's signatures: an HMAC over the message alone, so the time is not protected."""

import hashlib
import hmac
from collections.abc import Sequence

from services.payments.domain import BadSignature


class Signatures:
    """The secrets by which messages are signed: during a rotation there are two."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = [secret.encode() for secret in secrets]

    def verify(self, message: bytes, signature: str) -> None:
        """Raise `BadSignature` unless one of the secrets has signed `message`."""
        given = signature.encode(errors="replace")
        right = [
            hmac.compare_digest(hmac.new(secret, message, hashlib.sha256).hexdigest().encode(), given)
            for secret in self._secrets
        ]
        if not any(right):
            raise BadSignature()
