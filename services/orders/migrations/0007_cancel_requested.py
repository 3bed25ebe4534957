"""Orders show a cancellation that was accepted and is not carried out yet."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute("ALTER TABLE orders ADD COLUMN cancel_requested boolean NOT NULL DEFAULT false")
