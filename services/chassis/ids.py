"""Ids: UUIDs of version 7, which sort by creation time."""

import hashlib
import uuid

import uuid_utils.compat

# A derived id carries its time in steps of 2^30 ms (12 days): coarse, so that a repeat derives the same id; fine, so
# that ids of one period lie together in an index.
_COARSE_BITS = 30


def new() -> uuid.UUID:
    """Returns a new id. Ids of one process rise, also within one millisecond."""
    return uuid_utils.compat.uuid7()


def derive_id(*parts: uuid.UUID | str, now_ms: int) -> uuid.UUID:
    """Returns the id that belongs to `parts`: the same one within a period of twelve days.

    In the next period the same parts give another id. A caller that needs more keeps a unique key over the parts.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    time = now_ms >> _COARSE_BITS << _COARSE_BITS
    value = time << 80 | int.from_bytes(digest[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76  # version 7
    value = value & ~(0x3 << 62) | 0x2 << 62  # the variant of RFC 9562
    return uuid.UUID(int=value)
