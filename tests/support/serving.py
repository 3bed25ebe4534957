"""Servicers behind the real guard, on a port of the system's choice; and what they refuse with."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.chassis.server.guard import Guard
from services.chassis.server.registry import Registry
from tests.support import tokens


@asynccontextmanager
async def serving(
    service: str, *register: Callable[[Any], None], ports: list[int] | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server of `service` with the given servicers added. Its port is added to `ports`.

    async with serving("catalog", lambda s: add_CatalogServiceServicer_to_server(CatalogService(db), s)) as channel:
    """
    server = grpc.aio.server()
    for add in register:
        add(Registry(Guard(service, tokens.gatekeeper(service)), server))
    port = server.add_insecure_port("127.0.0.1:0")
    if ports is not None:
        ports.append(port)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(grace=None)


class Refusal:
    """The refusal of a failed call: `code`, `reason`, `domain`, `metadata`, and `fields` of invalid input."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code, self.message = error.code().name, error.details() or ""
        self.reason = self.domain = ""
        self.metadata: dict[str, str] = {}
        self.fields: list[str] = []
        self.retry_seconds: int | None = None
        status = rpc_status.from_call(error)
        for packed in status.details if status else ():
            info, bad, retry = (
                error_details_pb2.ErrorInfo(),
                error_details_pb2.BadRequest(),
                error_details_pb2.RetryInfo(),
            )
            if packed.Unpack(info):
                self.reason, self.domain, self.metadata = info.reason, info.domain, dict(info.metadata)
            elif packed.Unpack(bad):
                self.fields = [violation.field for violation in bad.field_violations]
            elif packed.Unpack(retry):
                self.retry_seconds = retry.retry_delay.seconds


async def refusal(call: Awaitable[Any]) -> Refusal:
    """Awaits a call that must fail; returns how."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return Refusal(caught.value)
