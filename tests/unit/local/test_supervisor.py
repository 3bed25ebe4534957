"""The supervisor, with small parts of our own instead of servers."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.local import Failed, Mesh, Part, PortTaken, Site, free_base, probes, supervisor
from deploy.local.ports import HOST, is_free

SERVER = "import http.server as h; h.HTTPServer(('127.0.0.1', {port}), h.SimpleHTTPRequestHandler).serve_forever()"


def web(name: str, port: int, *after: str) -> Part:
    return Part(
        name=name,
        command=(sys.executable, "-c", SERVER.format(port=port)),
        ports=(port,),
        after=after,
        ready=probes.http(port, "/"),
    )


def task(name: str, code: str, *after: str) -> Part:
    return Part(name=name, command=(sys.executable, "-c", code), after=after)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.at(tmp_path, free_base(30000, 32000))


def mesh_of(site: Site, monkeypatch: pytest.MonkeyPatch, *parts: Part) -> Mesh:
    monkeypatch.setattr(supervisor, "topology", lambda _: parts)
    return Mesh(site, tuple(part.name for part in parts))


@pytest.fixture
async def mesh(site: Site, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    async with mesh_of(site, monkeypatch, web("shop", site.ports.base)) as running:
        yield running


async def test_a_part_waits_for_those_it_comes_after(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = site.home / "mark"
    first = task("first", f"import time, pathlib; time.sleep(0.3); pathlib.Path({str(mark)!r}).touch()")
    second = task("second", f"import pathlib; assert pathlib.Path({str(mark)!r}).exists()", "first")
    async with mesh_of(site, monkeypatch, second, first):
        assert mark.exists()


async def test_a_killed_part_comes_back_and_is_counted(mesh: Mesh) -> None:
    before = mesh.pid("shop")
    await mesh.kill("shop")
    await mesh.ready("shop")
    assert mesh.pid("shop") != before
    assert mesh.restarts("shop") == 1


async def test_a_part_kept_down_stays_down_until_restarted(mesh: Mesh) -> None:
    mesh.keep_down("shop")
    await mesh.kill("shop")
    await asyncio.sleep(0.5)
    assert is_free(mesh.site.ports.base)
    await mesh.restart("shop")
    assert not is_free(mesh.site.ports.base)


async def test_a_paused_part_can_still_be_stopped(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh_of(site, monkeypatch, web("shop", site.ports.base)) as mesh:
        await mesh.kill("shop", signal.SIGSTOP)
    assert is_free(site.ports.base)


async def test_a_part_that_fails_stops_all_and_shows_its_log(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = web("shop", site.ports.base)
    broken = task("broken", "raise SystemExit('no such table')", "shop")
    with pytest.raises(Failed, match=r"(?s)broken ended with code 1; .*broken\.log ends:.*no such table"):
        await mesh_of(site, monkeypatch, shop, broken).start()
    assert is_free(site.ports.base)


async def test_a_start_that_is_cancelled_leaves_nothing_running(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = web("shop", site.ports.base)
    slow = task("slow", "import time; time.sleep(60)", "shop")
    mesh = mesh_of(site, monkeypatch, shop, slow)
    starting = asyncio.create_task(mesh.start())
    await mesh.ready("shop")
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert is_free(site.ports.base)


async def test_a_taken_port_is_named_with_the_part_and_the_way_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    port = site.ports.base
    other = await asyncio.start_server(lambda reader, writer: None, HOST, port)
    async with other:
        with pytest.raises(PortTaken, match=rf"port {port} is taken, and shop wants it.*STAMPEDE_PORT={port + 1000}"):
            await mesh_of(site, monkeypatch, web("shop", port)).start()


def test_secrets_are_private_and_kept(tmp_path: Path) -> None:
    first, second = Site.at(tmp_path, 8080), Site.at(tmp_path, 8080)
    assert first.secrets == second.secrets
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_the_admin_password_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAMPEDE_ADMIN_PASSWORD", "correct horse battery staple")
    assert Site.at(tmp_path, 8080).secrets["admin"] == "correct horse battery staple"


def test_no_secret_is_on_a_command_line(tmp_path: Path) -> None:
    from deploy.local.parts import topology

    site = Site.at(tmp_path, 8080)
    arguments = " ".join(argument for part in topology(site) for argument in part.command)
    assert not [name for name, secret in site.secrets.items() if secret in arguments]
