"""Sealing: encryption of values that a service stores, with keys derived from its secrets.

Fernet's tokens carry a format version. Several secrets open a value, so that a secret can be replaced.
"""

import base64

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_KEY_BYTES = 32


class WrongSecret(Exception):
    """No secret of this process opens the value. An operator must add the secret that sealed it."""


class Sealer:
    """Seals values with the first of `secrets` and opens those that any of them sealed.

    `purpose` separates keys: a value that was sealed for one purpose cannot be opened for another.
    """

    def __init__(self, purpose: str, *secrets: str) -> None:
        self._fernet = MultiFernet([Fernet(base64.urlsafe_b64encode(derive_key(s, purpose))) for s in secrets])

    def seal(self, value: bytes) -> bytes:
        return self._fernet.encrypt(value)

    def open(self, sealed: bytes) -> bytes:
        """Returns the value in `sealed`; raises `WrongSecret` if none of the secrets sealed it."""
        try:
            return self._fernet.decrypt(sealed)
        except InvalidToken:
            raise WrongSecret from None


def derive_key(secret: str, purpose: str) -> bytes:
    """Returns a key of 32 bytes for one purpose. `secret` must be random: nothing slows down guesses."""
    return HKDF(algorithm=hashes.SHA256(), length=_KEY_BYTES, salt=None, info=purpose.encode()).derive(secret.encode())
