"""When to check holds that are about to end, and whether they were extended."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # Running sagas keep NULL: their holds are not extended.
    op.execute("""
        ALTER TABLE sagas ADD COLUMN look_time timestamptz, ADD COLUMN extended boolean NOT NULL DEFAULT false
    """)
