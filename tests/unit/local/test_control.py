"""The supervisor as a process of its own, with small processes in its place."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from deploy.local import Site, control, leftovers, wheels
from deploy.local.location import locked

_SLEEP = "import signal; signal.pause()"
# A background job of a shell would inherit that the signal is ignored.
_ENDS_AT_SIGINT = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); print(flush=True); signal.pause()"


def test_the_loser_of_two_starts_waits_and_finds_the_mesh_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site.at(tmp_path, 8080)
    lines: list[str] = []
    loser_waits = threading.Event()

    def start(site: Site, report: object) -> int:
        stack.enter_context(control._lock(site))  # as the supervisor does
        assert loser_waits.wait(20)
        return 0

    def report(line: str) -> None:
        lines.append(line)
        if "waiting for it" in line:
            loser_waits.set()

    monkeypatch.setattr(control, "_up", start)
    codes: list[int] = []
    with ExitStack() as stack:
        ups = [threading.Thread(target=lambda: codes.append(control.up(site, report))) for _ in range(2)]
        for up in ups:
            up.start()
        for up in ups:
            up.join()
    assert codes == [0, 0]
    assert lines == [
        f"another command is starting the mesh in {tmp_path}; waiting for it",
        f"already up at {site.url}, process {os.getpid()}",
    ]


def test_two_commands_that_make_the_secrets_at_once_agree(tmp_path: Path) -> None:
    first: list[Site] = []
    with locked(tmp_path / "secrets.lock"):
        makers = [threading.Thread(target=lambda: first.append(Site.at(tmp_path, 8080))) for _ in range(4)]
        for maker in makers:
            maker.start()
    for maker in makers:
        maker.join()
    assert {site.secrets["admin"] for site in first} == {Site.at(tmp_path, 8080).secrets["admin"]}


async def test_a_mesh_whose_folder_was_removed_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_FOLDER_SECONDS", 0.01)
    site = Site.at(tmp_path / "home", 8080)
    stopped = asyncio.Event()
    with control._lock(site) as lock:
        assert lock
        watching = asyncio.create_task(control._watch_folder(lock, stopped.set))
        await asyncio.sleep(0)
        assert not stopped.is_set()
        await asyncio.to_thread(shutil.rmtree, site.home)
        await asyncio.wait_for(stopped.wait(), 60)
        await watching


def test_down_finds_a_mesh_whose_folder_was_removed(tmp_path: Path) -> None:
    site = Site.at(tmp_path / "home", 8080)
    command = [sys.executable, "-c", _SLEEP, "deploy.local", "run"]
    others = {**os.environ, "STAMPEDE_HOME": str(tmp_path / "home2")}
    with (
        subprocess.Popen(command, env={**os.environ, "STAMPEDE_HOME": str(site.home)}) as mine,
        subprocess.Popen(command, env=others) as other,
    ):
        shutil.rmtree(site.home)
        assert control.down(Site.at(tmp_path / "home", 8080))
        assert mine.wait() == -signal.SIGTERM
        assert other.poll() is None
        other.kill()


def test_down_ends_the_parts_of_a_killed_supervisor(tmp_path: Path) -> None:
    site = Site.at(tmp_path, 8080)
    with subprocess.Popen([sys.executable, "-c", _ENDS_AT_SIGINT], stdout=subprocess.PIPE) as part:
        assert part.stdout
        part.stdout.readline()
        recorded = {"pid": part.pid, "began": leftovers.start_time(part.pid)}
        (tmp_path / "state.json").write_text(json.dumps({"parts": {"web": recorded}}))
        assert control.down(site)
        assert part.wait() == -signal.SIGINT
    assert not control.down(site)


def test_root_hears_which_folders_keep_postgresql_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "other_user", lambda: "nobody")
    closed = tmp_path / "a b"
    (closed / "data").mkdir(parents=True)
    closed.chmod(0o700)
    with pytest.raises(wheels.Barred, match=r"may not enter .*a b.*chmod o\+x .*'.*/a b'$"):
        wheels.check_can_reach(closed / "data/postgres")
    monkeypatch.setattr(wheels, "other_user", lambda: None)
    wheels.check_can_reach(closed / "data/postgres")
