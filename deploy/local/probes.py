"""Probes that ask a part whether it is ready. Each returns a boolean; an exception means: not ready."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import psycopg
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.ports import HOST

Probe = Callable[[], Awaitable[bool]]


def postgres(port: int, password: str) -> Probe:
    """Asks whether the superuser can connect."""

    async def ready() -> bool:
        connection = await psycopg.AsyncConnection.connect(
            host=HOST, port=port, user="postgres", password=password, dbname="postgres", connect_timeout=2
        )
        await connection.close()
        return True

    return ready


def valkey(port: int, password: str) -> Probe:
    """Asks whether PING is answered."""

    async def ready() -> bool:
        return b"+PONG" in await _exchange(port, f"AUTH {password}\r\nPING\r\nQUIT\r\n".encode())

    return ready


def http(port: int, path: str) -> Probe:
    """Asks whether GET is answered with 200."""

    async def ready() -> bool:
        request = f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n"
        return (await _exchange(port, request.encode())).split(b" ", 2)[1] == b"200"

    return ready


def grpc_health(port: int) -> Probe:
    """Asks the standard health service whether the whole server is serving."""

    async def ready() -> bool:
        # A pool of its own: a shared one would reuse a connection that failed, with its backoff.
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"{HOST}:{port}", options=options) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=1)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    return ready


async def _exchange(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(request)
        return await reader.read(65536)
    finally:
        writer.close()
