"""Events about refunds and disputes: these happen at the provider, without a call of ours."""

import uuid
from collections.abc import Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from services.payments.domain import Capture, Payment, RefundState, State
from services.payments.providers.events import EventKind, ProviderEvent
from services.payments.sql import disputes, payments, refunds

Report = tuple[ProviderEvent, Payment]


async def apply_reports(tx: AsyncSession, reports: Sequence[Report]) -> bool:
    """Act on events about refunds and disputes of locked payments. Return whether the reconciler has something to read.

    They are only hints, and may be late: the provider's list of refunds and its record of the dispute are read.
    """
    checks = await _refunds_to_check(tx, [report for report in reports if report[0].kind is EventKind.REFUND])
    if checks:
        await payments.check_refunds(tx, sorted(checks))
    named = [(event.provider, event.dispute.reference, payment.id) for event, payment in reports if event.dispute]
    await disputes.request_checks(tx, named)
    return bool(checks or named)


async def _refunds_to_check(tx: AsyncSession, reports: Sequence[Report]) -> set[uuid.UUID]:
    """Return the payments of events that report something new about a refund.

    The events of refunds that were made here report what their answers have said before.
    """
    named = [event.refund_reference for event, _ in reports if event.refund_reference]
    states = await refunds.read_states(tx, named) if named else {}
    return {payment.id for event, payment in reports if _is_new(event, payment, states)}


def _is_new(event: ProviderEvent, payment: Payment, states: Mapping[str, RefundState]) -> bool:
    if event.refund_reference in states:
        return states[event.refund_reference] is not event.refund_state
    if _is_release(event, payment):
        return False
    if event.refund_reference:
        return True
    own = event.reference == payment.provider_reference
    return not own or bool(payment.refunding_minor) or event.refunded_minor != payment.refunded_minor


def _is_release(event: ProviderEvent, payment: Payment) -> bool:
    """Whether an event reports money as refunded that was only set aside: providers do so after a void or a lapse."""
    is_own = (event.capture_reference or None) == payment.capture_reference
    is_uncaptured = payment.state in (State.AUTHORIZED, State.CANCELLED) and payment.capture is not Capture.AUTOMATIC
    return is_own and is_uncaptured
