"""Leases have no terms: the gate does not check who rebuilds it."""

from alembic import op

from services.chassis.data import lease

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute(lease.DROP_TERM)
