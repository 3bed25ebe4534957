"""Provider events, reduced to what is used. Pure."""

import enum
import uuid
from dataclasses import dataclass
from datetime import datetime

from services.payments.domain import RefundState
from services.payments.providers.results import ChargeStatus


class EventKind(enum.Enum):
    """The subject of a provider event."""

    CHARGE = enum.auto()
    REFUND = enum.auto()
    """A refund was made, has succeeded, or has failed. A hint: the provider's list of refunds decides."""
    DISPUTE = enum.auto()
    UNHANDLED = enum.auto()
    """Nothing here handles its type. It is stored and counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispute:
    """Money that the customer's bank demands back, as the provider reported it at `report_time`."""

    reference: str
    status: str
    reason: str
    amount_minor: int
    currency: str
    report_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderEvent:
    """A signed event of a provider, reduced to what is used: no secrets, no card data. It is a hint, not a result."""

    provider: str
    id: str
    type: str
    """The provider's name of the event, for metrics."""
    kind: EventKind = EventKind.CHARGE
    reference: str = ""
    """The provider's id of the charge."""
    capture_reference: str = ""
    """The provider's id of the money, as in `ChargeResult`."""
    payment_id: uuid.UUID | None = None
    """From the charge's metadata; None if that names none of our payments."""
    amount_minor: int = 0
    currency: str = ""
    charge_status: ChargeStatus | None = None
    """The final status that the event claims; None if a later event may contradict it."""
    refunded_minor: int | None = None
    """The sum of all refunds of the charge that the event claims; only in some events about refunds."""
    refund_reference: str = ""
    """The provider's id of the refund, if the event is about one."""
    refund_state: RefundState | None = None
    dispute: Dispute | None = None

    @property
    def look_up_reference(self) -> str:
        """The reference that is looked up at the provider to find out whether the event is true."""
        return self.capture_reference or self.reference
