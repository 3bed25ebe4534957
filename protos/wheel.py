"""Builds dist/stampede_stubs-<version>-py3-none-any.whl: the package with which another team calls Stampede over gRPC.

It contains the generated stampede/** and buf/validate/** packages with their type stubs, and nothing of the services.
The build works offline. The same contract gives the same bytes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import generate  # type: ignore[import-not-found]  # it is in this folder

ROOT = Path(__file__).parents[1]
_PACKAGES = ("stampede", "buf")
_EPOCH_1980 = "315532800"  # the earliest time in a wheel, which is a zip file
_BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"

_README = """\
# stampede-stubs

Python messages, gRPC stubs and type stubs of Stampede, a flash-sale commerce
backend. Built from its contract; `import stampede.catalog.v1.catalog_service_pb2_grpc` and so on.

```python
{example}```
"""

_PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "stampede-stubs"
version = {version}
description = "Typed gRPC stubs of Stampede, a flash-sale commerce backend"
readme = "README.md"
license = {licence}
requires-python = {python}
dependencies = {dependencies}

[tool.setuptools.packages.find]
include = ["stampede*", "buf*"]

[tool.setuptools.package-data]
"*" = ["*.pyi", "py.typed"]
"""


def build(folder: Path) -> Path:
    """Build the wheel in `folder` and return its path."""
    if generate.stale():
        generate.generate()
    with tempfile.TemporaryDirectory() as name:
        source = Path(name)
        _lay_out(source)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", _BUILD, str(folder.resolve())]
        # A fixed time makes the build reproducible. The environment may give another.
        environment = {"SOURCE_DATE_EPOCH": _EPOCH_1980, **os.environ}
        done = subprocess.run(command, cwd=name, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        sys.exit(f"{done.stdout}{done.stderr}\ncannot build the wheel; the output above has the reason")
    return max(folder.glob("stampede_stubs-*.whl"), key=lambda path: path.stat().st_mtime)


def _lay_out(source: Path) -> None:
    for package in _PACKAGES:
        shutil.copytree(generate.GEN / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
        (source / package / "py.typed").touch()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    values = {
        "version": project["version"],
        "licence": project["license"],
        "python": project["requires-python"],
        "dependencies": _dependencies(),
    }
    # JSON's strings and lists are valid TOML.
    filled = _PYPROJECT.format(**{key: json.dumps(value) for key, value in values.items()})
    (source / "pyproject.toml").write_text(filled)
    (source / "README.md").write_text(_README.format(example=(ROOT / "examples" / "client.py").read_text()))
    for licence in ROOT.glob("LICENSE*"):
        shutil.copy(licence, source)


def _dependencies() -> list[str]:
    """Return the requirements of the stubs. The generated files name the oldest versions that run them."""
    stubs = next(generate.GEN.glob("stampede/**/*_service_pb2_grpc.py"))
    grpc, grpc_major = _found(r"GRPC_GENERATED_VERSION = '((\d+)[\d.]+)'", stubs)
    protobuf, protobuf_major = _found(
        r"Protobuf Python Version: ((\d+)[\d.]+)", next(generate.GEN.glob("stampede/**/*_pb2.py"))
    )
    return [
        f"grpcio>={grpc},<{int(grpc_major) + 1}",
        # A major version of protobuf also runs the code that the previous one generated.
        f"protobuf>={protobuf},<{int(protobuf_major) + 2}",
        "googleapis-common-protos>=1.70,<2",
    ]


def _found(pattern: str, path: Path) -> tuple[str, ...]:
    match = re.search(pattern, path.read_text())
    assert match, f"{path.name} has no {pattern}"
    return match.groups()


if __name__ == "__main__":
    built = build(ROOT / "dist")
    sys.stdout.write(f"{built.relative_to(ROOT)}\n")
