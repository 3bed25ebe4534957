"""Decides how to find out whether a provider event is true: the event is a hint, and moves no payment. Pure."""

import enum

from services.payments.domain import OPEN, Payment, State
from services.payments.providers.events import EventKind, ProviderEvent
from services.payments.providers.results import ChargeStatus

_WITHOUT_MONEY = (State.FAILED, State.CANCELLED)


class Need(enum.Enum):
    """The consequences of an event."""

    NOTHING = enum.auto()
    """The payment shows what the event claims, or can no longer change because of it."""
    CHECK = enum.auto()
    """The reconciler asks about the payment's charge. Another event may contradict this one, so it is done."""
    CHECK_UNTIL_SHOWN = enum.auto()
    """The reconciler asks about the payment's charge, and the event waits until the payment shows what it claims."""
    WAIT = enum.auto()
    """A call of our own is in progress, and its answer may be what the event reports."""
    LOOK_UP = enum.auto()
    """The provider is asked about the charge that the event names."""
    REPORT = enum.auto()
    """It reports a refund or a dispute; see `reports`."""


def need_of(event: ProviderEvent, payment: Payment, *, earlier_attempts: int) -> Need:
    """Return what `event` calls for, given its payment."""
    is_own = event.reference in payment.references
    if event.kind is not EventKind.CHARGE:
        return Need.REPORT
    if payment.state not in OPEN:
        # Money is news if the payment ended without it; nothing else is.
        is_other = not is_own or payment.state in _WITHOUT_MONEY
        if event.capture_reference:
            is_other = is_other or event.capture_reference != payment.capture_reference
        return Need.LOOK_UP if is_other and _reports_money(event) else Need.NOTHING
    if payment.state is State.AUTHORIZED and is_own and event.charge_status is ChargeStatus.AUTHORISED:
        return Need.NOTHING
    if event.reference in payment.former_references:
        return Need.LOOK_UP if _reports_money(event) else Need.NOTHING
    if payment.checkout_reference is not None and event.charge_status is not ChargeStatus.SUCCEEDED:
        return Need.CHECK  # of the page, or of the charge that it has made: the page knows how it stands
    if not is_own:
        is_first = payment.provider_reference is None and earlier_attempts == 0
        return Need.WAIT if is_first else Need.LOOK_UP
    if event.charge_status is ChargeStatus.SUCCEEDED:
        return Need.LOOK_UP
    return Need.CHECK if event.charge_status is not ChargeStatus.CANCELLED else Need.CHECK_UNTIL_SHOWN


def _reports_money(event: ProviderEvent) -> bool:
    if event.charge_status is ChargeStatus.AUTHORISED:
        return bool(event.capture_reference)
    return event.charge_status is ChargeStatus.SUCCEEDED
