"""The cards that customers have agreed to save. The providers keep them; here is a copy of what customers see."""

import asyncio
import uuid

import structlog

from services.chassis.data.db import Database
from services.chassis.telemetry.heartbeats import beat
from services.payments.domain import Payment, PaymentMethodNotFound
from services.payments.providers import Providers, Vault
from services.payments.providers.results import Unknown
from services.payments.sql import saved_methods as sql
from services.payments.sql.saved_methods import SavedMethod

log = structlog.get_logger()

_ANSWER_SECONDS = 2.0
"""A list waits so long for the provider; without its answer, it is as it was last."""
_DETACH_SECONDS = 30.0
_DETACH_MOST = 100


class SavedMethods:
    """The actions on saved methods."""

    def __init__(self, db: Database, providers: Providers) -> None:
        self._db, self._providers = db, providers

    async def customer_of(self, payment: Payment) -> str | Unknown:
        """Return the provider's id of a payment's customer, who is made there if they are new."""
        vault = self._vault(payment.provider)
        assert vault, "the terms were checked"
        known = await sql.customers(self._db, payment.customer_id)
        if payment.provider in known:
            return known[payment.provider]
        made = await vault.create_customer(payment.customer_id)
        if isinstance(made, Unknown):
            return made
        return await sql.insert_customer(self._db, payment.customer_id, payment.provider, made)

    async def get(self, customer_id: uuid.UUID, method_id: uuid.UUID) -> SavedMethod:
        """Return a saved method of a customer. Raises `PaymentMethodNotFound`."""
        method = await sql.read(self._db, customer_id, method_id)
        if method is None or self._vault(method.provider) is None:
            raise PaymentMethodNotFound(paymentMethodId=method_id)
        return method

    async def page(self, customer_id: uuid.UUID, *, before: uuid.UUID | None, most: int) -> list[SavedMethod]:
        """Return saved methods of a customer, newest first. The first page asks the provider before."""
        if before is None:
            for provider, customer in (await sql.customers(self._db, customer_id)).items():
                await self._update(customer_id, provider, customer)
        return await sql.page(self._db, customer_id, before=before or uuid.UUID(int=2**128 - 1), most=most)

    async def _update(self, customer_id: uuid.UUID, provider: str, customer: str) -> None:
        """Take over what the provider keeps for a customer, if it answers."""
        if (vault := self._vault(provider)) is None:
            return
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                cards = await vault.list_cards(customer)
        except TimeoutError:
            cards = Unknown()
        if isinstance(cards, Unknown):
            log.info("saved methods are listed as they were", provider=provider)
            return
        async with self._db.begin() as tx:
            await sql.put(tx, customer_id, provider, cards)

    async def remove(self, customer_id: uuid.UUID, method_id: uuid.UUID) -> None:
        """Remove a saved method, here at once and at the provider soon. Raises `PaymentMethodNotFound`."""
        removed = await sql.remove(self._db, customer_id, method_id)
        if removed is None:
            raise PaymentMethodNotFound(paymentMethodId=method_id)
        provider, reference = removed
        if reference:
            await self._detach(provider, reference, seconds=_ANSWER_SECONDS)

    async def detach_pending(self) -> None:
        """Remove cards at providers that did not answer at first, until cancelled."""
        while beat():
            for provider, reference in await sql.pending(self._db, most=_DETACH_MOST):
                beat()
                await self._detach(provider, reference, seconds=_DETACH_SECONDS)
            await asyncio.sleep(_DETACH_SECONDS)

    async def _detach(self, provider: str, reference: str, *, seconds: float) -> None:
        if (vault := self._vault(provider)) is None:
            return
        try:
            async with asyncio.timeout(seconds):
                removed = await vault.remove_card(reference)
        except TimeoutError:
            removed = Unknown()
        if not isinstance(removed, Unknown):
            await sql.mark_detached(self._db, provider, reference)

    def _vault(self, provider: str) -> Vault | None:
        return self._providers[provider].vault if provider in self._providers else None
