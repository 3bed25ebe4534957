"""Released reservations can be held again, because their customer pays once more after a decline."""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.execute("ALTER TABLE reservations ADD COLUMN reholds integer NOT NULL DEFAULT 0")
