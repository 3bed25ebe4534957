"""Orders are written when their stock is held; no ticket waits for it any more."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute("DROP TABLE tickets")
