"""The saga console for whoever has a shell and no account."""

import argparse
import getpass
import os
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from services.chassis.data.db import Database
from services.orders import commands, store
from tests.integration.orders.conftest import an_order, log_of


async def run(db: Database, *words: str) -> int:
    """What `python -m services.orders sagas` and these words would do."""
    parser = argparse.ArgumentParser()
    commands.describe(parser)
    url = db.kw["bind"].url.render_as_string(hide_password=False)
    config: Any = SimpleNamespace(database_url=SecretStr(url))
    return await commands.sagas(config, parser.parse_args(words))


async def test_an_operator_without_a_name_is_known_by_their_number(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container, whose user stands in no list of users."""
    new = an_order()
    await store.insert(db, [new])

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert await run(db, "resume", str(new.id)) == 0
    assert (await log_of(db, new.id))[-1] == ("PENDING", "", f"operator:{os.getuid()}")
