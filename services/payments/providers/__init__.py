"""The port to payment providers. One adapter a provider implements it, and alone imports that provider's SDK."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from services.payments.domain import Payment, ProviderNotSetUp, Refund
from services.payments.providers.border import Check as Check
from services.payments.providers.border import Withdrawn as Withdrawn
from services.payments.providers.events import ProviderEvent
from services.payments.providers.limits import ProviderLimits
from services.payments.providers.results import (
    Card,
    ChargeRecord,
    ChargeResult,
    ProviderCharge,
    ProviderDispute,
    ProviderRefund,
    RefundResult,
    Unknown,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The abilities of a provider. Rules ask for one of them, never for the name of a provider."""

    charges_tokens: bool
    """Takes money at once with the token of a card. Without it, each customer pays in the browser."""
    voids: bool
    """Cancels a charge so that it can never take money. Without it, money may still arrive, and is then refunded."""
    charged_once: bool
    """Takes the money of a charge at most once. Without it, one charge may be paid twice: the second is a stray one."""
    hosts_pages: bool
    """Has a page of its own on which customers pay, and sends them back from it."""
    authorises_for: timedelta
    """Gives authorised money back by itself after this long."""
    signs_callbacks: bool
    """Signs what it hands to the customer's browser; see `verify_callback`."""


class Vault(Protocol):
    """The things that a provider keeps for customers. Every call may be repeated."""

    async def create_customer(self, customer_id: uuid.UUID) -> str | Unknown:
        """Make a customer at the provider; return its id there. A repeat within a day returns the same one."""

    async def list_cards(self, customer: str) -> list[Card] | Unknown:
        """Return the saved cards of the provider's `customer`, newest first. Has no effect."""

    async def remove_card(self, reference: str) -> bool | Unknown:
        """Remove a saved card, so that nothing can be charged with it. Return True also if it is gone already."""


class PaymentProvider(Protocol):
    """One account at a payment provider.

    A method returns what the provider decided. A call without a final answer is a value as well: a result with
    `ChargeStatus.UNKNOWN`, a refund without a state, or `Unknown`. The caller repeats it, or looks it up.
    Every call has a timeout, and waits for its turn: the provider limits the calls a second of an account.
    A call with an effect carries the idempotency key `payment/attempt/operation`, so a repeat has no second effect.
    An implementation may repeat a call by itself under the same key. It never chooses a new key: `Payment.attempt`
    changes after a decline, or after `find` has shown that nothing was charged.
    """

    name: str
    """Stored in `payments.provider`; finds the provider of a payment again."""

    can: Capabilities

    limits: ProviderLimits
    """The turns of its calls, and its circuit breaker."""

    @property
    def vault(self) -> Vault | None:
        """None for a provider that keeps nothing for customers."""

    key_lifetime: timedelta
    """The provider remembers an idempotency key for at least this long. Older keys are looked up, not repeated."""

    async def create(self, payment: Payment, check: Check, customer: str = "") -> ChargeResult:
        """Begin the charge, and take the money at once if the payment has a card. Of the provider's `customer`, if any.

        Every repeat of an attempt sends the same parameters, because the provider binds the key to them.
        """

    async def confirm(self, payment: Payment, check: Check) -> ChargeResult:
        """Take the money of a begun charge with the payment's card. Return its current result if it has ended."""

    async def capture(self, payment: Payment, amount_minor: int, check: Check) -> ChargeResult:
        """Take `amount_minor` of an authorised charge. Return its current result if it is not authorised."""

    async def void(self, payment: Payment) -> ChargeResult:
        """Cancel a begun charge, so that it can never take money. Return its current result if it has ended.

        A provider that cannot void returns the current result, or `CANCELLED` if it has taken nothing yet. Money that
        is set aside stays so if `Payment.keeps_authorisation`: the current result says it.
        """

    async def retrieve(self, payment: Payment) -> ChargeResult:
        """Return the current result of a begun charge. Has no effect."""

    async def find(self, payments: Sequence[Payment]) -> dict[uuid.UUID, ChargeResult] | Unknown:
        """Search the provider's records for payments, by their ids, in one walk. Has no effect.

        A payment without a result was never charged.
        """

    async def look_up(self, payment: Payment, reference: str) -> ChargeRecord | Unknown | None:
        """Return the record of the charge `reference`, as a result of `payment`; None if there is none. Has no effect.

        An event has named the charge. The caller checks that it is one of `payment`.
        """

    async def refund(self, refund: Refund) -> RefundResult:
        """Return money to the customer, once, or return the current result of a refund whose reference is known.

        A refund that the provider refuses for good is a result with `RefundState.FAILED` and a reason.
        """

    async def list_refunds(self, charge_reference: str) -> list[ProviderRefund] | Unknown:
        """Return all refunds of a charge, also failed ones and those that people made. Has no effect."""

    async def list_events(self, since: datetime, until: datetime) -> list[ProviderEvent] | Unknown:
        """Return the events of this span that report what no answer does: refunds and disputes. Has no effect."""

    async def list_charges(self, since: datetime, until: datetime) -> list[ProviderCharge] | Unknown:
        """Return what was captured of charges that were made in this span. Has no effect."""

    async def look_up_dispute(self, reference: str) -> ProviderDispute | Unknown | None:
        """Return the record of a dispute; None if there is none. Has no effect."""

    def verify_webhook(self, body: bytes, headers: Mapping[str, Any]) -> ProviderEvent | None:
        """Check the signature of `body` and return its event; None for an event of no use here.

        Raises `BadSignature`, and `InvalidFields` for a body that is no event. Nothing in `body` is trusted before the
        signature is verified.
        """

    def verify_callback(self, fields: Mapping[str, str]) -> str:
        """Check the signature of what the customer's browser was given; return the reference of its charge.

        Raises `BadSignature`; always if the provider signs no callbacks. A callback is a hint, as an event is.
        """

    async def aclose(self) -> None:
        """Close the connections."""


class Providers(Mapping[str, PaymentProvider]):
    """The providers of this process, by name. A payment stays at the one that its row names."""

    def __init__(self, *providers: PaymentProvider, default: str) -> None:
        """New payments begin at `default`."""
        self._by_name = {provider.name: provider for provider in providers}
        self.default = self._by_name[default]

    def __getitem__(self, name: str) -> PaymentProvider:
        return self._by_name[name]

    def get_known(self, name: str) -> PaymentProvider:
        """Return a provider that a client has named. Raises `ProviderNotSetUp`."""
        provider = self._by_name.get(name)
        if provider is None:
            raise ProviderNotSetUp(provider=name)
        return provider

    def __iter__(self) -> Any:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    async def aclose(self) -> None:
        """Close the connections of all."""
        for provider in self._by_name.values():
            await provider.aclose()
