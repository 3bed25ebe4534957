"""What comes after the payment, lists of many orders, and sagas that people look at."""

from alembic import op

from services.chassis import lease, once

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("""
        ALTER TABLE orders
            ADD COLUMN refunded_minor bigint NOT NULL DEFAULT 0
                CONSTRAINT orders_refunded_within_total CHECK (refunded_minor >= 0 AND refunded_minor <= total_minor),
            ADD COLUMN refunding boolean NOT NULL DEFAULT false,
            ADD COLUMN shipment jsonb;
        -- Each way to list orders has its index, in the order of lists.
        CREATE INDEX orders_by_time ON orders (create_time, id);
        CREATE INDEX orders_by_state ON orders (state, create_time, id);
        CREATE TABLE order_products (
            product_id  uuid NOT NULL,
            create_time timestamptz NOT NULL,
            order_id    uuid NOT NULL,
            PRIMARY KEY (product_id, create_time, order_id)
        );
        INSERT INTO order_products
        SELECT (line->>'product_id')::uuid, create_time, id FROM orders, jsonb_array_elements(lines) AS line;

        ALTER TABLE sagas
            ADD COLUMN kind text NOT NULL DEFAULT 'PURCHASE',
            ADD COLUMN refund jsonb,
            ADD COLUMN actor text NOT NULL DEFAULT '',
            ADD COLUMN note text NOT NULL DEFAULT '',
            ADD COLUMN request_id text NOT NULL DEFAULT '',
            ADD COLUMN cause text NOT NULL DEFAULT '',
            ADD COLUMN progress_time timestamptz NOT NULL DEFAULT now(),
            -- Whose next step may take as long as the provider likes. Those wait in a queue of their own.
            ADD COLUMN slow boolean NOT NULL GENERATED ALWAYS AS (phase = 'FORWARD' AND asked = '' AND NOT woken
                AND applied = CASE kind WHEN 'PURCHASE' THEN 1 ELSE 0 END) STORED;
        DROP INDEX sagas_due;
        CREATE INDEX sagas_due ON sagas (slow, next_time);
        CREATE INDEX sagas_by_progress ON sagas (progress_time, order_id);

        ALTER TABLE order_log
            ADD COLUMN cause text NOT NULL DEFAULT '',
            ADD COLUMN note text NOT NULL DEFAULT '',
            ADD COLUMN refunded_minor bigint NOT NULL DEFAULT 0;
    """)
    op.execute(once.TABLE)
    op.execute(lease.TABLE)
