"""Events about refunds and disputes: these happen at the provider, without a call of ours."""

import uuid
from collections.abc import Mapping, Sequence

import structlog
from prometheus_client import Counter
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.events import outbox
from services.payments.dispatch import settle
from services.payments.domain import Payment, RefundState
from services.payments.providers.events import Dispute, EventKind, ProviderEvent
from services.payments.sql import disputes, payments, refunds

log = structlog.get_logger()

_DISPUTES = Counter("stampede_disputes_total", "Changes of disputes that providers reported.", ["status"])
Report = tuple[ProviderEvent, Payment]


async def apply_reports(tx: AsyncSession, reports: Sequence[Report]) -> bool:
    """Store what events report about refunds and disputes of locked payments. Return whether refunds are compared now.

    A refund's event is only a hint, and may be late: the reconciler reads the provider's list of refunds.
    """
    checks = await _refunds_to_check(tx, [report for report in reports if report[0].kind is EventKind.REFUND])
    if checks:
        await payments.check_refunds(tx, sorted(checks))
    await _store_disputes(tx, [report for report in reports if report[0].kind is EventKind.DISPUTE])
    return bool(checks)


async def _refunds_to_check(tx: AsyncSession, reports: Sequence[Report]) -> set[uuid.UUID]:
    """Return the payments of events that report something new about a refund.

    The events of refunds that were made here report what their answers have said before.
    """
    named = [event.refund_reference for event, _ in reports if event.refund_reference]
    states = await refunds.read_states(tx, named) if named else {}
    return {payment.id for event, payment in reports if _is_new(event, payment, states)}


def _is_new(event: ProviderEvent, payment: Payment, states: Mapping[str, RefundState]) -> bool:
    if event.refund_reference:
        return states.get(event.refund_reference) is not event.refund_state
    own = event.reference == payment.provider_reference
    return not own or bool(payment.refunding_minor) or event.refunded_minor != payment.refunded_minor


async def _store_disputes(tx: AsyncSession, reports: Sequence[Report]) -> None:
    """Store the newest report of each dispute; publish and count those that changed."""
    newest: dict[str, tuple[str, Payment, Dispute]] = {}
    for event, payment in reports:
        assert event.dispute is not None
        earlier = newest.get(event.dispute.reference)
        if earlier is None or earlier[2].report_time <= event.dispute.report_time:
            newest[event.dispute.reference] = (event.provider, payment, event.dispute)
    rows = [(provider, payment.id, dispute) for provider, payment, dispute in newest.values()]
    changed = [newest[reference] for reference in sorted(await disputes.store(tx, rows))]
    for _, payment, dispute in changed:
        _DISPUTES.labels(dispute.status).inc()
        log.warning("a payment is disputed", payment_id=payment.id, dispute=dispute.reference, status=dispute.status)
    await outbox.publish(tx, [settle.disputed_event(payment, dispute) for _, payment, dispute in changed])
