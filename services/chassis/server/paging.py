"""Pages of lists: how many rows they hold, and the signed token with which the next one starts."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from google.protobuf.message import Message
from itsdangerous import BadData, URLSafeSerializer

from services.chassis.errors import InvalidFields

T = TypeVar("T")
M = TypeVar("M", bound=Message)

DEFAULT, MOST = 50, 200
_BYTES_MOST = 1 << 20
"""The most bytes of messages on a page. As JSON they are up to six times as long (`<` becomes `\\u003c`), and the
gateway buffers at most 8 MiB."""
_VERSION = 1
_SIGNER = {"digest_method": hashlib.sha256, "key_derivation": "hmac"}


class Pages:
    """Signs page tokens with the first of `secrets` and accepts those that any of them signed."""

    def __init__(self, *secrets: str) -> None:
        self._secrets = secrets[::-1]  # itsdangerous signs with the last one

    def sign(self, position: list[str], query: Mapping[str, object]) -> str:
        """Returns the token that continues `query` after `position`, the sort key of the last row."""
        return str(self._serializer(query).dumps([_VERSION, position]))

    def verify(self, token: str, query: Mapping[str, object]) -> list[str] | None:
        """Returns the position in `token`, None for an empty one (the first page).

        Raises `InvalidFields` if the token was changed, has another format version, or continues another query.
        """
        if not token:
            return None
        try:
            version, position = self._serializer(query).loads(token)
        except BadData:
            version, position = None, []
        if version != _VERSION:
            raise InvalidFields({"pageToken": "is not one that this service returned for this query"})
        return list(position)

    def _serializer(self, query: Mapping[str, object]) -> URLSafeSerializer:
        salt = json.dumps(query, sort_keys=True, default=str)
        return URLSafeSerializer(self._secrets, salt=salt, signer_kwargs=_SIGNER)


def size(requested: int) -> int:
    """Returns how many rows a page holds when a client requests `requested`; 0 means the default."""
    return min(requested or DEFAULT, MOST)


def fit(rows: Iterable[T], to_proto: Callable[[T], M]) -> list[M]:
    """Returns the messages of the first rows that fit on one page by their bytes; at least one, if there is one."""
    fitting: list[M] = []
    left = _BYTES_MOST
    for row in rows:
        message = to_proto(row)
        left -= message.ByteSize()
        if fitting and left < 0:
            break
        fitting.append(message)
    return fitting
