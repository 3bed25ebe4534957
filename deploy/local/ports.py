"""The ports of a mesh, at fixed distances from one base port.

Two meshes run side by side if their base ports are 100 apart.
"""

import random
import socket
from dataclasses import dataclass

SERVICES = ("catalog", "identity", "inventory", "orders", "payments")
HOST = "127.0.0.1"
_GRPC, _METRICS, _HTTP = 10, 20, 30
_SPAN = 35
_PRIVILEGED = 1024
BASE_MIN, BASE_MAX = 1, 65_535 - _SPAN


class PortTaken(Exception):
    """Another process listens on a port that a part of the mesh needs."""

    def __init__(self, *, port: int, part: str, base: int) -> None:
        other = base + 1000 if base + 1000 <= BASE_MAX else base - 1000
        reason = "needs the rights of root" if port < _PRIVILEGED else "is taken by another process"
        super().__init__(f"port {port} of {part} {reason}. Use other ports: STAMPEDE_PORT={other} make up")


@dataclass(frozen=True)
class Ports:
    """The ports of one mesh; the base port is the gateway's."""

    base: int = 8080

    @property
    def gateway(self) -> int:
        return self.base

    @property
    def admin(self) -> int:
        return self.base + 1

    @property
    def postgres(self) -> int:
        return self.base + 2

    @property
    def valkey(self) -> int:
        return self.base + 3

    @property
    def nats(self) -> int:
        return self.base + 4

    @property
    def nats_monitor(self) -> int:
        return self.base + 5

    @property
    def sandbox(self) -> int:
        return self.base + 6

    def grpc(self, service: str) -> int:
        return self.base + _GRPC + SERVICES.index(service)

    def http(self, service: str) -> int:
        return self.base + _HTTP + SERVICES.index(service)

    def metrics(self, service: str) -> int:
        return self.base + _METRICS + SERVICES.index(service)


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket() as probe:
        # The servers set this, too: a connection in TIME_WAIT does not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_base(start: int = 20000, stop: int = 30000) -> int:
    """A base port whose whole range is free now. Raises `LookupError` if there is none.

    Bases are tried in random order: two programs that look at the same time hardly ever choose the same one.
    """
    bases = list(range(start, stop, 100))
    random.shuffle(bases)
    for base in bases:
        if all(is_free(base + offset) for offset in range(_SPAN)):
            return base
    raise LookupError(f"no {_SPAN} free ports in a row between {start} and {stop}")
