"""Helpers of all tests: servers, ports, tokens, clients, waits, crashes; and how much of a long proof runs."""

import os

WHOLE = bool(os.environ.get("PROVE"))
"""Whether long proofs run to their end, as in `make prove`."""


def budget(small: int, whole: int) -> int:
    """Return how many cases of a long proof run: `whole` in `make prove`, `small` in `make test`."""
    return whole if WHOLE else small
