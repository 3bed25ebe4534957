"""The supervisor, with small parts instead of servers."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.local import Failed, Mesh, Part, PortTaken, Site, control, free_base, probes
from deploy.local.parts import topology
from deploy.local.ports import HOST, is_free

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


def test_the_admin_password_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAMPEDE_ADMIN_PASSWORD", "correct horse battery staple")
    assert Site.at(tmp_path, 8080).secrets["admin"] == "correct horse battery staple"


def test_no_secret_is_on_a_command_line(tmp_path: Path) -> None:
    site = Site.at(tmp_path, 8080)
    arguments = " ".join(argument for part in topology(site) for argument in part.command)
    assert not [name for name, secret in site.secrets.items() if secret in arguments]


def test_a_mesh_that_is_not_up_has_no_state(tmp_path: Path) -> None:
    site = Site.at(tmp_path, 8080)
    assert (control.running(site), control.parts(site), control.down(site)) == (None, {}, False)
