"""Disputes have states, their money and a deadline, which are read from the provider's records."""

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    # With defaults, because processes of the release before insert disputes without these columns.
    op.execute("""
        ALTER TABLE disputes
            ADD COLUMN state varchar NOT NULL DEFAULT 'NEEDS_RESPONSE',
            ADD COLUMN withdrawn_minor bigint NOT NULL DEFAULT 0,
            ADD COLUMN fee_minor bigint NOT NULL DEFAULT 0,
            ADD COLUMN evidence_due_time timestamptz,
            ADD CONSTRAINT disputes_money_not_negative CHECK (withdrawn_minor >= 0 AND fee_minor >= 0),
            ADD CONSTRAINT disputes_state_known CHECK
                (state IN ('INQUIRY', 'NEEDS_RESPONSE', 'UNDER_REVIEW', 'WON', 'LOST', 'CLOSED'))
    """)
    op.execute("CREATE INDEX disputes_create_time ON disputes (create_time, reference)")
    op.execute("""
        CREATE TABLE dispute_checks (
            provider   varchar NOT NULL,
            reference  varchar NOT NULL,
            payment_id uuid NOT NULL,
            due_time   timestamptz NOT NULL DEFAULT now(),
            attempts   bigint NOT NULL DEFAULT 0,
            PRIMARY KEY (provider, reference)
        )
    """)
    op.execute("CREATE INDEX dispute_checks_due_time ON dispute_checks (due_time)")
    op.execute("""
        UPDATE disputes SET state = CASE
            WHEN status IN ('WARNING_NEEDS_RESPONSE', 'WARNING_UNDER_REVIEW') THEN 'INQUIRY'
            WHEN status = 'UNDER_REVIEW' THEN 'UNDER_REVIEW' WHEN status = 'WARNING_CLOSED' THEN 'CLOSED'
            ELSE state END
    """)
    # Their money is read from the provider's records; so are ends, whose entries need it.
    op.execute("""
        INSERT INTO dispute_checks (provider, reference, payment_id)
        SELECT provider, reference, payment_id FROM disputes
    """)
    op.execute("""
        ALTER TABLE refunds
            DROP CONSTRAINT refunds_settlement_known,
            ADD CONSTRAINT refunds_settlement_known CHECK
                (settlement IN ('PROVIDER', 'OUTSIDE', 'WRITTEN_OFF', 'BANK'))
    """)
