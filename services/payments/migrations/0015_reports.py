"""The provider's list of charges is compared with ours once a day."""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE provider_reports (
            provider    varchar PRIMARY KEY,
            next_time   timestamptz NOT NULL,
            done_time   timestamptz,
            differences bigint NOT NULL DEFAULT 0
        )
    """)
