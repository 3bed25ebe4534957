"""Identifiers: UUIDs of version 7, which sort by the time they were made."""

import hashlib
import uuid

import uuid_utils.compat

# A derived id carries its time in steps of 2^30 ms (12 days): coarse enough that a repeat finds the same id,
# fine enough that ids of one season stand together in an index.
_COARSE_BITS = 30


def new() -> uuid.UUID:
    """A fresh id. Rises with time within a process, also within one millisecond."""
    return uuid_utils.compat.uuid7()


def derive_id(*parts: uuid.UUID | str, now_ms: int) -> uuid.UUID:
    """The id that belongs to `parts`: the same whenever it is asked for within twelve days.

    Across the end of such a period the same parts give another id, so whoever needs more must also keep a
    unique key over the parts themselves.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    time = now_ms >> _COARSE_BITS << _COARSE_BITS
    value = time << 80 | int.from_bytes(digest[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76  # version 7
    value = value & ~(0x3 << 62) | 0x2 << 62  # the variant of RFC 9562
    return uuid.UUID(int=value)
