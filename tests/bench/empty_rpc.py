"""The server of E, the baseline: an empty grpc.aio method without interceptors.

`python -m tests.bench.empty_rpc PORT`
"""

import asyncio
import sys
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from stampede.identity.v1 import identity_service_pb2 as pb
from stampede.identity.v1 import identity_service_pb2_grpc as pb_grpc


class EmptyRpc(pb_grpc.IdentityServiceServicer):
    """Answers `POST /v1/auth/logout` with an empty message."""

    async def Logout(self, request: pb.LogoutRequest, context: Any) -> Empty:
        return Empty()


async def main(port: int) -> None:
    server = grpc.aio.server()
    pb_grpc.add_IdentityServiceServicer_to_server(EmptyRpc(), server)
    checks = health.aio.HealthServicer()  # the gateway sends no requests before a health check succeeds
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
