"""The daily report: what a provider has captured, compared with what we count, over a span."""

import asyncio
import enum
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from prometheus_client import Gauge

from services.chassis import ids
from services.chassis.data.db import Database
from services.chassis.errors import AppError
from services.chassis.telemetry.heartbeats import beat
from services.payments.domain import State
from services.payments.providers import PaymentProvider, Providers
from services.payments.providers.events import ProviderEvent
from services.payments.providers.results import ChargeRecord, ChargeStatus, ProviderCharge, Unknown
from services.payments.sql import payments, provider_events, provider_reports
from services.payments.sql.provider_reports import Booked

log = structlog.get_logger()

_DIFFERENCES = Gauge("stampede_report_differences", "Differences that the last daily report found.", ["provider"])
_AGE = Gauge("stampede_report_age_seconds", "Time since the last daily report.", ["provider"])

SPAN = timedelta(hours=48)
"""A daily report covers so much: each charge twice, so that one that was missed while a report failed is found."""
_SETTLED = timedelta(minutes=10)
"""A change that is more recent may still be under way."""
_SLICE, _SLICE_LEAST = timedelta(hours=1), timedelta(seconds=60)
_AT_ONCE, _PAGE = 5_000, 1_000
_LOOK_UPS_MOST = 500
_DAY_SECONDS, _AGAIN_SECONDS, _LOOK_SECONDS = 86_400.0, 1_800.0, 60
_COUNTED = (State.SUCCEEDED, State.REFUNDED)


class Kind(enum.StrEnum):
    """The kinds of differences."""

    MISSING_HERE = "MISSING_HERE"
    """The provider has money that no payment here names: for example of the day that a restored database lacks."""
    MISSING_THERE = "MISSING_THERE"
    """A payment counts money that the provider does not have."""
    OTHER_AMOUNT = "OTHER_AMOUNT"
    """The amount or the currency differs."""
    OTHER_STATE = "OTHER_STATE"
    """The provider has the money, and the payment counts none."""
    OTHER_REFUNDS = "OTHER_REFUNDS"
    """Another sum has gone back."""


class ProviderSilent(AppError):
    code = "UNAVAILABLE"
    template = "The provider {provider} does not list its charges: the report is not complete."
    retry_seconds = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One difference between the provider's records and ours."""

    kind: Kind
    reference: str
    """The provider's id of the money."""
    order_id: str
    text: str
    payment_id: uuid.UUID | None = None
    charge: ProviderCharge | None = None


def compare(charge: ProviderCharge, booked: Booked | None) -> Difference | None:
    """Return the difference between what the provider has captured and our payment; None if they agree."""
    money = f"{charge.currency} {charge.amount_minor}"

    def difference(kind: Kind, text: str) -> Difference:
        return Difference(
            kind=kind, reference=charge.money, order_id=str(booked.order_id) if booked else charge.order_id, text=text,
            payment_id=booked.id if booked else None, charge=charge,
        )  # fmt: skip

    if booked is None:
        return difference(Kind.MISSING_HERE, f"the provider has {money}, of {charge.create_time:%Y-%m-%d %H:%M:%S}")
    if charge.money in booked.stray_references:
        return None
    is_own = charge.reference == booked.provider_reference and booked.capture_reference in (
        None, charge.capture_reference,
    )  # fmt: skip
    is_quiet = booked.quiet_seconds > _SETTLED.total_seconds()
    if not is_own or booked.state not in _COUNTED:
        text = f"the provider has {money}, and the payment is {booked.state} {'with' if is_own else 'without'} it"
        return difference(Kind.OTHER_STATE, text) if is_quiet else None
    if (charge.amount_minor, charge.currency) != (booked.amount_minor, booked.currency):
        return difference(Kind.OTHER_AMOUNT, f"the provider has {money}, we {booked.currency} {booked.amount_minor}")
    most = booked.returned_minor + booked.pending_minor
    if is_quiet and not booked.returned_minor <= charge.refunded_minor <= most:
        return difference(
            Kind.OTHER_REFUNDS, f"the provider has refunded {charge.refunded_minor}, we {booked.returned_minor}"
        )
    return None


class Report:
    """One comparison with one provider."""

    def __init__(self, db: Database, provider: PaymentProvider, since: datetime, until: datetime) -> None:
        self._db, self._provider, self._since, self._until = db, provider, since, until
        self._seen = set[str]()
        self.compared = 0

    async def differences(self) -> AsyncIterator[Difference]:
        """Yield what differs. Raises `ProviderSilent`."""
        async for charges in self._listed():
            self._seen |= {charge.money for charge in charges}
            self.compared += len(charges)
            for first in range(0, len(charges), _AT_ONCE):
                for found in await self._compare(charges[first : first + _AT_ONCE]):
                    yield found
        async for found in self._missing_there():
            yield found

    async def _listed(self) -> AsyncIterator[list[ProviderCharge]]:
        """Yield the provider's charges in slices: one that is too long is halved."""
        at, span = self._since, _SLICE
        while at < self._until:
            until = min(at + span, self._until)
            charges = await self._provider.list_charges(at, until)
            if isinstance(charges, Unknown):
                if not charges.too_many or span <= _SLICE_LEAST:
                    raise ProviderSilent(provider=self._provider.name)
                span /= 2
                continue
            yield charges
            at = until

    async def _compare(self, charges: Sequence[ProviderCharge]) -> Iterator[Difference]:
        booked = await provider_reports.read_named(
            self._db, self._provider.name, references=[charge.reference for charge in charges],
            ids=[charge.payment_id for charge in charges if charge.payment_id],
        )  # fmt: skip
        by_reference = {one.provider_reference: one for one in booked if one.provider_reference}
        by_id = {one.id: one for one in booked}
        named = (
            by_reference.get(charge.reference) or (by_id.get(charge.payment_id) if charge.payment_id else None)
            for charge in charges
        )
        return filter(None, map(compare, charges, named))

    async def _missing_there(self) -> AsyncIterator[Difference]:
        """Yield payments whose money the lists lack, and which the provider does not have when asked."""
        after, asked, name = None, 0, self._provider.name
        while page := await provider_reports.read_captured(
            self._db, name, since=self._since, until=self._until - _SETTLED, after=after, most=_PAGE
        ):
            after = page[-1].id
            for one in page:
                reference = one.capture_reference or one.provider_reference or ""
                if reference in self._seen:
                    continue
                asked += 1
                # A charge may be made later than its payment, after this span.
                if asked > _LOOK_UPS_MOST or not await self._is_there(one, reference):
                    text = f"we count {one.currency} {one.amount_minor}, and the provider does not have it"
                    yield Difference(
                        kind=Kind.MISSING_THERE, reference=reference, order_id=str(one.order_id), text=text,
                        payment_id=one.id,
                    )  # fmt: skip

    async def _is_there(self, booked: Booked, reference: str) -> bool:
        async with self._db() as tx:
            payment = (await payments.read(tx, [booked.id])).get(booked.id)
        if payment is None:
            return True
        record = await self._provider.look_up(payment, reference)
        if isinstance(record, Unknown):
            raise ProviderSilent(provider=self._provider.name)
        return isinstance(record, ChargeRecord) and record.result.status is ChargeStatus.SUCCEEDED


async def repair(db: Database, provider: PaymentProvider, found: Difference) -> bool:
    """Have a difference looked at again by the processes of the service. Return whether that can help.

    Both ways only have the provider asked: its answer moves the payment. Money without a payment, and an amount that
    differs, are for people.
    """
    if found.kind is Kind.OTHER_REFUNDS and found.payment_id:
        async with db.begin() as tx:
            await payments.check_refunds(tx, [found.payment_id])
        return True
    if found.kind is not Kind.OTHER_STATE or found.charge is None:
        return False
    charge = found.charge
    event = ProviderEvent(
        provider=provider.name, id=f"report.{charge.money}.{ids.new()}", type="report",
        reference=charge.reference, capture_reference=charge.capture_reference or "", payment_id=found.payment_id,
        amount_minor=charge.amount_minor, currency=charge.currency, charge_status=ChargeStatus.SUCCEEDED,
    )  # fmt: skip
    await provider_events.put(db, [event])
    return True


async def last_span(db: Database, span: timedelta = SPAN) -> tuple[datetime, datetime]:
    """Return the span that a report covers which begins now: up to what may still be under way."""
    now = await provider_reports.read_now(db)
    return now - span, now - _SETTLED


class Reporter:
    """Makes the daily reports. One process of all replicas makes each of them; all of them show its result."""

    def __init__(self, db: Database, providers: Providers) -> None:
        self._db, self._providers = db, providers

    async def run(self) -> None:
        """Make the reports that are due, until cancelled."""
        while beat():
            for name in self._providers:
                await self.report_once(name)
            for done in await provider_reports.read_done(self._db):
                _DIFFERENCES.labels(done.provider).set(done.differences)
                _AGE.labels(done.provider).set(done.age_seconds)
            for _ in range(_LOOK_SECONDS):
                beat()
                await asyncio.sleep(1)

    async def report_once(self, name: str) -> None:
        """Make a provider's report if it is due. One that fails is made again half an hour later."""
        if not await provider_reports.claim(self._db, name, pause=_AGAIN_SECONDS):
            return
        number, report = 0, Report(self._db, self._providers[name], *await last_span(self._db))
        try:
            async for found in report.differences():
                beat()
                number += 1
                log.error(
                    "a provider's record differs",
                    provider=name, kind=found.kind, reference=found.reference, order_id=found.order_id,
                    cause=found.text,
                )  # fmt: skip
        except ProviderSilent as error:
            log.warning("a report is not complete", cause=str(error))
            return
        log.info("a report was made", provider=name, charges=report.compared, differences=number)
        await provider_reports.finish(self._db, name, differences=number, pause=_DAY_SECONDS)
