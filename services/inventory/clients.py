"""The client of catalog: inventory sells products, and asks for their currency when the price of a sale is set."""

import uuid

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

    async def check_sale_price(self, product_id: uuid.UUID, price: Money) -> None:
        """Raises `ProductNotFound`, or `InvalidFields` if the product has another currency, which it keeps for good."""
        request = pb.GetSnapshotsRequest(product_ids=[str(product_id)])
        response = await self._target.call(self._stub.GetSnapshots, request)
        if not response.snapshots:
            raise ProductNotFound(productId=product_id)
        currency = response.snapshots[0].price.currency_code
        check_currency(price, currency, "salePrice", whose="the product's price")
