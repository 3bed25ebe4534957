"""An order without a card gets a payment at the provider once somebody asks for its client secret."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    # True for orders of the release before, whose sagas begin the payment at once.
    op.execute("ALTER TABLE orders ADD COLUMN secret_wanted boolean NOT NULL DEFAULT true")
