"""A saga names the process that holds its lease, so that the next process of that name can take it over at once."""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute("ALTER TABLE sagas ADD COLUMN holder text NOT NULL DEFAULT ''")
