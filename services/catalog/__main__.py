"""Composes and starts the catalog service."""

from services.catalog.rpc import CatalogService, SnapshotService
from services.catalog.settings import Settings
from services.chassis.data import idempotency
from services.chassis.process import Process, run
from services.chassis.server.paging import Pages
from stampede.catalog.v1.catalog_service_pb2_grpc import add_CatalogServiceServicer_to_server
from stampede.catalog.v1.snapshot_service_pb2_grpc import add_SnapshotServiceServicer_to_server


async def main(config: Settings) -> None:
    async with Process("catalog", config) as process:
        pages = Pages(*config.page_secret.values())
        add_CatalogServiceServicer_to_server(CatalogService(process.db, pages), process.server)
        add_SnapshotServiceServicer_to_server(SnapshotService(process.db), process.server)
        process.run_cleanups(idempotency.CLEANUP)
        await process.serve("stampede.catalog.v1.CatalogService", "stampede.catalog.v1.SnapshotService")


if __name__ == "__main__":
    run("catalog", Settings, main)
