"""Events of providers. `inbox` stores and applies them; one module a provider verifies and reduces its own."""

from collections.abc import Mapping
from typing import Any, Protocol

from services.payments.domain import ProviderEvent


class Webhook(Protocol):
    """The receiving end of one provider's events."""

    def verify(self, body: bytes, headers: Mapping[str, Any]) -> ProviderEvent | None:
        """Check the signature of `body` and return its event; None for an event of no use here.

        Raises `BadSignature`, and `InvalidFields` for a body that is no event. Nothing in `body` is trusted before the
        signature is verified.
        """

    def reduce(self, event: object) -> ProviderEvent | None:
        """Return an event that the provider listed, as `verify` does; None for an event of no use here.

        Raises `InvalidFields` for a value that is no event.
        """
