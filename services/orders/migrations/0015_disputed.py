"""Orders show that a bank demands their money back."""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.execute("ALTER TABLE orders ADD COLUMN disputed boolean NOT NULL DEFAULT false")
