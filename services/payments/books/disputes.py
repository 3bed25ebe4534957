"""Disputes: an event only has the provider's record read, and that record moves the dispute and the journal."""

import dataclasses
import uuid

import structlog
from prometheus_client import Counter
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.events import outbox
from services.payments.books.chart import entries_of_dispute, entries_of_refund
from services.payments.dispatch import settle
from services.payments.domain import (
    CHARGE_DISPUTED,
    DISPUTE_ENDS,
    DISPUTE_MOVES,
    REVERSAL,
    Dispute,
    DisputeState,
    Payment,
    Refund,
    RefundState,
    Settlement,
)
from services.payments.providers import PaymentProvider
from services.payments.providers.results import ProviderDispute, Unknown
from services.payments.refunds.rules import with_refunded
from services.payments.sql import disputes, journal, payments, refunds
from services.payments.sql.disputes import DisputeCheck

log = structlog.get_logger()

_DISPUTES = Counter("stampede_disputes_total", "Changes of disputes that providers have recorded.", ["status"])
_MISSING_MOST = 5
"""A dispute that the provider says so often it does not have is looked up no more."""


def after_record(before: Dispute | None, record: ProviderDispute, payment: Payment) -> Dispute:
    """Return the dispute as the provider's record has it. Its state only moves forward: an older one is out of date."""
    now = Dispute(
        provider=payment.provider, reference=record.reference, payment_id=payment.id, state=record.state,
        status=record.status, reason=record.reason, amount_minor=record.amount_minor, currency=record.currency,
        withdrawn_minor=record.withdrawn_minor, fee_minor=record.fee_minor, evidence_due_time=record.evidence_due_time,
    )  # fmt: skip
    if before is None or record.state is before.state or record.state in DISPUTE_MOVES[before.state]:
        return now
    return dataclasses.replace(now, state=before.state, status=before.status)


async def check_dispute(db: Database, provider: PaymentProvider, check: DisputeCheck) -> None:
    """Read the record of a dispute and store what it changes. Without an answer, the check is due again later."""
    record = await provider.look_up_dispute(check.reference)
    if isinstance(record, Unknown):
        return
    if record is None:
        await _note_missing(db, check)
        return
    await store_record(db, check, record)


async def store_record(db: Database, check: DisputeCheck, record: ProviderDispute) -> None:
    """Store a record, enter the money that it moves, and publish the dispute if it has changed: one transaction."""
    async with db.begin() as tx:
        payment = (await payments.lock(tx, [check.payment_id], [record.charge_reference])).get(check.payment_id)
        if payment is None or record.charge_reference != payment.charge_reference:
            log.error("a dispute is of another charge", dispute=record.reference, payment_id=check.payment_id)
            await disputes.finish_check(tx, check)
            return
        before = await disputes.read(tx, check.provider, check.reference)
        now = after_record(before, record, payment)
        if now != before:
            await disputes.store(tx, now)
            await journal.enter(tx, entries_of_dispute(before, now))
            await outbox.publish(tx, [settle.disputed_event(payment, now)])
            if now.state in DISPUTE_ENDS and payment.problem == CHARGE_DISPUTED:
                await _end_reversal(tx, payment, now)
        await disputes.finish_check(tx, check)
    if now != before:
        _DISPUTES.labels(now.status).inc()
        log.warning("a payment is disputed", payment_id=payment.id, dispute=now.reference, status=now.status)


async def _end_reversal(tx: AsyncSession, payment: Payment, dispute: Dispute) -> None:
    """Go on with a reversal that the dispute held up: lost money counts as refunded, the rest is refunded."""
    now = dataclasses.replace(payment, problem="")
    if dispute.state is DisputeState.LOST and (minor := min(dispute.withdrawn_minor, payment.left_minor)):
        (refund,) = await refunds.insert_external(tx, [_by_bank(payment, dispute, minor)])
        now = with_refunded(now, payment.refunded_minor + minor)
        await journal.enter(tx, entries_of_refund(None, refund))
        await outbox.publish(tx, [settle.refunded_event(now)])
    await refunds.sign_reversals(tx, payment.id, reason=REVERSAL, note=f"until the end of {dispute.reference}")
    await payments.store(tx, [now])


def _by_bank(payment: Payment, dispute: Dispute, amount_minor: int) -> Refund:
    return Refund(
        id=uuid.uuid5(payment.id, dispute.reference), payment_id=payment.id, provider=payment.provider,
        amount_minor=amount_minor, state=RefundState.SUCCEEDED, stray=False, external=True,
        charge_reference=payment.charge_reference or "", provider_reference=None, failure_reason="", problem="",
        attempt=1, checks=0, settlement=Settlement.BANK,
    )  # fmt: skip


async def _note_missing(db: Database, check: DisputeCheck) -> None:
    log.error("the provider has no such dispute", dispute=check.reference, payment_id=check.payment_id)
    if check.attempts >= _MISSING_MOST:
        async with db.begin() as tx:
            await disputes.finish_check(tx, check)
