"""The table `refunds`: money that goes back to customers, and the calls of staff that began it."""

import dataclasses
import uuid
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.cleanup import delete_old_rows
from services.payments.dispatch.rules import refund_check_seconds
from services.payments.domain import (
    CHARGE_DISPUTED,
    LEASE_SECONDS,
    Calls,
    Payment,
    Refund,
    RefundState,
    Settlement,
)
from services.payments.sql import leases, payment_columns, payments, schema


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewRefund:
    """A refund to insert. `stray_reference` is the provider's id of the stray charge that it returns."""

    id: uuid.UUID
    payment: Payment
    amount_minor: int
    reason: str
    stray_reference: str | None = None
    stray_provider: str = ""
    """The provider of that charge, if it is another than that of the payment."""


_NAMES = tuple(field.name for field in dataclasses.fields(Refund))
_COLUMNS = tuple(getattr(schema.Refund, name) for name in _NAMES)

REQUESTS_CLEANUP = delete_old_rows("requests", keep="7 days")
"""A repeat of a refund request returns its first refund for a week: money gets more than the contract's one day."""

# The arrival of a stray charge is recorded once, by the refund that is known first. The payment is locked.
_OF_CHARGE = "FROM refunds AS o WHERE o.payment_id = n.payment_id AND o.charge_reference = n.reference AND o.stray"
_RECEIVED_BY_OURS = (
    f"CASE WHEN n.stray THEN greatest(n.amount - (SELECT coalesce(sum(o.received_minor), 0) {_OF_CHARGE}), 0)"
    " ELSE 0 END"
)
_RECEIVED_BY_OTHERS = (
    f"CASE WHEN n.stray AND NOT EXISTS (SELECT {_OF_CHARGE} AND NOT o.external) THEN n.amount ELSE 0 END"
)


class RefundOfPayment(NamedTuple):
    """A refund and its payment, read in one statement."""

    refund: Refund
    payment: Payment


class Refusals(NamedTuple):
    """The refunds of a payment that the provider has refused: their number, and the age of the last refusal."""

    number: int = 0
    age: timedelta = timedelta.max
    disputed: bool = False
    """Whether one was refused because of a dispute."""


def _from_row(row: Sequence[Any]) -> Refund:
    values = dict(zip(_NAMES, row, strict=True))
    values["state"], values["settlement"] = RefundState(values["state"]), Settlement(values["settlement"])
    return Refund(**values)


async def insert(tx: AsyncSession, new: Sequence[NewRefund]) -> list[Refund]:
    """Insert refunds and count them into their payments, which the caller has locked. Return those inserted.

    A refund that exists already is left alone, for example that of a stray charge which is reported twice.
    """
    if not new:
        return []
    inserted = await tx.execute(
        text(
            "INSERT INTO refunds (id, payment_id, provider, amount_minor, reason, state, stray, charge_reference,"  # noqa: S608
            " external, failure_reason, problem, attempt, checks, received_minor, next_check_time)"
            " SELECT n.id, n.payment_id, n.provider, n.amount, n.reason, 'PENDING', n.stray, n.reference, false, '',"
            f" '', 1, 0, {_RECEIVED_BY_OURS},"
            " now() + CASE WHEN n.stray THEN interval '0' ELSE make_interval(secs => :lease) END"
            " FROM unnest(CAST(:ids AS uuid[]), CAST(:payments AS uuid[]), CAST(:providers AS text[]),"
            " CAST(:amounts AS bigint[]), CAST(:reasons AS text[]), CAST(:strays AS boolean[]),"
            " CAST(:references AS text[]))"
            " AS n(id, payment_id, provider, amount, reason, stray, reference)"
            f" ORDER BY n.id ON CONFLICT DO NOTHING RETURNING {', '.join(_NAMES)}"
        ),
        {
            "ids": [r.id for r in new],
            "payments": [r.payment.id for r in new],
            "providers": [r.stray_provider or r.payment.provider for r in new],
            "amounts": [r.amount_minor for r in new],
            "reasons": [r.reason for r in new],
            "strays": [r.stray_reference is not None for r in new],
            "references": [r.stray_reference or r.payment.charge_reference for r in new],
            "lease": LEASE_SECONDS,
        },
    )
    made = [_from_row(row) for row in inserted]
    sums: Counter[uuid.UUID] = Counter()
    for refund in made:
        if not refund.stray:
            sums[refund.payment_id] += refund.amount_minor
    if sums:
        await payments.add_refunding(tx, sums)
    return made


async def insert_external(tx: AsyncSession, found: Sequence[Refund]) -> list[Refund]:
    """Insert refunds that were made at the provider, in the state that it reports; return them."""
    if not found:
        return []
    inserted = await tx.execute(
        text(
            "INSERT INTO refunds (id, payment_id, provider, amount_minor, reason, state, stray, external,"  # noqa: S608
            " charge_reference, provider_reference, failure_reason, problem, attempt, checks, settlement,"
            " received_minor, next_check_time)"
            " SELECT n.id, n.payment_id, n.provider, n.amount, 'made at the provider', n.state, n.stray, true,"
            f" n.reference, n.own, n.failure, '', 1, 0, n.settlement, {_RECEIVED_BY_OTHERS},"
            " CASE WHEN n.state = 'PENDING' THEN now() + interval '60 s' END"
            " FROM unnest(CAST(:ids AS uuid[]), CAST(:payments AS uuid[]), CAST(:providers AS text[]),"
            " CAST(:amounts AS bigint[]), CAST(:states AS text[]), CAST(:strays AS boolean[]),"
            " CAST(:charges AS text[]), CAST(:references AS text[]), CAST(:failures AS text[]),"
            " CAST(:settlements AS text[]))"
            " AS n(id, payment_id, provider, amount, state, stray, reference, own, failure, settlement)"
            f" ORDER BY n.id RETURNING {', '.join(_NAMES)}"
        ),
        {
            "ids": [r.id for r in found],
            "payments": [r.payment_id for r in found],
            "providers": [r.provider for r in found],
            "amounts": [r.amount_minor for r in found],
            "states": [str(r.state) for r in found],
            "strays": [r.stray for r in found],
            "charges": [r.charge_reference for r in found],
            "references": [r.provider_reference for r in found],
            "failures": [r.failure_reason for r in found],
            "settlements": [str(r.settlement) for r in found],
        },
    )
    return [_from_row(row) for row in inserted]


async def read(tx: AsyncSession, refund_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, RefundOfPayment]:
    """Return refunds by id, each with its payment."""
    both = select(*_COLUMNS, *payment_columns.COLUMNS).join(
        schema.Payment, schema.Payment.id == schema.Refund.payment_id
    )
    found = await tx.execute(both.where(schema.Refund.id.in_(refund_ids)))
    split = len(_COLUMNS)
    read = [RefundOfPayment(_from_row(row[:split]), payment_columns.from_row(row[split:])) for row in found]
    return {one.refund.id: one for one in read}


async def hasten(tx: AsyncSession, refund_ids: Sequence[uuid.UUID]) -> None:
    """Have the reconciler repeat pending refunds at once; see `leases.hasten`."""
    if refund_ids:
        await leases.hasten(tx, "refunds", refund_ids)


async def read_pending(tx: AsyncSession, payment_ids: Sequence[uuid.UUID]) -> list[Refund]:
    """Return the refunds of payments that the provider has not confirmed."""
    if not payment_ids:
        return []
    table = schema.Refund
    wanted = select(*_COLUMNS).where(table.payment_id.in_(payment_ids), table.state == str(RefundState.PENDING))
    return [_from_row(row) for row in await tx.execute(wanted)]


async def read_states(tx: AsyncSession, references: Sequence[str]) -> dict[str, RefundState]:
    """Return the states of refunds by the provider's ids of them."""
    table = schema.Refund
    found = await tx.execute(
        select(table.provider_reference, table.state).where(table.provider_reference.in_(references))
    )
    return {row.provider_reference: RefundState(row.state) for row in found}


async def count_refused(
    tx: AsyncSession, payment_ids: Sequence[uuid.UUID], *, reason: str
) -> dict[uuid.UUID, Refusals]:
    """Return the refunds for `reason` that the provider has refused, by payment.

    Those that an operator has looked at, or that the end of a dispute has overtaken, are left out.
    """
    if not payment_ids:
        return {}
    counted = await tx.execute(
        text(
            "SELECT payment_id, count(*) AS number, now() - max(update_time) AS age,"
            " bool_or(failure_reason = :disputed) AS disputed FROM refunds"
            " WHERE payment_id = ANY(CAST(:ids AS uuid[])) AND state = 'FAILED' AND reason = :reason AND problem = ''"
            " GROUP BY payment_id"
        ),
        {"ids": list(payment_ids), "reason": reason, "disputed": CHARGE_DISPUTED},
    )
    return {row.payment_id: Refusals(row.number, row.age, row.disputed) for row in counted}


async def read_charges(tx: AsyncSession, payment_id: uuid.UUID) -> list[tuple[str, str]]:
    """Return the charges of a payment that have refunds, each with its provider: its own one, and stray ones."""
    table = schema.Refund
    found = await tx.execute(
        select(table.provider, table.charge_reference).where(table.payment_id == payment_id).distinct()
    )
    return [(row.provider, row.charge_reference) for row in found]


async def lock_of_payment(tx: AsyncSession, payment_id: uuid.UUID) -> list[Refund]:
    """Lock and return all refunds of a payment, which the caller has locked first."""
    wanted = select(*_COLUMNS).where(schema.Refund.payment_id == payment_id).order_by(schema.Refund.id)
    return [_from_row(row) for row in await tx.execute(wanted.with_for_update())]


async def lock(tx: AsyncSession, refund_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Refund]:
    """Lock and return refunds by id; the caller has locked their payments first."""
    wanted = select(*_COLUMNS).where(schema.Refund.id.in_(refund_ids)).order_by(schema.Refund.id)
    return {row.id: _from_row(row) for row in await tx.execute(wanted.with_for_update())}


async def store(
    tx: AsyncSession,
    refunds: Sequence[Refund],
    *,
    ended: Mapping[uuid.UUID, Calls] = MappingProxyType({}),
    answered: Container[uuid.UUID] = (),
) -> None:
    """Write locked refunds and the times of their next checks. `ended` and `answered` are as in `payments.store`."""
    ages = [ended[r.id].unanswered_age if r.id in ended else None for r in refunds]
    await tx.execute(
        text(
            "UPDATE refunds AS r SET state = n.state, provider_reference = n.reference, failure_reason = n.reason,"
            " problem = n.problem, settlement = n.settlement, update_time = now(),"
            " unanswered_time = CASE WHEN n.has_ended THEN now() - make_interval(secs => n.unanswered)"
            " ELSE r.unanswered_time END,"
            " answer_time = CASE WHEN n.answered THEN now() ELSE r.answer_time END,"
            " next_check_time = now() + make_interval(secs => n.pause * (0.75 + random() / 2))"
            " FROM unnest(CAST(:ids AS uuid[]), CAST(:states AS text[]), CAST(:references AS text[]),"
            " CAST(:reasons AS text[]), CAST(:problems AS text[]), CAST(:pauses AS double precision[]),"
            " CAST(:ended AS boolean[]), CAST(:unanswered AS double precision[]), CAST(:answered AS boolean[]),"
            " CAST(:settlements AS text[]))"
            " AS n(id, state, reference, reason, problem, pause, has_ended, unanswered, answered, settlement)"
            " WHERE r.id = n.id"
        ),
        {
            "ids": [r.id for r in refunds],
            "states": [str(r.state) for r in refunds],
            "references": [r.provider_reference for r in refunds],
            "reasons": [r.failure_reason for r in refunds],
            "problems": [r.problem for r in refunds],
            "pauses": [refund_check_seconds(r) for r in refunds],
            "ended": [r.id in ended for r in refunds],
            "unanswered": [None if age is None else age.total_seconds() for age in ages],
            "answered": [r.id in answered for r in refunds],
            "settlements": [str(r.settlement) for r in refunds],
        },
    )


async def clear_failed_later(tx: AsyncSession, payment_ids: Sequence[uuid.UUID]) -> None:
    """Clear the problem of refunds that failed later, because all money of their payments has gone back meanwhile."""
    await tx.execute(
        text(
            "UPDATE refunds SET problem = '' WHERE payment_id = ANY(CAST(:ids AS uuid[])) AND NOT stray"
            " AND state = 'FAILED' AND problem <> ''"
        ),
        {"ids": list(payment_ids)},
    )


async def change_key(tx: AsyncSession, refund: Refund) -> None:
    """Repeat a pending refund at once under a new key, unless another process has done so."""
    await tx.execute(
        text(
            "UPDATE refunds SET attempt = attempt + 1, attempt_time = now(), checks = 0, next_check_time = now(),"
            " unanswered_time = NULL WHERE id = :id AND attempt = :attempt AND state = 'PENDING'"
            " AND provider_reference IS NULL"
        ),
        {"id": refund.id, "attempt": refund.attempt},
    )


async def claim_due(tx: AsyncSession, *, besides: Sequence[uuid.UUID], most: int) -> list[tuple[Refund, Calls]]:
    """Lease due refunds; return each with its earlier calls."""
    rows = await leases.claim(tx, "refunds", _NAMES, key_time="attempt_time", besides=besides, most=most)
    return [(_from_row(row[:-2]), Calls(row[-2], row[-1], is_first=False)) for row in rows]


async def sign(tx: AsyncSession, refund_ids: Sequence[uuid.UUID], note: str) -> None:
    """Add to the reasons of refunds what an operator has done with them."""
    await tx.execute(
        text("UPDATE refunds SET reason = left(reason || '; ' || :note, 1000) WHERE id = ANY(CAST(:ids AS uuid[]))"),
        {"ids": list(refund_ids), "note": note},
    )


async def resume(tx: AsyncSession, refund: Refund, note: str) -> bool:
    """Begin a parked refund again under a new key. Return whether no earlier call can take effect any more."""
    resumed = await tx.execute(
        text(
            "UPDATE refunds SET state = 'PENDING', problem = '', failure_reason = '', provider_reference = NULL,"
            " attempt = attempt + 1, attempt_time = now(), checks = 0, next_check_time = now(), unanswered_time = NULL,"
            " reason = left(reason || '; ' || :note, 1000), update_time = now()"
            " WHERE id = :id AND (unanswered_time IS NULL OR provider_reference IS NOT NULL"
            " OR unanswered_time < now() - interval '10 minutes') RETURNING id"
        ),
        {"id": refund.id, "note": note},
    )
    return bool(resumed.all())


async def sign_reversals(tx: AsyncSession, payment_id: uuid.UUID, *, reason: str, note: str) -> None:
    """Add what an operator has done to the refused refunds of a payment, so that they count as refused no more."""
    await tx.execute(
        text(
            "UPDATE refunds SET reason = reason || '; ' || :note"
            " WHERE payment_id = :id AND state = 'FAILED' AND reason = :reason"
        ),
        {"id": payment_id, "note": note, "reason": reason},
    )
