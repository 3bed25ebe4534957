"""Payments, refunds and the inbox of provider events."""

from alembic import op

from services.chassis.data import idempotency
from services.chassis.events import outbox

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE payments (
            id                 uuid PRIMARY KEY,
            order_id           uuid NOT NULL,
            customer_id        uuid NOT NULL,
            amount_minor       bigint NOT NULL,
            currency           varchar NOT NULL,
            state              varchar NOT NULL,
            provider           varchar NOT NULL,
            customer_pays      boolean NOT NULL,
            payment_method     varchar,
            provider_reference varchar,
            client_secret      varchar,
            attempt            bigint NOT NULL,
            attempt_time       timestamptz NOT NULL,
            failure_reason     varchar NOT NULL,
            refunded_minor     bigint NOT NULL,
            refunding_minor    bigint NOT NULL,
            cancel_requested   boolean NOT NULL,
            checks             bigint NOT NULL,
            next_check_time    timestamptz,
            version            bigint NOT NULL,
            create_time        timestamptz NOT NULL DEFAULT now(),
            update_time        timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT payments_order_id_key UNIQUE (order_id),
            CONSTRAINT payments_provider_reference_key UNIQUE (provider_reference),
            CONSTRAINT payments_state_known CHECK (state IN
                ('AWAITING_CUSTOMER', 'PROCESSING', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'REFUNDED')),
            CONSTRAINT payments_amount_not_negative CHECK (amount_minor >= 0),
            CONSTRAINT payments_refunds_within_amount CHECK
                (refunded_minor >= 0 AND refunding_minor >= 0 AND refunded_minor + refunding_minor <= amount_minor)
        )
    """)
    op.execute("CREATE INDEX payments_next_check_time ON payments (next_check_time) WHERE next_check_time IS NOT NULL")
    op.execute("""
        CREATE TABLE refunds (
            id                 uuid PRIMARY KEY,
            payment_id         uuid NOT NULL CONSTRAINT refunds_payment_id_fkey REFERENCES payments (id),
            amount_minor       bigint NOT NULL,
            reason             varchar NOT NULL,
            state              varchar NOT NULL,
            stray              boolean NOT NULL,
            charge_reference   varchar NOT NULL,
            provider_reference varchar,
            failure_reason     varchar NOT NULL,
            checks             bigint NOT NULL,
            next_check_time    timestamptz,
            create_time        timestamptz NOT NULL DEFAULT now(),
            update_time        timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT refunds_state_known CHECK (state IN ('PENDING', 'SUCCEEDED', 'FAILED')),
            CONSTRAINT refunds_amount_positive CHECK (amount_minor > 0)
        )
    """)
    op.execute("CREATE INDEX refunds_payment_id ON refunds (payment_id)")
    op.execute("CREATE INDEX refunds_next_check_time ON refunds (next_check_time) WHERE next_check_time IS NOT NULL")
    op.execute("""
        CREATE TABLE provider_events (
            provider       varchar NOT NULL,
            event_id       varchar NOT NULL,
            payload        jsonb NOT NULL,
            received_time  timestamptz NOT NULL DEFAULT now(),
            next_try_time  timestamptz NOT NULL DEFAULT now(),
            processed_time timestamptz,
            attempts       bigint NOT NULL,
            error          varchar,
            PRIMARY KEY (provider, event_id)
        )
    """)
    op.execute(
        "CREATE INDEX provider_events_next_try_time ON provider_events (next_try_time) WHERE processed_time IS NULL"
    )
    op.execute("CREATE INDEX provider_events_processed_time ON provider_events (processed_time)")
    op.execute(idempotency.TABLE)
    op.execute(outbox.TABLE)
