"""Create the tables of products and of request ids."""

from alembic import op

from services.chassis.data import idempotency

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE products (
            id                   uuid        PRIMARY KEY,
            sku                  text        NOT NULL CONSTRAINT products_sku_key UNIQUE,
            slug                 text        NOT NULL CONSTRAINT products_slug_key UNIQUE,
            name                 text        NOT NULL,
            description          text        NOT NULL,
            category             text        NOT NULL,
            price_minor          bigint      NOT NULL,
            currency             text        NOT NULL,
            original_price_minor bigint,
            attributes           jsonb       NOT NULL,
            active               boolean     NOT NULL,
            version              bigint      NOT NULL DEFAULT 1,
            create_time          timestamptz NOT NULL DEFAULT now(),
            update_time          timestamptz NOT NULL DEFAULT now(),
            deleted_time         timestamptz,
            search               tsvector    NOT NULL GENERATED ALWAYS AS (
                to_tsvector('simple', name || ' ' || sku || ' ' || translate(sku, '._-', '   ') || ' ' || description)
            ) STORED,
            CONSTRAINT products_price CHECK (price_minor BETWEEN 0 AND 99999999),
            CONSTRAINT products_original_price
                CHECK (original_price_minor > price_minor AND original_price_minor <= 99999999),
            CONSTRAINT products_currency CHECK (currency ~ '^[A-Z]{3}$'),
            CONSTRAINT products_slug CHECK (slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$' AND length(slug) <= 100),
            CONSTRAINT products_attributes CHECK (jsonb_typeof(attributes) = 'object')
        );

        -- One index per sort order of a list; PostgreSQL reads an index in both directions.
        CREATE INDEX products_by_time ON products (create_time, id) WHERE active AND deleted_time IS NULL;
        CREATE INDEX products_by_price ON products (price_minor, id) WHERE active AND deleted_time IS NULL;
        CREATE INDEX products_by_name ON products (lower(name), id) WHERE active AND deleted_time IS NULL;
        CREATE INDEX products_by_category ON products (category, create_time, id)
            WHERE active AND deleted_time IS NULL;

        CREATE INDEX products_search ON products USING gin (search);
        CREATE INDEX products_attributes_path ON products USING gin (attributes jsonb_path_ops);
    """)
    op.execute(idempotency.TABLE)
