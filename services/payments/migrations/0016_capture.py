"""Authorised money may wait until staff capture or void it."""

from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    # With a default, because processes of the release before insert payments without it: these capture at once.
    op.execute("""
        ALTER TABLE payments
            ADD COLUMN capture varchar NOT NULL DEFAULT 'AUTOMATIC',
            ADD COLUMN authorize_time timestamptz,
            ADD CONSTRAINT payments_capture_known CHECK (capture IN ('AUTOMATIC', 'MANUAL', 'REQUESTED', 'VOID')),
            DROP CONSTRAINT payments_state_known,
            ADD CONSTRAINT payments_state_known CHECK (state IN
                ('AWAITING_CUSTOMER', 'PROCESSING', 'AUTHORIZED', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'REFUNDED'))
    """)
    op.execute("CREATE INDEX payments_authorize_time ON payments (authorize_time) WHERE state = 'AUTHORIZED'")
