"""Customers ask for further attempts to pay, also for orders whose payment was declined."""

from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.execute("""
        ALTER TABLE orders
            ADD COLUMN payment_page jsonb,
            ADD COLUMN payment_attempts integer NOT NULL DEFAULT 0,
            ADD COLUMN reopened integer NOT NULL DEFAULT 0;
        ALTER TABLE sagas ADD COLUMN terms jsonb
    """)
