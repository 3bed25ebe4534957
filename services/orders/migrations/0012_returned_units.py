"""Orders count the units that came back, so that a refund of more is refused before money moves."""

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.execute("ALTER TABLE orders ADD COLUMN returned jsonb NOT NULL DEFAULT '{}'")
