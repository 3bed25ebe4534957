"""Holds that may be extended once."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    # With a constant default this rewrites no row, however many reservations there are.
    op.execute("ALTER TABLE reservations ADD COLUMN extended boolean NOT NULL DEFAULT false")
