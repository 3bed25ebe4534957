"""Customers save cards at providers: their ids there, and what they recognise the cards by."""

from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE provider_customers (
            customer_id uuid NOT NULL,
            provider    varchar NOT NULL,
            reference   varchar NOT NULL,
            create_time timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (customer_id, provider)
        )
    """)
    op.execute("""
        CREATE TABLE saved_methods (
            id           uuid PRIMARY KEY,
            customer_id  uuid NOT NULL,
            provider     varchar NOT NULL,
            reference    varchar NOT NULL,
            brand        varchar NOT NULL,
            last4        varchar NOT NULL,
            expire_month integer NOT NULL,
            expire_year  integer NOT NULL,
            remove_time  timestamptz,
            detach_time  timestamptz,
            create_time  timestamptz NOT NULL DEFAULT now(),
            update_time  timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT saved_methods_reference_key UNIQUE (provider, reference)
        )
    """)
    op.execute("CREATE INDEX saved_methods_customer_id ON saved_methods (customer_id, id)")
    op.execute(
        "CREATE INDEX saved_methods_pending ON saved_methods (remove_time)"
        " WHERE remove_time IS NOT NULL AND detach_time IS NULL"
    )
