"""Customers ask for further attempts: each has terms, and the charges of earlier ones are remembered."""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute("""
        ALTER TABLE payments
            ADD COLUMN order_attempt integer NOT NULL DEFAULT 0,
            ADD COLUMN latest_order_attempt integer NOT NULL DEFAULT 0,
            ADD COLUMN terms jsonb,
            ADD COLUMN next_terms jsonb,
            ADD COLUMN former_references text[] NOT NULL DEFAULT '{}',
            ADD COLUMN checkout_reference varchar,
            ADD COLUMN checkout_url varchar
    """)
    # Both are partial, so that ordinary payments have no entry in them.
    op.execute(
        "CREATE INDEX payments_former_references ON payments USING gin (former_references)"
        " WHERE former_references <> '{}'"
    )
    op.execute(
        "CREATE UNIQUE INDEX payments_checkout_reference ON payments (checkout_reference)"
        " WHERE checkout_reference IS NOT NULL"
    )
