"""Refunds can fail after they succeeded or be made at the provider; disputes are recorded; problems are durable."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute("""
        ALTER TABLE payments
            ADD COLUMN problem varchar NOT NULL DEFAULT '',
            ADD COLUMN unanswered_time timestamptz DEFAULT now(),
            ADD COLUMN refund_check_time timestamptz
    """)
    op.execute(
        "CREATE INDEX payments_refund_check_time ON payments (refund_check_time) WHERE refund_check_time IS NOT NULL"
    )
    op.execute("CREATE INDEX payments_problem ON payments (update_time) WHERE problem <> ''")
    op.execute("""
        ALTER TABLE refunds
            ADD COLUMN external boolean NOT NULL DEFAULT false,
            ADD COLUMN problem varchar NOT NULL DEFAULT '',
            ADD COLUMN attempt bigint NOT NULL DEFAULT 1,
            ADD COLUMN attempt_time timestamptz NOT NULL DEFAULT now(),
            ADD COLUMN unanswered_time timestamptz DEFAULT now()
    """)
    op.execute("UPDATE refunds SET attempt_time = create_time WHERE state = 'PENDING'")
    op.execute("CREATE INDEX refunds_problem ON refunds (update_time) WHERE problem <> ''")
    op.execute("CREATE INDEX refunds_provider_reference ON refunds (provider_reference)")
    op.execute("""
        CREATE TABLE disputes (
            provider     varchar NOT NULL,
            reference    varchar NOT NULL,
            payment_id   uuid NOT NULL CONSTRAINT disputes_payment_id_fkey REFERENCES payments (id),
            status       varchar NOT NULL,
            reason       varchar NOT NULL,
            amount_minor bigint NOT NULL,
            currency     varchar NOT NULL,
            report_time  timestamptz NOT NULL,
            create_time  timestamptz NOT NULL DEFAULT now(),
            update_time  timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (provider, reference),
            CONSTRAINT disputes_amount_not_negative CHECK (amount_minor >= 0)
        )
    """)
    op.execute("CREATE INDEX disputes_payment_id ON disputes (payment_id)")
    op.execute("""
        CREATE TABLE event_walks (
            provider  varchar PRIMARY KEY,
            done_time timestamptz NOT NULL,
            next_time timestamptz NOT NULL
        )
    """)
