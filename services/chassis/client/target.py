"""Calls to other services, with deadline, identity, bounded retries and circuit breaker."""

import json
import time
from typing import Any, TypeVar

import grpc
import structlog
from prometheus_client import Counter

from services.chassis import request_context
from services.chassis.errors import AppError, Unavailable
from services.chassis.server import statuses
from services.chassis.server.access import MESH_HEADER, MeshIdentity

log = structlog.get_logger()
M = TypeVar("M")

_FAILED = Counter("stampede_client_failures_total", "Calls that found the service unavailable.", ["target"])
_SECONDS_DEFAULT = 5.0
_FAILURES_TO_OPEN = 10
_OPEN_SECONDS = 1.0

# gRPC retries a call on UNAVAILABLE with jittered backoff. The throttle is the retry budget: if more than about one in
# ten calls fails, there are no retries until calls succeed again.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.1},
    "loadBalancingConfig": [{"round_robin": {}}],
}
_OPTIONS = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
]


class Target:
    """Another service of the mesh.

        inventory = Target("inventory", "inventory:50051", mesh)
        stub = ReservationServiceStub(inventory.channel)
        response = await inventory.call(stub.BatchReserve, request)

    A call raises `Unavailable` if the service does not answer in time, and `Refused` if it refuses.
    """

    def __init__(self, name: str, address: str, mesh: MeshIdentity) -> None:
        self.name = name
        self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._mesh = mesh
        self._failures, self._open_until = 0, 0.0

    async def call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Any, M]",
        request: Any,
        *,
        seconds: float = _SECONDS_DEFAULT,
    ) -> M:
        """Calls `method` with a deadline of `seconds`, or that of the current call if it is earlier."""
        if self._failures >= _FAILURES_TO_OPEN:
            if time.monotonic() < self._open_until:
                raise Unavailable(part=self.name)  # without a wait: the service is known to be unavailable
            # This call is the probe: its success closes the circuit. Until then other calls are refused.
            self._open_until = time.monotonic() + _OPEN_SECONDS
        call = request_context.current()
        left = call.seconds_left()
        hurried = left is not None and left < seconds
        if left is not None:
            seconds = min(seconds, left)
        if seconds <= 0:
            raise Unavailable(part=self.name)
        metadata = [("x-request-id", call.request_id), (MESH_HEADER, self._mesh.token())]
        if call.traceparent:
            metadata.append(("traceparent", call.traceparent))
        try:
            response = await method(request, timeout=seconds, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise self._count_failure(error, hurried=hurried) from error
        self._failures = 0
        return response

    def _count_failure(self, error: grpc.aio.AioRpcError, *, hurried: bool) -> AppError:
        refusal = statuses.from_rpc_error(error, self.name)
        if hurried and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return refusal  # the deadline of one caller says nothing about the service
        if isinstance(refusal, Unavailable):
            _FAILED.labels(self.name).inc()
            self._failures += 1
            if self._failures >= _FAILURES_TO_OPEN:
                self._open_until = time.monotonic() + _OPEN_SECONDS
        else:
            self._failures = 0
        return refusal

    async def close(self) -> None:
        await self.channel.close(grace=None)
