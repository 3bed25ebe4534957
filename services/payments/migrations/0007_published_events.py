"""Published events are kept for some hours, to be published again if the broker loses them."""

from alembic import op

from services.chassis.events import outbox

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute(outbox.PUBLISHED_TABLE)
