"""The saga commands for operators with a shell and no account."""

import argparse
import getpass
import os
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from services.chassis.data.db import Database
from services.orders import cli
from tests.integration.orders.conftest import an_order, log_of, place


async def run(db: Database, *words: str) -> int:
    """Runs `python -m services.orders sagas` with these words."""
    parser = argparse.ArgumentParser()
    cli.describe(parser)
    url = db.kw["bind"].url.render_as_string(hide_password=False)
    config: Any = SimpleNamespace(database_url=SecretStr(url))
    return await cli.sagas(config, parser.parse_args(words))


async def test_operator_without_a_name_is_logged_by_number(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, whose user is in no list of users."""
    new = an_order()
    await place(db, new)

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert await run(db, "resume", str(new.id)) == 0
    assert (await log_of(db, new.id))[-1] == ("PENDING", "", f"operator:{os.getuid()}")
