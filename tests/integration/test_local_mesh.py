"""The local mesh with real servers: what it does after a supervisor was killed, and in folders with unusual names."""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from deploy.local import Mesh, Site
from deploy.local.location import ROOT
from deploy.local.supervisor import Report
from tests.support.ports import free_base

_SUPERVISOR = """
import asyncio, shutil, sys
from pathlib import Path
from deploy.local import Site
from tests.integration.test_local_mesh import with_postgres

find = shutil.which
shutil.which = lambda name: None if name in sys.argv[3:] else find(name)

async def main():
    async with with_postgres(Site.at(Path(sys.argv[1]), int(sys.argv[2]))):
        print("up", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def with_postgres(site: Site, report: Report = lambda line: None) -> Mesh:
    """A mesh of PostgreSQL alone, which does not wait for the disk."""
    mesh = Mesh(site, ("postgres",), report=report)
    initdb, postgres = mesh.alter("initdb"), mesh.alter("postgres")
    mesh.alter("initdb", command=(*initdb.command, "--no-sync"))
    mesh.alter("postgres", command=(*postgres.command, "--fsync=off"))
    mesh.alter("databases", needed=lambda: False)
    return mesh


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="""stampede 'a" 100% $x é-"""))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


async def _killed_supervisor(site: Site, *missing: str) -> "psycopg.AsyncConnection[tuple[object, ...]]":
    """Runs a supervisor with PostgreSQL, opens a session, and kills the supervisor. Returns the session."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SUPERVISOR, str(site.home), str(site.ports.base), *missing,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos/gen'}"}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout
    assert await child.stdout.readline() == b"up\n"
    session = await psycopg.AsyncConnection.connect(
        host="127.0.0.1", port=site.ports.postgres, user="postgres", password=site.password("postgres")
    )
    child.send_signal(signal.SIGKILL)
    await child.wait()
    return session


async def test_a_mesh_starts_at_once_after_its_supervisor_was_killed(home: Path) -> None:
    site = Site.at(home, free_base())
    lines: list[str] = []
    # Without setpriv, the kernel does not end the parts of a supervisor that was killed.
    for missing in ((), ("setpriv",)):
        session = await _killed_supervisor(site, *missing)
        async with with_postgres(site, lines.append):
            with pytest.raises(psycopg.OperationalError):
                await session.execute("SELECT 1")
        await session.close()
    assert "ended parts of a mesh whose supervisor was killed: postgres" in lines


async def test_servers_start_in_a_folder_with_any_name(home: Path) -> None:
    async with Mesh(Site.at(home, free_base()), ("valkey", "nats", "sandbox")):
        assert (home / "data/nats/jetstream").is_dir()
