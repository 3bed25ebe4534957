"""Orders keep the note that their customer sent."""

from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.execute("ALTER TABLE orders ADD COLUMN note text NOT NULL DEFAULT ''")
