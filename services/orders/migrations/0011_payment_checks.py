"""Orders to be compared with payments."""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE payment_checks (
            order_id uuid PRIMARY KEY,
            due_time timestamptz NOT NULL DEFAULT now(),
            attempts integer NOT NULL DEFAULT 0
        );
        CREATE INDEX payment_checks_due ON payment_checks (due_time);
    """)
