"""Parked provider events are found by an index, because the others are far more."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute(
        "CREATE INDEX provider_events_parked ON provider_events (received_time)"
        " WHERE error IS NOT NULL AND processed_time IS NOT NULL"
    )
