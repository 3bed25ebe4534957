"""The saved answers of idempotency keys, kept for as long as Stripe keeps them. Protocols prefix their keys."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import Any

import orjson

from sandbox.state.journal import KeyRecord

KEYS_MAX = 500_000
KEPT_S = 24 * 3600


def fingerprint(method: str, path: str, tree: dict[str, Any]) -> str:
    """A hash that is equal for requests that differ only in the order of their parameters."""
    text = f"{method} {path} ".encode() + orjson.dumps(sorted(tree.items()))
    return blake2b(text, digest_size=12).hexdigest()


class KeyInUse(Exception):
    """The first request under the key is still running."""


class KeyReused(Exception):
    """The key was used for another request."""


class Keys:
    """Finished keys, oldest first, and keys whose request is running."""

    def __init__(self) -> None:
        self._finished: OrderedDict[str, KeyRecord] = OrderedDict()
        self._running: dict[str, str] = {}

    def begin(self, key: str, mark: str, now: int) -> KeyRecord | None:
        """The saved answer; or None: then the caller executes the request, and calls `finish` or `leave`.

        Raises `KeyReused` for another request under the same key, and `KeyInUse` while the first one is running.
        """
        self._forget(now)
        running = self._running.get(key)
        if running is not None:
            raise KeyInUse(key) if running == mark else KeyReused(key)
        found = self._finished.get(key)
        if found is None:
            self._running[key] = mark
        elif found.fingerprint != mark:
            raise KeyReused(key)
        return found

    def finish(self, record: KeyRecord) -> None:
        self._running.pop(record.key, None)
        self._finished[record.key] = record

    def leave(self, key: str) -> None:
        """Releases a key whose request ended without an answer to save."""
        self._running.pop(key, None)

    def load(self, record: KeyRecord) -> None:
        self._finished[record.key] = record

    def names(self, now: int) -> set[str]:
        self._forget(now)
        return set(self._finished)

    def _forget(self, now: int) -> None:
        while self._finished:
            oldest = next(iter(self._finished.values()))
            if oldest.created > now - KEPT_S and len(self._finished) <= KEYS_MAX:
                return
            self._finished.popitem(last=False)
