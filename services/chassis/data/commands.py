"""The shared part of commands for operators: a database, an exit code, output, and the operator's name."""

import getpass
import os
import sys
from collections.abc import Awaitable, Callable

from services.chassis.data import db as databases
from services.chassis.data.db import Database
from services.chassis.errors import AppError
from services.chassis.settings import ServiceSettings


async def run(config: ServiceSettings, act: Callable[[Database], Awaitable[int | None]]) -> int:
    """Runs a command on the service's database. Returns its exit code: of `act` (None is 0), or 1 after a refusal."""
    engine, db = databases.connect(config.database_url.get_secret_value(), pool_size=1)
    try:
        return await act(db) or 0
    except AppError as error:
        write(f"{error.reason}: {error}")
        return 1
    finally:
        await engine.dispose()


def write(line: str) -> None:
    """Writes a line for the operator at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def operator() -> str:
    """Returns the actor of a command, for logs of orders and refunds: `operator:<name>`."""
    try:
        return f"operator:{getpass.getuser()}"
    except (KeyError, OSError):  # in a container the user has a number and no name
        return f"operator:{os.getuid()}"
