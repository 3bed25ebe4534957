"""The records of the session."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.local import Site
from tests.audit.records import Records, made
from tests.support.ports import free_base


@pytest.fixture(scope="session")
async def records() -> AsyncIterator[Records]:
    home = Path(tempfile.mkdtemp(prefix="stampede-audit-"))
    await asyncio.to_thread(home.chmod, 0o755)  # PostgreSQL may run as another user
    try:
        async with made(Site.at(home, free_base())) as running:
            yield running
    finally:
        shutil.rmtree(home, ignore_errors=True)
