"""Sagas that wait for the provider to move money, which takes days for a bank debit, are not stuck."""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute("ALTER TABLE sagas ADD COLUMN waits_for_provider boolean NOT NULL DEFAULT false")
