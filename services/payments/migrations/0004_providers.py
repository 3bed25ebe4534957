"""Refunds store their provider; waiting provider events store the charge status that they prove."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    # With a default, because processes of the release before insert refunds without it.
    op.execute("ALTER TABLE refunds ADD COLUMN provider varchar NOT NULL DEFAULT 'stripe'")
    op.execute("""
        UPDATE provider_events SET payload = payload || jsonb_build_object(
            'charge_status', CASE
                WHEN payload->>'type' = 'charge.refunded' THEN NULL
                WHEN payload->>'status' = 'succeeded' THEN 'SUCCEEDED'
                WHEN payload->>'status' = 'canceled' THEN 'CANCELLED'
            END,
            'payment_id', CASE WHEN payload->>'payment_id' ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                THEN payload->>'payment_id' END
        ) WHERE processed_time IS NULL
    """)
