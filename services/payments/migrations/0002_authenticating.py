"""Payments store whether the bank is authenticating their customer."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("ALTER TABLE payments ADD COLUMN authenticating boolean NOT NULL DEFAULT false")
