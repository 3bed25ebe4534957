"""Every port of a mesh, as a fixed distance from one base port.

Two checkouts run side by side when their base ports are 100 apart.
"""

import socket
from dataclasses import dataclass

SERVICES = ("catalog", "identity", "inventory", "orders", "payments")
HOST = "127.0.0.1"
_GRPC, _METRICS, _HTTP = 10, 20, 30
_SPAN = 35


class PortTaken(Exception):
    """Something else already listens where a part of the mesh wants to."""

    def __init__(self, *, port: int, part: str, base: int) -> None:
        super().__init__(
            f"port {port} is taken, and {part} wants it. Use other ports: STAMPEDE_PORT={base + 1000} make up"
        )


@dataclass(frozen=True)
class Ports:
    """The base port is the gateway's."""

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
    """Whether one could listen there now."""
    with socket.socket() as probe:
        # As the servers do: a connection that lingers in TIME_WAIT is no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_base(start: int = 20000, stop: int = 30000) -> int:
    """A base port whose whole range is free just now. Raises `LookupError` if there is none."""
    for base in range(start, stop, 100):
        if all(is_free(base + offset) for offset in range(_SPAN)):
            return base
    raise LookupError(f"no {_SPAN} free ports in a row between {start} and {stop}")
