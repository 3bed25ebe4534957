"""When to look at holds that are about to end, and whether more time was asked for."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # Sagas that are under way keep NULL: their holds end when they were to end.
    op.execute("""
        ALTER TABLE sagas ADD COLUMN look_time timestamptz, ADD COLUMN extended boolean NOT NULL DEFAULT false
    """)
