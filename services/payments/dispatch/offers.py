"""Checks of the terms that customers ask the providers of this deployment for."""

import uuid
from collections.abc import Collection
from urllib.parse import urlsplit

from services.chassis.errors import InvalidFields
from services.payments.dispatch.saved_methods import SavedMethods
from services.payments.domain import Terms
from services.payments.providers import Providers

_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))


class Offers:
    """Checks the terms of attempts before orders begins them."""

    def __init__(
        self,
        providers: Providers,
        saved: SavedMethods,
        *,
        return_hosts: Collection[str] = (),
        is_local: bool = False,
    ) -> None:
        """Pages of providers send customers back to `return_hosts` only; a local shop may be at a loopback address."""
        self._providers, self._saved = providers, saved
        self._return_hosts, self._is_local = frozenset(return_hosts), is_local

    async def check(self, customer_id: uuid.UUID, terms: Terms, *, with_card: bool) -> None:
        """Raise `InvalidFields` if no provider here can begin an attempt of a customer with these terms.

        Raises `PaymentMethodNotFound` for a saved method that is not theirs.
        """
        if terms.provider and terms.provider not in self._providers:
            raise InvalidFields({"provider": f"must be one of {', '.join(sorted(self._providers))}"})
        provider = self._providers[terms.provider] if terms.provider else self._providers.default
        if with_card and not provider.can.charges_tokens:
            raise InvalidFields({"paymentMethod": f"must be empty: {provider.name} takes no tokens"})
        if terms.checkout and not provider.can.hosts_pages:
            raise InvalidFields({"checkout": f"must be false: {provider.name} has no page of its own"})
        if terms.checkout and not self._may_return_to(terms.return_url):
            raise InvalidFields({"returnUrl": "must be https, at a host of this shop"})

        if terms.saves_method and provider.vault is None:
            raise InvalidFields({"saveMethod": f"must be false: {provider.name} saves no methods"})
        if terms.saved_method:
            saved = await self._saved.get(customer_id, uuid.UUID(terms.saved_method))
            if terms.provider not in ("", saved.provider):
                raise InvalidFields({"provider": f"must be {saved.provider}, which keeps the saved method"})

    def _may_return_to(self, url: str) -> bool:
        """Whether the address is one of the shop: the provider's page must not send customers anywhere else."""
        try:
            parts = urlsplit(url)
            host, is_plain = parts.hostname, parts.port is None
        except ValueError:
            return False
        # Browsers read a backslash as a slash, and skip control characters: such an address may lead elsewhere.
        odd = any(character in "\\" or not character.isprintable() or character.isspace() for character in url)
        if odd or host is None or parts.username is not None or parts.password is not None:
            return False
        if parts.scheme == "https":
            return is_plain and host in self._return_hosts
        return parts.scheme == "http" and self._is_local and host in _LOOPBACK
