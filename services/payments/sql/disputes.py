"""The table `disputes`: money that customers' banks demand back."""

import uuid
from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.payments.providers.events import Dispute


async def store(tx: AsyncSession, reports: Sequence[tuple[str, uuid.UUID, Dispute]]) -> set[str]:
    """Store disputes, none twice, with provider and payment; return the references of those that are new or changed.

    A report that is older than the stored one changes nothing.
    """
    if not reports:
        return set()
    found = sorted(reports, key=lambda report: report[2].reference)
    stored = await tx.execute(
        text(
            "INSERT INTO disputes AS d (provider, reference, payment_id, status, reason, amount_minor, currency,"
            " report_time) SELECT * FROM unnest(CAST(:providers AS text[]), CAST(:references AS text[]),"
            " CAST(:payments AS uuid[]), CAST(:statuses AS text[]), CAST(:reasons AS text[]),"
            " CAST(:amounts AS bigint[]), CAST(:currencies AS text[]), CAST(:times AS timestamptz[]))"
            " ON CONFLICT (provider, reference) DO UPDATE SET status = excluded.status, reason = excluded.reason,"
            " amount_minor = excluded.amount_minor, report_time = excluded.report_time, update_time = now()"
            " WHERE d.report_time < excluded.report_time"
            " OR (d.report_time = excluded.report_time AND d.status <> excluded.status"
            " AND excluded.status IN ('WON', 'LOST', 'WARNING_CLOSED'))"
            " RETURNING d.reference"
        ),
        {
            "providers": [provider for provider, _, _ in found],
            "references": [d.reference for _, _, d in found],
            "payments": [payment_id for _, payment_id, _ in found],
            "statuses": [d.status for _, _, d in found],
            "reasons": [d.reason for _, _, d in found],
            "amounts": [d.amount_minor for _, _, d in found],
            "currencies": [d.currency for _, _, d in found],
            "times": [d.report_time for _, _, d in found],
        },
    )
    return {row.reference for row in stored}
