"""Page tokens: where the next page starts, sealed to the query it belongs to."""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping

from services.chassis.errors import InvalidFields

DEFAULT, MOST = 50, 200
_SEAL_BYTES = 16


class Pages:
    """Makes and opens page tokens. A token that was tampered with, or is from another query, is refused."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def seal(self, position: list[str], query: Mapping[str, object]) -> str:
        """The token that continues `query` after `position`, the last row's sort key."""
        body = json.dumps(position).encode()
        return base64.urlsafe_b64encode(self._sign(body, query) + body).decode().rstrip("=")

    def unseal(self, token: str, query: Mapping[str, object]) -> list[str] | None:
        """The position in `token`; None for the first page."""
        if not token:
            return None
        try:
            raw = base64.urlsafe_b64decode(token.encode() + b"=" * (-len(token) % 4))
        except ValueError:
            raise InvalidFields({"pageToken": "is not one that this service gave out"}) from None
        seal, body = raw[:_SEAL_BYTES], raw[_SEAL_BYTES:]
        if not hmac.compare_digest(seal, self._sign(body, query)):
            raise InvalidFields({"pageToken": "is not one that this service gave out for this query"})
        position: list[str] = json.loads(body)
        return position

    def _sign(self, body: bytes, query: Mapping[str, object]) -> bytes:
        text = json.dumps(query, sort_keys=True, default=str).encode()
        return hmac.digest(self._secret, text + b"\0" + body, hashlib.sha256)[:_SEAL_BYTES]


def size(asked: int) -> int:
    """How many rows a page holds when a client asks for `asked`; 0 means it does not care."""
    return min(asked or DEFAULT, MOST)
