"""The supervisor, with small parts instead of servers."""

import asyncio
import errno
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from deploy.local import Failed, Mesh, Part, PortTaken, Site, control, free_base, probes, process, supervisor
from deploy.local.parts import topology
from deploy.local.ports import HOST, is_free
from tests.support.waiting import eventually

SERVER = "import http.server as h; h.HTTPServer(('127.0.0.1', {port}), h.SimpleHTTPRequestHandler).serve_forever()"


def web(port: int) -> Part:
    return Part(
        name="web",
        command=(sys.executable, "-c", SERVER.format(port=port)),
        ports=(port,),
        ready=probes.http(port, "/"),
    )


def task(name: str, code: str, *after: str) -> Part:
    return Part(name=name, command=(sys.executable, "-c", code), after=after)


def _dies_once(mark: Path, code: str) -> str:
    """Code that ends with 9 when it runs for the first time."""
    return f"import pathlib, sys\nm = pathlib.Path({str(mark)!r})\nif not m.exists(): m.touch(); sys.exit(9)\n{code}"


def _no_space(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.at(tmp_path, free_base(30000, 32000))


@pytest.fixture
async def mesh(site: Site) -> AsyncIterator[Mesh]:
    async with Mesh(site, parts=[web(site.ports.base)]) as running:
        yield running


async def test_a_part_waits_for_those_it_comes_after(site: Site) -> None:
    mark = site.home / "mark"
    seen: list[bool] = []
    first = task("first", f"import pathlib; pathlib.Path({str(mark)!r}).touch()")
    second = Part(
        name="second", command=first.command, after=("first",), prepare=lambda: seen.append(mark.exists())
    )  # fmt: skip
    async with Mesh(site, parts=[second, first]):
        assert seen == [True]


async def test_a_killed_part_comes_back_and_is_counted(mesh: Mesh) -> None:
    before = mesh.pid("web")
    await mesh.kill("web")
    await mesh.ready("web")
    assert mesh.pid("web") != before
    assert mesh.restarts("web") == 1


async def test_a_part_kept_down_stays_down_until_restarted(site: Site) -> None:
    is_down = asyncio.Event()

    def report(line: str) -> None:
        assert "starts again" not in line
        if "stays down" in line:
            is_down.set()

    async with Mesh(site, parts=[web(site.ports.base)], report=report) as mesh:
        mesh.keep_down("web")
        await mesh.kill("web")
        await is_down.wait()
        assert is_free(site.ports.base)
        await mesh.restart("web")
        assert (is_free(site.ports.base), mesh.restarts("web")) == (False, 1)


async def test_a_paused_part_can_still_be_stopped(site: Site) -> None:
    async with Mesh(site, parts=[web(site.ports.base)]) as mesh:
        await mesh.kill("web", signal.SIGSTOP)
    assert is_free(site.ports.base)


async def test_a_part_that_fails_stops_all_and_shows_its_log(site: Site) -> None:
    broken = task("broken", "raise SystemExit('no such table')", "web")
    with pytest.raises(Failed, match=r"(?s)broken ended with code 1; .*broken\.log ends:.*no such table"):
        await Mesh(site, parts=[web(site.ports.base), broken]).start()
    assert is_free(site.ports.base)


async def test_a_part_that_dies_once_during_the_start_is_started_again(site: Site) -> None:
    mark = site.home / "mark"
    lines: list[str] = []
    server = _dies_once(mark, SERVER.format(port=site.ports.base))
    dying = replace(web(site.ports.base), command=(sys.executable, "-c", server))
    once = task("once", _dies_once(site.home / "mark of the task", "pass"))
    async with Mesh(site, parts=[dying, once], report=lines.append):
        pass
    assert sorted(line for line in lines if "starts again" in line) == [
        "once ended with code 9; starts again", "web ended with code 9; starts again",
    ]  # fmt: skip


async def test_a_state_that_cannot_be_written_loses_no_part(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "write_private", _no_space)
    await mesh.kill("web")
    await mesh.ready("web")
    await mesh.kill("web")
    await mesh.ready("web")


async def test_a_start_or_a_report_that_fails_in_the_supervisor_is_repeated(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    is_full = False

    def report(line: str) -> None:
        lines.append(line)
        if is_full:
            _no_space()

    spawn = process.spawn

    async def spawn_when_there_is_space(part: Part, log: Path) -> asyncio.subprocess.Process:
        if is_full:
            _no_space()
        return await spawn(part, log)

    monkeypatch.setattr(process, "spawn", spawn_when_there_is_space)
    monkeypatch.setattr(supervisor, "_RETRY_SECONDS", 0.05)
    async with Mesh(site, parts=[web(site.ports.base)], report=report) as mesh:
        is_full = True
        await mesh.kill("web")

        async def tried() -> int:
            return sum("cannot be started" in line for line in lines)

        await eventually(tried, lambda tries: tries >= 2)
        is_full = False
        await mesh.ready("web")


async def test_a_slow_start_says_what_it_waits_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_PROGRESS_SECONDS", 0.05)
    told = asyncio.Event()
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if "waiting for" in line:
            told.set()

    async def answers() -> bool:
        return told.is_set()

    slow = replace(web(site.ports.base), name="slow", ready=answers)
    async with Mesh(site, parts=[slow, task("late", "pass", "slow")], report=report):
        assert lines[0].endswith("waiting for: late (needs slow), slow")


def test_no_part_ends_the_start_of_a_slow_machine(site: Site) -> None:
    assert min(part.timeout_seconds for part in topology(site)) >= 120


async def test_a_cancelled_start_leaves_nothing_running(site: Site) -> None:
    slow = task("slow", "import signal; signal.pause()", "web")
    mesh = Mesh(site, parts=[web(site.ports.base), slow])
    starting = asyncio.create_task(mesh.start())
    await mesh.ready("web")
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert is_free(site.ports.base)


async def test_a_taken_port_is_named_with_its_part_and_a_way_out(site: Site) -> None:
    port = site.ports.base
    other = await asyncio.start_server(lambda reader, writer: None, HOST, port)
    async with other:
        with pytest.raises(PortTaken, match=rf"port {port} of web is taken .*STAMPEDE_PORT={port + 1000}"):
            await Mesh(site, parts=[web(port)]).start()


def test_secrets_are_private_and_kept(tmp_path: Path) -> None:
    first, second = Site.at(tmp_path, 8080), Site.at(tmp_path, 8080)
    assert first.secrets == second.secrets
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_no_secret_is_on_a_command_line(tmp_path: Path) -> None:
    site = Site.at(tmp_path, 8080)
    arguments = " ".join(argument for part in topology(site) for argument in part.command)
    assert not [name for name, secret in site.secrets.items() if secret in arguments]


def test_a_mesh_that_is_not_up_has_no_state(tmp_path: Path) -> None:
    site = Site.at(tmp_path, 8080)
    assert (control.running(site), control.parts(site), control.down(site)) == (None, {}, False)
