"""The key of an event has a column of its own."""

from alembic import op

from services.chassis.events import outbox

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute(outbox.ADD_KEY)
