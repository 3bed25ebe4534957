"""Indexes for lists and live views of flash sales: when units may come back, and which sales are in a state."""

from alembic import op

revision = "0002"
down_revision = "0001"

# An order over several sales counts with its first: one index entry a hold, and few orders are over several.
FILL = """
    UPDATE reservations r SET sale_id = (
        SELECT CAST(l.line->>'sale_id' AS uuid) FROM jsonb_array_elements(r.lines) WITH ORDINALITY AS l (line, position)
        WHERE l.line->>'sale_id' IS NOT NULL ORDER BY l.position LIMIT 1
    ) WHERE sale_id IS NULL
"""


def upgrade() -> None:
    # Without a foreign key: it would lock the sale's row once more for each hold, and no sale is ever deleted.
    op.execute("ALTER TABLE reservations ADD COLUMN sale_id uuid")
    op.execute(FILL)
    # No counters in them: each hold would have to write them there. And no times: with those, the planner takes the
    # primary key for cheaper, and walks through all of the history.
    op.execute("""
        CREATE INDEX reservations_held_in_sale ON reservations (sale_id, expire_time)
            WHERE state = 'HELD' AND sale_id IS NOT NULL;
        CREATE INDEX flash_sales_open_newest ON flash_sales (id) WHERE closed_as IS NULL;
        CREATE INDEX flash_sales_closed_newest ON flash_sales (closed_as, id) WHERE closed_as IS NOT NULL;
    """)
