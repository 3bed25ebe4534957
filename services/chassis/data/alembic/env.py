"""The one Alembic environment; each service brings its own history in its folder `migrations`."""

from alembic import context
from sqlalchemy import create_engine, text

from services.chassis.data import db

# Any constant will do; replicas that start together queue on it.
_LOCK = 727_001

engine = create_engine(context.config.attributes["url"], hide_parameters=True)
db.keep_data_out_of_errors(engine)
with engine.connect() as connection:
    connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
    connection.commit()
    context.configure(connection=connection, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()
        connection.exec_driver_sql(context.config.attributes["grants"])
    connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _LOCK})
    connection.commit()
engine.dispose()
