"""Adopts the provider's list of refunds: those made there, those that failed later, those of lost answers."""

from collections.abc import Mapping
from itertools import chain

import structlog
from prometheus_client import Counter

from services.chassis.data.db import Database
from services.chassis.events import outbox
from services.payments.books.chart import entries_of_refund
from services.payments.dispatch import settle
from services.payments.domain import OPEN, Refund, State
from services.payments.providers import PaymentProvider
from services.payments.providers.results import ProviderRefund, Unknown
from services.payments.refunds import rules
from services.payments.sql import journal, payments, refunds
from services.payments.sql.payments import RefundCheck

log = structlog.get_logger()

_FAILED_LATER = Counter("stampede_refunds_failed_later_total", "Refunds that failed after they had succeeded.")
_FOUND = Counter("stampede_refunds_found_total", "Refunds that were made at the provider, without a call of ours.")


async def check_refunds(db: Database, providers: Mapping[str, PaymentProvider], check: RefundCheck) -> None:
    """Compare a payment's refunds with the provider's list, and store what differs.

    Without an answer of the provider, or while the payment itself has no end, the check is claimed again later.
    """
    payment = check.payment
    async with db() as tx:
        charges = set(await refunds.read_charges(tx, payment.id))
    if payment.charge_reference is not None:
        charges.add((payment.provider, payment.charge_reference))
    if payment.state in OPEN:
        async with db.begin() as tx:
            await payments.check_now(tx, [payment.id])
        return
    listed = list[ProviderRefund]()
    for provider, charge in sorted(charges):
        at = providers.get(provider)
        if at is None:
            log.error("refunds are not compared: their provider is not set up", payment_id=payment.id)
            return
        found = await at.list_refunds(charge)
        if isinstance(found, Unknown):
            return
        listed += found
    await store_listed(db, check, listed)


async def store_listed(db: Database, check: RefundCheck, listed: list[ProviderRefund]) -> None:
    """Store the provider's list of a payment's refunds, and publish what it changes, in one transaction."""
    async with db.begin() as tx:
        payment = (await payments.lock(tx, [check.payment.id]))[check.payment.id]
        before = {refund.id: refund for refund in await refunds.lock_of_payment(tx, payment.id)}
        found = rules.compare(payment, list(before.values()), listed)
        new = await refunds.insert_external(tx, found.new)
        if found.changed:
            await refunds.store(tx, found.changed)
        moved = [entries_of_refund(before.get(refund.id), refund) for refund in (*new, *found.changed)]
        await journal.enter(tx, list(chain.from_iterable(moved)))
        now = found.payment
        if now != payment:
            await payments.store(tx, [now])
        if now.state is State.REFUNDED:
            await refunds.clear_failed_later(tx, [now.id])
        await payments.end_refund_check(tx, check)
        events = []
        if now.refunded_minor > payment.refunded_minor:
            events.append(settle.refunded_event(now))
        if now.refunded_minor < payment.refunded_minor or any(not refund.stray for refund in found.failed):
            events.append(settle.refund_failed_event(now))
        await outbox.publish(tx, events)
    _FOUND.inc(len(found.new))
    for refund in found.failed:
        _count_failed(refund)


def _count_failed(refund: Refund) -> None:
    if refund.problem == rules.FAILED_LATER:
        _FAILED_LATER.inc()
        log.error(
            "a refund failed after it had succeeded",
            payment_id=refund.payment_id, refund_id=refund.id, cause=refund.failure_reason,
        )  # fmt: skip
