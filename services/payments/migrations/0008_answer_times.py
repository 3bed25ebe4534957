"""Payments and refunds know when the provider answered last: a bank debit that is processed for days is no silence."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute("ALTER TABLE payments ADD COLUMN answer_time timestamptz")
    op.execute("ALTER TABLE refunds ADD COLUMN answer_time timestamptz")
