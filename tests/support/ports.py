"""Ports for the servers that tests start."""

import os
import random
from collections.abc import Iterator

from deploy.local import ports

# Below the ports that the system gives to clients: nothing else takes one between the look and the server's start.
_FIRST, _FIRST_BASE, _SPAN = 10_000, 20_000, 5_000


def runner() -> int:
    """The number of this process among those that `pytest -n` started; 0 without it."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def free_port() -> int:
    """Return a port on which nothing listens. Each runner has ports of its own, and gets each of them once."""
    while not ports.is_free(port := next(_ports)):
        pass
    return port


def free_base() -> int:
    """Return the base port of a mesh. Each runner has ports of its own."""
    first = _FIRST_BASE + runner() % 2 * _SPAN
    return ports.free_base(first, first + _SPAN)


def _numbers() -> Iterator[int]:
    """All ports of this runner, from a random one on: the suite of another checkout may run beside this one."""
    first, start = _FIRST + runner() % 2 * _SPAN, random.randrange(_SPAN)
    while True:
        for offset in range(_SPAN):
            yield first + (start + offset) % _SPAN


_ports = _numbers()
