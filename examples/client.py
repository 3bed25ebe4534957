"""Print the products and the units left in each flash sale; needs only the stubs of Stampede."""

import os

import grpc

from stampede.catalog.v1.catalog_service_pb2 import ListProductsRequest
from stampede.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from stampede.inventory.v1.flash_sale_service_pb2 import FlashSale, ListFlashSalesRequest
from stampede.inventory.v1.flash_sale_service_pb2_grpc import FlashSaleServiceStub

with grpc.insecure_channel(os.environ["CATALOG_TARGET"]) as channel:
    products = CatalogServiceStub(channel).ListProducts(ListProductsRequest(page_size=10), timeout=5)
    for product in products.products:
        print(product.sku, product.name, product.price.minor_units, product.price.currency_code)

with grpc.insecure_channel(os.environ["INVENTORY_TARGET"]) as channel:
    sales = FlashSaleServiceStub(channel).ListFlashSales(ListFlashSalesRequest(page_size=10), timeout=5)
    for sale in sales.flash_sales:
        print(sale.title, FlashSale.State.Name(sale.state), f"{sale.remaining} of {sale.allocation} left")
