"""Checks that the products and customers of orders exist in catalog and identity."""

from collections.abc import Iterator, Mapping

from deploy.audit import repairs
from deploy.audit.findings import Check, Finding, Invariant
from deploy.audit.reading import fetch
from deploy.audit.reading.merge import missing
from deploy.audit.reading.sources import Connection

PRODUCTS = Check("order-product", Invariant.REFERENCES, "the products of orders exist in catalog", repairs.RESTORE)
CUSTOMERS = Check("order-customer", Invariant.REFERENCES, "the customers of orders exist in identity", repairs.RESTORE)
CURRENCY = Check("sale-currency", Invariant.PRODUCTS, "a sale has the currency of its product in catalog", repairs.LOOK)
CHECKS = (PRODUCTS, CUSTOMERS, CURRENCY)
_SALES = """
    SELECT id::text, product_id::text, currency FROM flash_sales
    WHERE closed_as IS NULL ORDER BY id
"""


def check_references(connections: Mapping[str, Connection]) -> Iterator[Finding]:
    """Compares the ids that orders names with the rows of their owners."""
    orders = connections["orders"]
    ids = fetch.products_of_orders(orders)
    for id_ in sorted(set(ids) - fetch.known_products(connections["catalog"], ids)):
        yield Finding(PRODUCTS, (id_,), f"orders refer to product {id_}, which does not exist")
    for id_ in missing(fetch.customers_of_orders(orders), fetch.users(connections["identity"])):
        yield Finding(CUSTOMERS, (id_,), f"orders refer to customer {id_}, which does not exist")
    sales = connections["inventory"].execute(_SALES).fetchall()
    currencies = fetch.currencies(connections["catalog"], {product for _, product, _ in sales})
    for sale, product, currency in sales:
        if currencies.get(product, currency) != currency:
            text = f"sale {sale}: sells product {product} in {currency}, its price is in {currencies[product]}"
            yield Finding(CURRENCY, (sale,), text)
