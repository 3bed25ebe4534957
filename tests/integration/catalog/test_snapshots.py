"""Snapshots of products for other services."""

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from stampede.catalog.v1 import catalog_service_pb2 as pb
from stampede.catalog.v1 import snapshot_service_pb2 as snapshot_pb
from stampede.catalog.v1.snapshot_service_pb2_grpc import SnapshotServiceStub
from stampede.type.v1.money_pb2 import Money
from tests.integration.catalog.conftest import Create
from tests.support.serving import refusal
from tests.support.tokens import as_service, as_staff

Snapshots = Callable[..., Awaitable[snapshot_pb.GetSnapshotsResponse]]


@pytest.fixture
def snapshots(channel: grpc.aio.Channel) -> Snapshots:
    stub: Any = SnapshotServiceStub(channel)

    async def get(*product_ids: str, caller: str = "orders") -> snapshot_pb.GetSnapshotsResponse:
        request = snapshot_pb.GetSnapshotsRequest(product_ids=product_ids)
        response: snapshot_pb.GetSnapshotsResponse = await stub.GetSnapshots(request, metadata=as_service(caller))
        return response

    return get


async def test_unknown_ids_are_omitted_and_repeated_ids_returned_once(snapshots: Snapshots, create: Create) -> None:
    made = await create("A", 1999, name="Mug")
    found = await snapshots(made.id, str(uuid.uuid4()), made.id)
    assert list(found.snapshots) == [
        snapshot_pb.Snapshot(
            product_id=made.id, sku="A", name="Mug", price=Money(currency_code="USD", minor_units=1999), active=True
        )
    ]
    assert not (await snapshots(str(uuid.uuid4()))).snapshots


async def test_the_snapshot_of_an_inactive_product_is_inactive(
    catalog: Any, snapshots: Snapshots, create: Create
) -> None:
    made = await create()
    await catalog.DeactivateProduct(pb.DeactivateProductRequest(product_id=made.id), metadata=as_staff())
    assert [snapshot.active for snapshot in (await snapshots(made.id)).snapshots] == [False]


async def test_a_thousand_ids_are_accepted_and_more_refused(snapshots: Snapshots, create: Create) -> None:
    made = await create()
    others = [str(uuid.uuid4()) for _ in range(999)]
    assert len((await snapshots(made.id, *others)).snapshots) == 1
    for refused in (await refusal(snapshots(made.id, *others, made.id)), await refusal(snapshots())):
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ["productIds"])
    assert (await refusal(snapshots("x"))).fields == ["productIds[0]"]


async def test_only_named_services_may_get_snapshots(channel: grpc.aio.Channel, snapshots: Snapshots) -> None:
    product = str(uuid.uuid4())
    assert (await refusal(snapshots(product, caller="payments"))).code == "PERMISSION_DENIED"
    await snapshots(product, caller="orders")
    stub: Any = SnapshotServiceStub(channel)
    request = snapshot_pb.GetSnapshotsRequest(product_ids=[product])
    for metadata in (None, as_staff()):
        assert (await refusal(stub.GetSnapshots(request, metadata=metadata))).code == "UNAUTHENTICATED"
