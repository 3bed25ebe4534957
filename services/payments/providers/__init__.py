"""The port to payment providers. One module a provider implements it, and alone imports that provider's SDK."""

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

from services.payments.domain import ChargeRecord, ChargeResult, Payment, ProviderRefund, Refund, RefundResult


class OutcomeUnknown(Exception):
    """The provider gave no final answer: the effect of the call may or may not have happened.

    Timeouts, lost connections, 429 and 5xx raise it. The caller repeats the call under the same key, or looks it up.
    """

    def __init__(self, operation: str, *, has_ended: bool = False) -> None:
        """`has_ended`: the provider has answered with an error, so the call can take no effect later."""
        super().__init__(operation)
        self.has_ended = has_ended


class Withdrawn(Exception):
    """A call was not sent, because it is not wanted any more."""


Check = Callable[[], Awaitable[None]]
"""Awaited after each wait, directly before a request that can take money. Raises `Withdrawn` if it is not wanted."""


class TooManyObjects(OutcomeUnknown):
    """A list is longer than one search may read."""


class PaymentProvider(Protocol):
    """One account at a payment provider.

    A method returns what the provider decided, and raises `OutcomeUnknown` for everything else; a decline is a result.
    Every call has a timeout, and waits for its turn: the provider limits the calls a second of an account.
    A call with an effect carries the idempotency key `payment/attempt/operation`, so a repeat has no second effect.
    An implementation may repeat a call by itself under the same key. It never chooses a new key: `Payment.attempt`
    changes after a decline, or after `find` has shown that nothing was charged.
    """

    name: str
    """Stored in `payments.provider`; finds the provider of a payment again."""

    key_lifetime: timedelta
    """The provider remembers an idempotency key for at least this long. Older keys are looked up, not repeated."""

    async def create(self, payment: Payment, check: Check) -> ChargeResult:
        """Begin the charge, and take the money at once if the payment has a card.

        Every repeat of an attempt sends the same parameters, because the provider binds the key to them.
        """

    async def confirm(self, payment: Payment, check: Check) -> ChargeResult:
        """Take the money of a begun charge with the payment's card. Return its current result if it has ended."""

    async def cancel(self, payment: Payment) -> ChargeResult:
        """Void a begun charge, so that it can never take money. Return its current result if it has ended."""

    async def retrieve(self, payment: Payment) -> ChargeResult:
        """Return the current result of a begun charge. Has no effect."""

    async def find(self, payments: Sequence[Payment]) -> dict[uuid.UUID, ChargeResult]:
        """Search the provider's records for payments, by their ids, in one walk. Has no effect.

        A payment without a result was never charged.
        """

    async def look_up(self, payment: Payment, reference: str) -> ChargeRecord | None:
        """Return the record of the charge `reference`, as a result of `payment`; None if there is none. Has no effect.

        An event has named the charge. The caller checks that it is one of `payment`.
        """

    async def refund(self, refund: Refund) -> RefundResult:
        """Return money to the customer, once, or return the current result of a refund whose reference is known.

        A refund that the provider refuses for good is a result with `RefundState.FAILED` and a reason.
        """

    async def list_refunds(self, charge_reference: str) -> list[ProviderRefund]:
        """Return all refunds of a charge, also failed ones and those that people made. Has no effect."""

    async def list_events(self, since: datetime, until: datetime) -> list[Mapping[str, Any]]:
        """Return the events of this span that report what no answer does: refunds and disputes. Has no effect.

        Raises `TooManyObjects` for a span with too many.
        """

    async def aclose(self) -> None:
        """Close the connections."""
