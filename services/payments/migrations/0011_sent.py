"""Payments know whether a call was ever sent for them: one without can be cancelled while the provider is down."""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.execute("ALTER TABLE payments ADD COLUMN sent boolean NOT NULL DEFAULT true")
