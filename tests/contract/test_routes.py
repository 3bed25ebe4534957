"""The REST surface of outside clients: the descriptors have the promised routes and JSON names."""

import importlib
import re

import generate
from google.api import annotations_pb2
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor

for source in generate.sources():
    importlib.import_module(source.removesuffix(".proto").replace("/", ".") + "_pb2")
POOL = descriptor_pool.Default()
FILES = [POOL.FindFileByName(source) for source in generate.sources()]

ROUTES = """
POST   /v1/auth/register
POST   /v1/auth/login
POST   /v1/auth/refresh
POST   /v1/auth/logout
GET    /v1/auth/me
PATCH  /v1/auth/me
POST   /v1/auth/me:changePassword
POST   /v1/auth/me:deactivate
POST   /v1/auth/verify-email
POST   /v1/auth/forgot-password
POST   /v1/auth/reset-password
GET    /v1/auth/me/addresses
POST   /v1/auth/me/addresses
GET    /v1/auth/me/addresses/{addressId}
PATCH  /v1/auth/me/addresses/{addressId}
DELETE /v1/auth/me/addresses/{addressId}
GET    /.well-known/jwks.json
GET    /v1/users
GET    /v1/users/{userId}
POST   /v1/users/{userId}:setRoles
POST   /v1/users/{userId}:lock
POST   /v1/users/{userId}:unlock

GET    /v1/products
GET    /v1/products/{productId}
GET    /v1/products/by-slug/{slug}
GET    /v1/products:suggest
POST   /v1/products
PATCH  /v1/products/{productId}
DELETE /v1/products/{productId}
POST   /v1/products/{productId}:activate
POST   /v1/products/{productId}:deactivate
POST   /v1/products/{productId}:applyDiscount
POST   /v1/products/{productId}:removeDiscount
POST   /v1/products/{productId}:duplicate
POST   /v1/products/{productId}/images
DELETE /v1/products/{productId}/images/{imageId}
POST   /v1/products/{productId}/images:reorder
POST   /v1/products:batchCreate
POST   /v1/products:batchUpdate
POST   /v1/products:import
GET    /v1/products:export
GET    /v1/products/{productId}/history

GET    /v1/stock/{productId}
PUT    /v1/stock/{productId}
POST   /v1/stock/{productId}:adjust
GET    /v1/stock/{productId}/movements
GET    /v1/flash-sales
GET    /v1/flash-sales/{saleId}
GET    /v1/flash-sales/{saleId}:watch
POST   /v1/flash-sales
PATCH  /v1/flash-sales/{saleId}
POST   /v1/flash-sales/{saleId}:cancel
POST   /v1/flash-sales/{saleId}:end

POST   /v1/orders
GET    /v1/orders
GET    /v1/orders/{orderId}
GET    /v1/orders/{orderId}:watch
POST   /v1/orders/{orderId}:cancel
GET    /v1/orders/{orderId}/log
GET    /v1/admin/orders
POST   /v1/orders/{orderId}:ship
POST   /v1/orders/{orderId}:deliver
POST   /v1/orders/{orderId}:refund
GET    /v1/admin/sagas
POST   /v1/admin/sagas/{orderId}:resume
POST   /v1/admin/sagas/{orderId}:compensate

POST   /v1/webhooks/stripe
POST   /v1/webhooks/razorpay
GET    /v1/payments/{paymentId}
GET    /v1/admin/payments
POST   /v1/payments/{paymentId}:refund
POST   /v1/payments/{paymentId}:capture
POST   /v1/payments/{paymentId}:void
POST   /v1/payments/razorpay:verify
POST   /v1/orders/{orderId}:pay
GET    /v1/payment-methods
DELETE /v1/payment-methods/{methodId}
"""

# Promised and not built yet. A route leaves this list when it exists, so the list only gets shorter.
PLANNED = """
PATCH  /v1/auth/me
POST   /v1/auth/me:changePassword
POST   /v1/auth/me:deactivate
POST   /v1/auth/verify-email
POST   /v1/auth/forgot-password
POST   /v1/auth/reset-password
GET    /v1/auth/me/addresses
POST   /v1/auth/me/addresses
GET    /v1/auth/me/addresses/{addressId}
PATCH  /v1/auth/me/addresses/{addressId}
DELETE /v1/auth/me/addresses/{addressId}
GET    /v1/users
GET    /v1/users/{userId}
POST   /v1/users/{userId}:setRoles
POST   /v1/users/{userId}:lock
POST   /v1/users/{userId}:unlock

GET    /v1/products:suggest
DELETE /v1/products/{productId}
POST   /v1/products/{productId}:applyDiscount
POST   /v1/products/{productId}:removeDiscount
POST   /v1/products/{productId}:duplicate
POST   /v1/products/{productId}/images
DELETE /v1/products/{productId}/images/{imageId}
POST   /v1/products/{productId}/images:reorder
POST   /v1/products:batchCreate
POST   /v1/products:batchUpdate
POST   /v1/products:import
GET    /v1/products:export
GET    /v1/products/{productId}/history

"""

# Answered by Envoy itself.
GATEWAY = {"GET /healthz", "GET /readyz", "GET /openapi.json", "GET /docs"}

FIELDS = {
    "type.v1.Money": "currencyCode minorUnits",
    "identity.v1.User": "id email displayName roles emailVerified createTime",
    "identity.v1.RegisterRequest": "email password displayName requestId",
    "identity.v1.RegisterResponse": "user",
    "identity.v1.LoginRequest": "email password",
    "identity.v1.Tokens": "accessToken refreshToken tokenType expiresIn",
    "identity.v1.RefreshRequest": "refreshToken",
    "identity.v1.LogoutRequest": "refreshToken",
    "catalog.v1.Product": "id sku slug name description category price originalPrice discountPercent attributes images"
    " active etag createTime updateTime",
    "catalog.v1.ListProductsRequest": "query category minPrice maxPrice attribute orderBy pageSize pageToken",
    "catalog.v1.ListProductsResponse": "products facets nextPageToken totalSize",
    "inventory.v1.Stock": "productId onHand held available",
    "inventory.v1.SetStockRequest": "productId onHand reason",
    "inventory.v1.AdjustStockRequest": "productId delta reason",
    "inventory.v1.ListFlashSalesRequest": "state pageSize pageToken",
    "inventory.v1.FlashSale": "id productId title salePrice allocation perCustomerLimit startTime endTime state"
    " remaining held sold etag",
    "orders.v1.PlaceOrderRequest": "requestId lines paymentMethod shippingAddress preferWait",
    "orders.v1.PlaceOrderLine": "productId quantity flashSaleId",
    "orders.v1.Order": "id customerId state stateReason lines total holdExpireTime payment shippingAddress etag"
    " createTime updateTime",
    "orders.v1.OrderLine": "productId sku name unitPrice quantity flashSaleId",
    "orders.v1.OrderPayment": "id provider state clientSecret checkoutUrl providerOrderId",
    "orders.v1.PayOrderRequest": "requestId provider paymentMethod savedMethodId checkout returnUrl",
    "payments.v1.ListPaymentsRequest": "state pageSize pageToken",
    "payments.v1.RefundPaymentRequest": "paymentId amount reason",
}
PLANNED_FIELDS = {"catalog.v1.Product.images", "catalog.v1.ListProductsResponse.facets"}

# proto3 JSON writes 64-bit integers as strings, so the type decides what a client reads.
JSON_NUMBERS = {
    "identity.v1.Tokens": "expiresIn",
    "inventory.v1.Stock": "onHand held available",
    "inventory.v1.FlashSale": "allocation perCustomerLimit remaining held sold",
    "orders.v1.OrderLine": "quantity",
    "catalog.v1.ListProductsResponse": "totalSize",
}
JSON_STRINGS = {"type.v1.Money": "minorUnits"}


def routes(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line]


def camel_case(path: str) -> str:
    """Return the path with its parameters in JSON's spelling."""
    return re.sub(r"\{(\w+)\}", lambda m: "{" + re.sub(r"_(\w)", lambda n: n[1].upper(), m[1]) + "}", path)


def existing_routes() -> set[str]:
    found = set()
    for file in FILES:
        for service in file.services_by_name.values():
            for method in service.methods:
                rule = method.GetOptions().Extensions[annotations_pb2.http]
                if verb := rule.WhichOneof("pattern"):
                    found.add(f"{verb.upper()} {camel_case(getattr(rule, verb))}")
    return found


EXISTING = existing_routes()


def named(fields: dict[str, str]) -> dict[str, FieldDescriptor | None]:
    """Return {message.field: its descriptor, or None} for the JSON names in `fields`."""
    found: dict[str, FieldDescriptor | None] = {}
    for message, names in fields.items():
        by_name = {field.json_name: field for field in POOL.FindMessageTypeByName(f"stampede.{message}").fields}
        found |= {f"{message}.{name}": by_name.get(name) for name in names.split()}
    return found


def test_promised_routes_exist() -> None:
    assert not set(routes(ROUTES)) - set(routes(PLANNED)) - EXISTING


def test_existing_routes_are_not_planned() -> None:
    assert not EXISTING & set(routes(PLANNED)), "remove these from PLANNED: they exist now"


def test_planned_routes_are_promised_and_listed_once() -> None:
    assert set(routes(PLANNED)) <= set(routes(ROUTES))
    assert len(routes(PLANNED)) == len(set(routes(PLANNED)))
    assert len(routes(ROUTES)) == len(set(routes(ROUTES)))


def test_no_service_takes_a_route_of_the_gateway() -> None:
    assert not EXISTING & GATEWAY


def test_messages_have_the_promised_fields() -> None:
    missing = {name for name, field in named(FIELDS).items() if field is None}
    assert not missing - PLANNED_FIELDS
    assert not PLANNED_FIELDS - missing, "remove these from PLANNED_FIELDS: they exist now"


def test_counts_are_json_numbers_and_amounts_json_strings() -> None:
    numbers, strings = named(JSON_NUMBERS), named(JSON_STRINGS)
    wrong = [name for name, field in numbers.items() if field is None or field.type != FieldDescriptor.TYPE_INT32]
    wrong += [name for name, field in strings.items() if field is None or field.type != FieldDescriptor.TYPE_INT64]
    assert not wrong
