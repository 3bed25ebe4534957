"""The client of catalog: asked when a product gets its first stock, and for the currency when a sale gets its price."""

import uuid
from collections.abc import Collection

from services.chassis.client.target import Target
from services.chassis.errors import AppError
from services.chassis.money import Money, check_currency
from stampede.catalog.v1 import snapshot_service_pb2 as pb
from stampede.catalog.v1.snapshot_service_pb2_grpc import SnapshotServiceStub


class ProductNotFound(AppError):
    code = "NOT_FOUND"
    template = "There is no product {productId}."


class Catalog:
    """Products, as catalog knows them."""

    def __init__(self, target: Target) -> None:
        self._target, self._stub = target, SnapshotServiceStub(target.channel)

    async def check_exist(self, product_ids: Collection[uuid.UUID]) -> None:
        """Raises `ProductNotFound` for the first of at most 1,000 products that does not exist; one call."""
        if not product_ids:
            return
        request = pb.GetSnapshotsRequest(product_ids=map(str, product_ids))
        response = await self._target.call(self._stub.GetSnapshots, request)
        known = {uuid.UUID(snapshot.product_id) for snapshot in response.snapshots}
        for product_id in product_ids:
            if product_id not in known:
                raise ProductNotFound(productId=product_id)

    async def check_sale_price(self, product_id: uuid.UUID, price: Money) -> None:
        """Raises `ProductNotFound`, or `InvalidFields` if the product has another currency, which it keeps for good."""
        request = pb.GetSnapshotsRequest(product_ids=[str(product_id)])
        response = await self._target.call(self._stub.GetSnapshots, request)
        if not response.snapshots:
            raise ProductNotFound(productId=product_id)
        currency = response.snapshots[0].price.currency_code
        check_currency(price, currency, "salePrice", whose="the product's price")
