"""The journal, with opening entries for the money that has moved before it; how refunds were settled."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.execute("""
        ALTER TABLE refunds
            ADD COLUMN settlement varchar NOT NULL DEFAULT 'PROVIDER',
            ADD COLUMN received_minor bigint NOT NULL DEFAULT 0,
            ADD CONSTRAINT refunds_settlement_known CHECK (settlement IN ('PROVIDER', 'OUTSIDE', 'WRITTEN_OFF')),
            ADD CONSTRAINT refunds_received_within_amount CHECK (received_minor BETWEEN 0 AND amount_minor)
    """)
    op.execute("""
        UPDATE refunds SET settlement = 'OUTSIDE'
        WHERE state = 'SUCCEEDED' AND strpos(reason, 'marked as done by') > 0
    """)
    # Of each stray charge, the first refund records that its money arrived.
    op.execute("""
        UPDATE refunds SET received_minor = amount_minor WHERE id IN (
            SELECT DISTINCT ON (charge_reference) id FROM refunds WHERE stray ORDER BY charge_reference, external, id
        )
    """)
    op.execute("""
        CREATE TABLE journal_entries (
            id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            create_time  timestamptz NOT NULL DEFAULT now(),
            payment_id   uuid NOT NULL,
            kind         varchar NOT NULL,
            debit        varchar NOT NULL,
            credit       varchar NOT NULL,
            amount_minor bigint NOT NULL,
            currency     varchar NOT NULL,
            reference    varchar NOT NULL,
            CONSTRAINT journal_entries_amount_positive CHECK (amount_minor > 0),
            CONSTRAINT journal_entries_two_accounts CHECK (debit <> credit)
        )
    """)
    op.execute("""
        DO $$
        DECLARE
            last uuid := '00000000-0000-0000-0000-000000000000';
            following uuid;
        BEGIN
            LOOP
                SELECT id INTO following FROM (
                    SELECT id FROM payments WHERE id > last ORDER BY id LIMIT 10000
                ) AS batch ORDER BY id DESC LIMIT 1;
                EXIT WHEN following IS NULL;
                INSERT INTO journal_entries (payment_id, kind, debit, credit, amount_minor, currency, reference)
                SELECT id, 'OPENING', 'provider:' || provider, 'customer_payments', amount_minor, currency,
                    coalesce(provider_reference, '')
                FROM payments WHERE id > last AND id <= following AND state IN ('SUCCEEDED', 'REFUNDED')
                    AND amount_minor > 0 ORDER BY id;
                INSERT INTO journal_entries (payment_id, kind, debit, credit, amount_minor, currency, reference)
                SELECT r.payment_id, 'OPENING', m.debit, m.credit, m.amount, p.currency, CAST(r.id AS text)
                FROM refunds AS r JOIN payments AS p ON p.id = r.payment_id CROSS JOIN LATERAL (VALUES
                    ('provider:' || r.provider, 'stray_money', r.received_minor),
                    (CASE WHEN r.stray THEN 'stray_money' ELSE 'refunds' END,
                        CASE r.settlement WHEN 'PROVIDER' THEN 'provider:' || r.provider ELSE 'outside' END,
                        CASE r.state WHEN 'SUCCEEDED' THEN r.amount_minor ELSE 0 END)
                ) AS m (debit, credit, amount)
                WHERE r.payment_id > last AND r.payment_id <= following AND m.amount > 0 ORDER BY r.id;
                last := following;
            END LOOP;
        END $$
    """)
    op.execute("CREATE INDEX journal_entries_payment_id ON journal_entries (payment_id)")
    op.execute("CREATE INDEX journal_entries_debit ON journal_entries (debit, id) WHERE kind <> 'CAPTURED'")
    op.execute("CREATE INDEX journal_entries_credit ON journal_entries (credit, id) WHERE kind <> 'CAPTURED'")
