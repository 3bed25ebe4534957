"""The first requests of every outside program: accounts, products with stock, live sales, lines of orders."""

from datetime import UTC, datetime, timedelta
from typing import Any

from deploy.client.answers import Json
from deploy.client.rest import Rest, User, new_id

ADMIN_EMAIL = "admin@stampede.local"
_HOUR = timedelta(hours=1)


def money(minor_units: int, currency: str = "USD") -> Json:
    return {"currencyCode": currency, "minorUnits": str(minor_units)}


def line(thing: Json, quantity: int = 1) -> Json:
    """An order line of a flash sale, or of a product from ordinary stock, whichever is given."""
    if "allocation" in thing:
        return {"productId": thing["productId"], "flashSaleId": thing["id"], "quantity": quantity}
    return {"productId": thing["id"], "quantity": quantity}


async def sign_up(rest: Rest, user: User) -> Json:
    """Registers the user and signs them in. Returns the user as the gateway shows it. Raises `RestError`."""
    account = {"email": user.email, "password": user.password, "requestId": new_id()}
    registered: Json = (await rest.post("/v1/auth/register", account)).expect().json["user"]
    await rest.sign_in(user)
    return registered


async def create_product(staff: Rest, *, price: Json, stock: int | None = None, **fields: Any) -> Json:
    """Creates a product, with `stock` units on hand if given. Raises `RestError`."""
    request = {"sku": f"SKU-{new_id()}", "name": "Retro clock", "price": price, "requestId": new_id(), **fields}
    product = (await staff.post("/v1/products", request)).expect().json
    if stock is not None:
        units = {"onHand": stock, "reason": "delivery", "requestId": new_id()}
        (await staff.put(f"/v1/stock/{product['id']}", units)).expect()
    return product


async def create_sale(
    staff: Rest, product: Json, *, units: int, price: Json, limit: int = 0, lasts: timedelta = _HOUR, **fields: Any
) -> Json:
    """Opens a flash sale that is live at once. Raises `RestError`."""
    now = datetime.now(UTC)
    request = {
        "productId": product["id"],
        "title": "Sixty seconds of clocks",
        "salePrice": price,
        "allocation": units,
        "perCustomerLimit": limit,
        "startTime": now.isoformat(),
        "endTime": (now + lasts).isoformat(),
        "requestId": new_id(),
        **fields,
    }
    return (await staff.post("/v1/flash-sales", request)).expect().json
