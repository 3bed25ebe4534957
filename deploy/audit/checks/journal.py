"""Checks of the journal of payments: its entries are sound, and add up to the rows and to the provider's records."""

from collections.abc import Iterator

from deploy.audit import repairs
from deploy.audit.findings import Check, Invariant
from deploy.audit.reading.rows import Case

# Fees have no row of their own.
_JOURNAL = """
    SELECT payment_id, reference, currency, debit AS account, amount_minor AS amount FROM journal_entries
    WHERE 'fees' NOT IN (debit, credit)
    UNION ALL SELECT payment_id, reference, currency, credit, -amount_minor FROM journal_entries
    WHERE 'fees' NOT IN (debit, credit)
"""
_ROWS = """
    SELECT p.id AS payment_id, coalesce(p.provider_reference, '') AS reference, p.currency, m.account, m.amount
    FROM payments p CROSS JOIN LATERAL (VALUES
        ('provider:' || p.provider, p.amount_minor), ('customer_payments', -p.amount_minor)
    ) m (account, amount)
    WHERE p.state IN ('SUCCEEDED', 'REFUNDED')
    UNION ALL
    SELECT p.id, coalesce(p.provider_reference, ''), p.currency, m.account, m.amount
    FROM payments p CROSS JOIN LATERAL (VALUES
        ('authorized', p.amount_minor), ('uncaptured', -p.amount_minor)
    ) m (account, amount)
    WHERE p.state = 'AUTHORIZED'
    UNION ALL
    SELECT r.payment_id, r.id::text, p.currency, m.account, m.amount
    FROM refunds r JOIN payments p ON p.id = r.payment_id CROSS JOIN LATERAL (VALUES
        ('provider:' || r.provider, r.received_minor), ('stray_money', -r.received_minor),
        (CASE WHEN r.stray THEN 'stray_money' ELSE 'refunds' END,
            CASE r.state WHEN 'SUCCEEDED' THEN r.amount_minor ELSE 0 END),
        (CASE r.settlement WHEN 'PROVIDER' THEN 'provider:' || r.provider WHEN 'BANK' THEN 'disputes_lost'
            ELSE lower(r.settlement) END, CASE r.state WHEN 'SUCCEEDED' THEN -r.amount_minor ELSE 0 END)
    ) m (account, amount)
    UNION ALL
    SELECT d.payment_id, d.reference, p.currency, m.account, m.amount
    FROM disputes d JOIN payments p ON p.id = d.payment_id CROSS JOIN LATERAL (VALUES
        ('provider:' || d.provider, -d.withdrawn_minor),
        (CASE d.state WHEN 'LOST' THEN 'disputes_lost' ELSE 'disputes' END, d.withdrawn_minor)
    ) m (account, amount)
"""
# The accounts between which each kind moves money, as it is written in a pair of debit and credit.
_KINDS = """
    VALUES ('CAPTURED', 'provider', 'customer_payments'), ('CAPTURE_REVERSED', 'customer_payments', 'provider'),
        ('AUTHORIZED', 'authorized', 'uncaptured'), ('AUTHORIZATION_ENDED', 'uncaptured', 'authorized'),
        ('REFUNDED', 'refunds', 'provider'), ('REFUND_FAILED', 'provider', 'refunds'),
        ('REFUNDED_OUTSIDE', 'refunds', 'outside'), ('REFUND_OUTSIDE_REVERSED', 'outside', 'refunds'),
        ('WRITTEN_OFF', 'refunds', 'written_off'), ('WRITE_OFF_REVERSED', 'written_off', 'refunds'),
        ('STRAY_RECEIVED', 'provider', 'stray_money'), ('STRAY_NOT_RECEIVED', 'stray_money', 'provider'),
        ('STRAY_RETURNED', 'stray_money', 'provider'), ('STRAY_RETURN_FAILED', 'provider', 'stray_money'),
        ('STRAY_RETURNED_OUTSIDE', 'stray_money', 'outside'), ('STRAY_OUTSIDE_REVERSED', 'outside', 'stray_money'),
        ('STRAY_WRITTEN_OFF', 'stray_money', 'written_off'), ('STRAY_WRITE_OFF_REVERSED', 'written_off', 'stray_money'),
        ('DISPUTED', 'disputes', 'provider'), ('DISPUTE_WON', 'provider', 'disputes'),
        ('DISPUTE_LOST', 'disputes_lost', 'disputes'), ('DISPUTE_LOSS_REVERSED', 'disputes', 'disputes_lost'),
        ('REFUNDED_BY_BANK', 'refunds', 'disputes_lost'), ('REFUND_BY_BANK_REVERSED', 'disputes_lost', 'refunds'),
        ('STRAY_RETURNED_BY_BANK', 'stray_money', 'disputes_lost'),
        ('STRAY_BY_BANK_REVERSED', 'disputes_lost', 'stray_money'),
        ('FEE', 'fees', 'provider'), ('FEE_RETURNED', 'provider', 'fees')
"""


_UNREAD_SECONDS = 600
_STATES = {
    "warning_needs_response": "INQUIRY", "warning_under_review": "INQUIRY", "warning_closed": "CLOSED",
    "needs_response": "NEEDS_RESPONSE", "under_review": "UNDER_REVIEW", "won": "WON", "lost": "LOST",
}  # fmt: skip
"""By the status of Stripe."""

CHECKS = (
    Check(
        "journal-rows", Invariant.MONEY,
        "the entries of each payment, refund and account add up to what the row says",
        repairs.COMPLETE_JOURNAL, "payments",
        f"""
        WITH entered AS (
            SELECT payment_id, reference, currency, account, sum(amount) AS amount FROM ({_JOURNAL}) e
            GROUP BY 1, 2, 3, 4
        ), due AS (
            SELECT payment_id, reference, currency, account, sum(amount) AS amount FROM ({_ROWS}) r GROUP BY 1, 2, 3, 4
        )
        SELECT coalesce(p.order_id, s.payment_id), format('account %s of payment %s has %s %s for %s, its row says %s',
            s.account, s.payment_id, s.currency, coalesce(s.entered, 0), s.reference, coalesce(s.due, 0))
        FROM (
            SELECT payment_id, reference, currency, account, e.amount AS entered, d.amount AS due
            FROM entered e FULL JOIN due d USING (payment_id, reference, currency, account)
        ) s LEFT JOIN payments p ON p.id = s.payment_id
        WHERE coalesce(s.entered, 0) <> coalesce(s.due, 0)
        """,
    ),
    Check(
        "journal-entry", Invariant.MONEY, "an entry is of a kind that moves money between its accounts",
        repairs.LOOK, "payments",
        f"""
        SELECT coalesce(p.order_id, e.payment_id), format('entry %s of %s: %s takes %s %s from %s to %s at %s', e.id,
            e.payment_id, e.kind, e.currency, e.amount_minor, e.credit, e.debit, e.create_time)
        FROM journal_entries e LEFT JOIN payments p ON p.id = e.payment_id
        LEFT JOIN ({_KINDS}) k (kind, debit, credit) ON k.kind = e.kind
            AND k.debit = regexp_replace(e.debit, '^provider:[a-z]+$', 'provider')
            AND k.credit = regexp_replace(e.credit, '^provider:[a-z]+$', 'provider')
        WHERE (k.kind IS NULL AND e.kind <> 'OPENING') OR e.amount_minor <= 0
            OR e.create_time > clock_timestamp() + interval '1 minute'
            OR e.create_time < p.create_time - interval '1 minute'
        """,
    ),
)  # fmt: skip


def booked_money_is_the_providers(case: Case) -> Iterator[str]:
    """The journal has as much of an order at its provider as the provider keeps; refunds may be pending."""
    booked = sum(payment.booked_minor for payment in case.payments)
    pending = sum(r.amount_minor for payment in case.payments for r in payment.refunds if r.state == "PENDING")
    kept = sum(each.amount_minor - each.refunded_minor - each.withdrawn_minor for each in case.captures)
    if case.payments and not booked - pending <= kept <= booked:
        yield f"the journal has {booked} at the provider, which keeps {kept}"


def authorised_money_is_the_providers(case: Case) -> Iterator[str]:
    """Money that waits for staff is set aside at the provider."""
    for payment in case.payments:
        if payment.state == "AUTHORIZED" and payment.provider == "stripe":
            there = next((intent.status for intent in case.intents if intent.id == payment.reference), "unknown")
            if there != "requires_capture":
                yield f"payment {payment.id} is AUTHORIZED, but {payment.reference} is {there} at the provider"


def order_knows_its_disputes(case: Case) -> Iterator[str]:
    """A settled order says whether a bank demands its money back, or has taken it."""
    disputed = any(each.state not in ("WON", "CLOSED") for payment in case.payments for each in payment.disputes)
    if case.order and case.payments and case.order.disputed != disputed:
        ours, theirs = ("disputed" if each else "not disputed" for each in (case.order.disputed, disputed))
        yield f"it is {ours}, but its payment is {theirs}"


def disputes_are_the_providers(case: Case) -> Iterator[str]:
    """Each dispute of the provider is here, in its state and amount; the newest may not have been read yet."""
    ours = {dispute.reference: dispute for payment in case.payments for dispute in payment.disputes}
    theirs = {intent.dispute.id: intent.dispute for intent in case.intents if intent.dispute}
    for id_, dispute in theirs.items():
        row = ours.get(id_)
        if row is None:
            if dispute.age_seconds > _UNREAD_SECONDS:
                yield f"{id_} of {dispute.amount_minor} is {dispute.status} at the provider, and not known here"
        elif (row.amount_minor, row.state) != (dispute.amount_minor, _STATES.get(dispute.status, row.state)):
            yield f"{id_} of {dispute.amount_minor} is {dispute.status}, but here {row.state} of {row.amount_minor}"
    for id_ in ours.keys() - theirs.keys():
        yield f"{id_} is {ours[id_].state}, but the provider has no such dispute"
