"""A service whose calls each last until a line arrives on standard input. Started by test_process.py."""

import asyncio
import sys
from typing import Any

from services.chassis.process import Process
from services.chassis.settings import ServiceSettings, load
from stampede.catalog.v1 import catalog_service_pb2 as pb
from stampede.catalog.v1.catalog_service_pb2_grpc import CatalogServiceServicer, add_CatalogServiceServicer_to_server


class Slow(CatalogServiceServicer):
    def __init__(self) -> None:
        self._one = asyncio.Lock()

    async def GetProduct(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        print("entered", flush=True)
        async with self._one:  # two threads that read would take each other's lines
            line = await asyncio.to_thread(sys.stdin.readline)
        return pb.Product(id=request.product_id, name=line.strip())


async def main() -> None:
    async with Process("catalog", load(ServiceSettings)) as process:
        add_CatalogServiceServicer_to_server(Slow(), process.server)
        await process.serve("stampede.catalog.v1.CatalogService")
    print("closed", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
