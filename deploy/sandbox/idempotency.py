"""Which answer belongs to which Idempotency-Key, as Stripe keeps it."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

from deploy.sandbox.errors import invalid, key_in_use, key_reused
from deploy.sandbox.forms import Tree
from deploy.sandbox.journal import KeyRecord
from deploy.sandbox.render import dumps

KEY_LENGTH_MAX = 255
KEYS_MAX = 2_000_000
KEPT_S = 24 * 3600


def fingerprint(method: str, path: str, tree: Tree) -> str:
    """Equal for requests that mean the same, whatever the order of their parameters."""
    text = f"{method} {path} {dumps(sorted(tree.items()))}"
    return blake2b(text.encode(), digest_size=12).hexdigest()


class Keys:
    """Finished keys, oldest first, and those whose request still runs."""

    def __init__(self) -> None:
        self._finished: OrderedDict[str, KeyRecord] = OrderedDict()
        self._running: dict[str, str] = {}

    def begin(self, key: str, mark: str, now: int) -> KeyRecord | None:
        """The saved answer, or None when the caller must do the work and then call `finish` or `leave`.

        Raises `idempotency_error` for another request under the key, and 409 while the first runs.
        """
        if len(key) > KEY_LENGTH_MAX:
            raise invalid(f"Idempotency keys can have up to {KEY_LENGTH_MAX} characters.")
        self._forget(now)
        running = self._running.get(key)
        if running is not None:
            raise key_in_use(key) if running == mark else key_reused(key)
        found = self._finished.get(key)
        if found is None:
            self._running[key] = mark
        elif found.fingerprint != mark:
            raise key_reused(key)
        return found

    def finish(self, record: KeyRecord) -> None:
        self._running.pop(record.key, None)
        self._finished[record.key] = record

    def leave(self, key: str) -> None:
        """Frees a key whose request ended without an answer worth saving."""
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
