"""Holds have slots: the bound of open orders per customer. Sales count holds that end unpaid."""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute("""
        ALTER TABLE reservations ADD COLUMN slot integer, ADD COLUMN units integer;
        CREATE UNIQUE INDEX reservations_slot ON reservations (customer_id, slot) WHERE state = 'HELD';

        ALTER TABLE flash_sales ADD COLUMN abandoned_hold_limit integer NOT NULL DEFAULT 10
            CONSTRAINT flash_sales_abandoned_hold_limit CHECK (abandoned_hold_limit >= 0);
        CREATE TABLE abandoned_holds (
            sale_id     uuid NOT NULL REFERENCES flash_sales (id),
            customer_id uuid NOT NULL,
            holds       integer NOT NULL CONSTRAINT abandoned_holds_not_negative CHECK (holds >= 0),
            PRIMARY KEY (sale_id, customer_id)
        );
    """)
