"""Leases: the process that leads the timers."""

from alembic import op

from services.chassis.data import lease

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute(lease.TABLE)
