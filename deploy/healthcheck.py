"""Asks the service in this container how it is. Exit code 0 is good.

`healthcheck.py` says whether it is ready for calls. `healthcheck.py alive` is content with any answer: a service that
waits for its database is not ready, and starting it again would not help.
"""

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_SECONDS = 4


def main() -> int:
    port = os.environ.get("LISTEN", "0.0.0.0:50051").rpartition(":")[2]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_SECONDS, wait_for_ready=True
            )
        except grpc.RpcError as error:
            sys.stderr.write(f"{error.code().name}: {error.details()}\n")
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    sys.stdout.write(f"{status}\n")
    return 0 if status == "SERVING" or sys.argv[1:] == ["alive"] else 1


if __name__ == "__main__":
    sys.exit(main())
