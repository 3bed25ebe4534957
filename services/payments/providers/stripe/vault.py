"""The cards that customers have agreed to save, as Stripe keeps them."""

import uuid
from urllib.parse import quote

import stripe
from pydantic import BaseModel, ConfigDict

from services.payments.providers.border import returns
from services.payments.providers.limits import Turn
from services.payments.providers.limits.pacer import Endpoint
from services.payments.providers.results import Card
from services.payments.providers.stripe.transport import NOT_FOUND, Object, Transport, no_answer

_CARDS_MOST = 2  # pages of a hundred


class _CardObject(BaseModel):
    model_config = ConfigDict(extra="ignore")

    brand: str
    last4: str
    exp_month: int
    exp_year: int


class StripeVault:
    """The `Vault` of one Stripe account."""

    def __init__(self, api: Transport) -> None:
        self._api = api

    @returns
    async def create_customer(self, customer_id: uuid.UUID) -> str:
        params = {"metadata": {"customer_id": str(customer_id)}}
        try:
            made = await self._api.post(
                "create_customer", "/v1/customers", Turn(Endpoint.OPEN, customer_id), params, f"customer/{customer_id}"
            )
        except stripe.InvalidRequestError as error:
            raise no_answer("create_customer", error) from error
        return str(made["id"])

    @returns
    async def list_cards(self, customer: str) -> list[Card]:
        path = f"/v1/customers/{quote(customer, safe='')}/payment_methods"
        try:
            pages = self._api.list("list_cards", path, {"type": "card"}, pages_most=_CARDS_MOST)
            return [_card(method) async for method in pages]
        except stripe.InvalidRequestError as error:
            if error.http_status == NOT_FOUND:
                return []  # the customer was deleted in the dashboard, with all cards
            raise no_answer("list_cards", error) from error

    @returns
    async def remove_card(self, reference: str) -> bool:
        path = f"/v1/payment_methods/{quote(reference, safe='')}/detach"
        try:
            await self._api.post("remove_card", path, Turn(Endpoint.CHECK), {}, f"remove/{reference}")
        except stripe.InvalidRequestError:
            return True  # it is unknown, or belongs to nobody any more
        return True


def _card(method: Object) -> Card:
    card = _CardObject.model_validate(method["card"])
    return Card(
        reference=method["id"], brand=card.brand, last4=card.last4, expire_month=card.exp_month,
        expire_year=card.exp_year,
    )  # fmt: skip
