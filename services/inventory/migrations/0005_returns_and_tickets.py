"""Sold units that come back."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE returns (
            id             uuid PRIMARY KEY,
            reservation_id uuid NOT NULL REFERENCES reservations (id),
            asked          jsonb NOT NULL,
            lines          jsonb NOT NULL,
            create_time    timestamptz NOT NULL DEFAULT now()
        );
        CREATE INDEX returns_reservation ON returns (reservation_id);
    """)
    # What came back is counted from here, so that nothing comes back twice.
    op.execute("""
        DO $$ BEGIN
            IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'inventory') THEN
                REVOKE UPDATE, DELETE ON returns FROM inventory;
            END IF;
        END $$;
    """)
