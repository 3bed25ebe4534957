"""The columns of sagas get the words of the glossary. A hold that was extended is not checked again."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    # The generated column and the indexes follow the new names.
    op.execute("""
        UPDATE sagas SET look_time = NULL WHERE extended;
        ALTER TABLE sagas DROP COLUMN extended;
        ALTER TABLE sagas RENAME COLUMN applied TO steps_done;
        ALTER TABLE sagas RENAME COLUMN asked TO cancel_reason;
        ALTER TABLE sagas RENAME COLUMN waiting TO paused;
        ALTER TABLE sagas RENAME COLUMN woken TO payment_changed;
        ALTER TABLE sagas RENAME COLUMN look_time TO hold_check_time;
        ALTER TABLE sagas RENAME COLUMN fence TO fencing_token;
        ALTER TABLE sagas RENAME COLUMN slow TO provider_bound;
    """)
