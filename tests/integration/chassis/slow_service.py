"""A service whose calls each last until a line arrives on standard input. Started by test_process.py.

With RESTOCK=ends or RESTOCK=hangs it has a background task that does, once a line has arrived.
"""

import asyncio
import os
import sys
from typing import Any

from services.chassis.process import Process
from services.chassis.settings import ServiceSettings, load
from services.chassis.telemetry import heartbeats
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


async def end() -> None:
    """Ends its background task as nothing else can: a task that is cancelled is not started again."""
    await told()
    task = asyncio.current_task()
    assert task
    task.cancel()
    await asyncio.sleep(0)


async def hang() -> None:
    await told()
    await asyncio.Event().wait()


async def told() -> None:
    """From now on, a task that is silent is taken for one that stands still."""
    await asyncio.to_thread(sys.stdin.readline)
    heartbeats.SILENT_SECONDS = 0


async def main() -> None:
    async with Process("catalog", load(ServiceSettings)) as process:
        add_CatalogServiceServicer_to_server(Slow(), process.server)
        if work := {"ends": end, "hangs": hang}.get(os.environ.get("RESTOCK", "")):
            process.background("restock", work)
        await process.serve("stampede.catalog.v1.CatalogService")
    print("closed", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
