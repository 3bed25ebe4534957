"""No background job of orders has one leader any more; sagas have leases of their own."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute("DROP TABLE leases")
