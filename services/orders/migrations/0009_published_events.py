"""Published events are kept for some hours, to be published again if the broker loses them."""

from alembic import op

from services.chassis.events import outbox

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.execute(outbox.PUBLISHED_TABLE)
