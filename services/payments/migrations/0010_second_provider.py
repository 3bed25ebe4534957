"""Payments know which money they count, and until when units are held for them."""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute("""
        ALTER TABLE payments
            ADD COLUMN capture_reference varchar,
            ADD COLUMN hold_expire_time timestamptz
    """)
