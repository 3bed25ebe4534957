"""Create the tables of users, sessions, signing keys and request ids."""

from alembic import op

from services.chassis.data import idempotency

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE users (
            id             uuid        PRIMARY KEY,
            email          text        NOT NULL CONSTRAINT users_email_key UNIQUE,
            password_hash  text        NOT NULL,
            display_name   text        NOT NULL,
            roles          text[]      NOT NULL,
            email_verified boolean     NOT NULL,
            create_time    timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT users_email_lower CHECK (email = lower(email)),
            CONSTRAINT users_roles CHECK (roles <@ ARRAY['customer', 'staff', 'admin'])
        );

        CREATE TABLE sessions (
            id          uuid        PRIMARY KEY,
            user_id     uuid        NOT NULL CONSTRAINT sessions_user_id_fkey REFERENCES users ON DELETE CASCADE,
            create_time timestamptz NOT NULL DEFAULT now(),
            expire_time timestamptz NOT NULL,
            revoke_time timestamptz
        );
        CREATE INDEX sessions_user_id ON sessions (user_id);
        CREATE INDEX sessions_expire_time ON sessions (expire_time);

        CREATE TABLE refresh_tokens (
            hash        bytea       PRIMARY KEY,
            session_id  uuid        NOT NULL
                CONSTRAINT refresh_tokens_session_id_fkey REFERENCES sessions ON DELETE CASCADE,
            create_time timestamptz NOT NULL DEFAULT now(),
            expire_time timestamptz NOT NULL,
            used_time   timestamptz
        );
        CREATE INDEX refresh_tokens_session_id ON refresh_tokens (session_id);

        CREATE TABLE signing_keys (
            kid                text        PRIMARY KEY,
            public_jwk         jsonb       NOT NULL,
            sealed_private_key bytea       NOT NULL,
            create_time        timestamptz NOT NULL DEFAULT now(),
            sign_from          timestamptz NOT NULL,
            retire_time        timestamptz
        );
    """)
    op.execute(idempotency.TABLE)
