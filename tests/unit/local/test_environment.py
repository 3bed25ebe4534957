"""A developer's shell changes nothing in the mesh, and no command acts on another mesh than the one it is for."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.audit import Sources
from deploy.local import Mesh, Part, Site, control
from deploy.local.environment import Contradiction, forget_libraries
from deploy.local.location import ROOT
from deploy.local.parts import service_environment
from deploy.local.ports import SERVICES

_FOREIGN = {
    "http_proxy": "http://proxy:1", "HTTPS_PROXY": "http://proxy:1", "PGSSLMODE": "require", "PGOPTIONS": "-c x=y",
    "PGSERVICE": "other", "PYTHONWARNINGS": "error", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:1",
    "GRPC_VERBOSITY": "debug", "MESH_SECRET": "of another mesh", "ORDERS_DATABASE_URL": "of another mesh",
}  # fmt: skip


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in ("STAMPEDE_PORT", "STAMPEDE_URL", "STAMPEDE_ADMIN_PASSWORD", "STAMPEDE_PASS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STAMPEDE_HOME", str(tmp_path / "home"))
    return monkeypatch


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)


async def test_a_part_inherits_the_listed_variables_only(tmp_path: Path, environ: pytest.MonkeyPatch) -> None:
    for name, value in _FOREIGN.items():
        environ.setenv(name, value)
    environ.setenv("LANG", "C.UTF-8")
    environ.setenv("STAMPEDE_PASS", "OTEL_EXPORTER_OTLP_ENDPOINT, NOT_SET")
    out = tmp_path / "out"
    code = f"import os, pathlib; pathlib.Path({str(out)!r}).write_text(' '.join(os.environ))"
    site = Site.here()
    async with Mesh(site, parts=[Part(name="task", command=(sys.executable, "-c", code), environment={"OWN": "1"})]):
        pass
    inherited = set(out.read_text().split()) - {"LC_CTYPE"}  # Python sets it
    assert inherited <= {"PATH", "HOME", "LANG", "TMPDIR", "OWN", "OTEL_EXPORTER_OTLP_ENDPOINT"}
    assert inherited >= {"PATH", "LANG", "OWN", "OTEL_EXPORTER_OTLP_ENDPOINT"}


@pytest.mark.parametrize("name", SERVICES)
def test_the_settings_of_a_service_come_from_its_mesh_and_not_from_the_shell(
    name: str, environ: pytest.MonkeyPatch
) -> None:
    site = Site.here()
    settings = service_environment(site, name)
    for setting in ("LOG_LEVEL", "WORKERS", *settings):
        environ.setenv(setting, "of the shell")
    assert service_environment(site, name) == settings


def test_a_command_forgets_what_its_libraries_would_read() -> None:
    environ = {**_FOREIGN, "PATH": "/bin", "TERM": "xterm", "no_proxy": "*", "STAMPEDE_PASS": "PGSSLMODE"}
    forget_libraries(environ)
    assert environ.keys() == {"PATH", "TERM", "STAMPEDE_PASS", "PGSSLMODE", "MESH_SECRET", "ORDERS_DATABASE_URL"}


@pytest.mark.parametrize("port", ["abc", "0", "-1", "65535", "99999", "8080.5", "8 080", "８０８０", "1e4"])
def test_a_port_that_cannot_be_is_refused(port: str, environ: pytest.MonkeyPatch) -> None:
    environ.setenv("STAMPEDE_PORT", port)
    with pytest.raises(Contradiction, match=f"^STAMPEDE_PORT={port} is not a port from 1 to 65500$"):
        Site.here()


def test_commands_refuse_in_one_line() -> None:
    for command in ("deploy.local up", "deploy.demo", "deploy.audit"):
        refused = _run(*command.split(), STAMPEDE_PORT="abc")
        assert (refused.returncode, refused.stderr) == (1, "STAMPEDE_PORT=abc is not a port from 1 to 65500\n")


def test_the_first_start_may_choose_the_admin_password(environ: pytest.MonkeyPatch) -> None:
    environ.setenv("STAMPEDE_ADMIN_PASSWORD", "correct horse battery staple")
    assert Site.here().secrets["admin"] == "correct horse battery staple"
    assert Site.here().secrets["admin"] == "correct horse battery staple"


def test_a_shell_of_another_mesh_is_refused_and_changes_nothing(environ: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other, mine = Site.at(tmp_path / "other", 8080), Site.at(tmp_path / "home", 9080)
    environ.setenv("STAMPEDE_PORT", "9080")
    for name, value in other.exports().items():
        environ.setenv(name, value)
    with pytest.raises(Contradiction, match=r"^STAMPEDE_URL, STAMPEDE_ADMIN_PASSWORD in this shell .*home at .*9080"):
        Site.here()
    environ.delenv("STAMPEDE_URL")
    with pytest.raises(Contradiction, match=r"^STAMPEDE_ADMIN_PASSWORD in this shell"):
        Site.here()
    assert Site.to_export().exports() == mine.exports()


def test_a_new_mesh_takes_no_password_from_a_shell_of_another(environ: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = Site.at(tmp_path / "other", 8080)
    environ.setenv("STAMPEDE_PORT", "9080")
    for name, value in other.exports().items():
        environ.setenv(name, value)
    with pytest.raises(Contradiction):
        Site.here()
    assert Site.to_export().secrets["admin"] != other.secrets["admin"]


def test_the_audit_reads_no_databases_of_another_mesh(environ: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = Site.at(tmp_path / "other", 8080)
    names = {name: value for name, value in other.exports().items() if name.endswith(("DATABASE_URL", "SANDBOX_URL"))}
    for name, value in names.items():
        environ.setenv(name, value)
    with pytest.raises(Contradiction, match=r"CATALOG_DATABASE_URL, .* --from-environment"):
        Sources.here()
    assert Sources.named().databases["orders"] == other.database_url("orders")
    for name in names:
        environ.delenv(name)
    assert Sources.here() == Sources.of(Site.here())


def test_env_prints_what_a_shell_needs_for_this_mesh(tmp_path: Path) -> None:
    printed = _run("deploy.local", "env", STAMPEDE_HOME=str(tmp_path / "a b"), STAMPEDE_URL="http://other").stdout
    exports = dict(shlex.split(line)[1].split("=", 1) for line in printed.splitlines())
    assert exports == Site.at(tmp_path / "a b", 8080).exports()


def test_logs_before_the_first_start_say_so(tmp_path: Path) -> None:
    for arguments in ([], ["-f"]):
        shown = _run("deploy.local", "logs", *arguments, STAMPEDE_HOME=str(tmp_path))
        assert (shown.returncode, shown.stdout) == (1, "there are no logs yet; `make up` starts the mesh\n")
    Site.at(tmp_path, 8080).log("orders").write_text("x")
    shown = _run("deploy.local", "logs", "carts", STAMPEDE_HOME=str(tmp_path))
    assert (shown.returncode, shown.stdout) == (1, "no log of carts; there are logs of: orders\n")


def test_a_home_that_cannot_be_a_folder_is_refused(tmp_path: Path, environ: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    environ.setenv("STAMPEDE_HOME", str(tmp_path / "file"))
    with pytest.raises(Contradiction, match=r"STAMPEDE_HOME=.* cannot be used: "):
        Site.here()


def test_damaged_secrets_are_named_and_kept(tmp_path: Path) -> None:
    Site.at(tmp_path, 8080)
    (tmp_path / "secrets.json").write_text('{"admin": "x')
    refused = _run("deploy.local", "status", STAMPEDE_HOME=str(tmp_path))
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert refused.stderr.startswith(f"{tmp_path}/secrets.json is damaged; ")
    assert (tmp_path / "secrets.json").read_text() == '{"admin": "x'


def test_a_file_that_cannot_be_read_is_an_error_in_one_line(tmp_path: Path) -> None:
    Site.at(tmp_path, 8080)
    (tmp_path / "run/supervisor.pid").mkdir()
    refused = _run("deploy.local", "status", STAMPEDE_HOME=str(tmp_path))
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert refused.stderr.startswith("status failed: ")


def test_a_running_mesh_on_other_ports_is_named(tmp_path: Path) -> None:
    with control._lock(Site.at(tmp_path, 8080)) as lock:
        assert lock
        assert control.running(Site.at(tmp_path, 8080)) == os.getpid()
        with pytest.raises(Contradiction, match=r"runs on STAMPEDE_PORT=8080, and this command is for 9080"):
            control.running(Site.at(tmp_path, 9080))
