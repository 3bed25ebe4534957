"""Builds dist/stampede_stubs-<version>-py3-none-any.whl: what another team needs to call Stampede over gRPC.

Holds the generated stampede/** and buf/validate/** packages with their type stubs, and nothing of the services. Works
offline, and makes the same bytes from the same contract.
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

import generate  # type: ignore[import-not-found]  # it stands beside this file

ROOT = Path(__file__).parents[1]
_PACKAGES = ("stampede", "buf")
_EPOCH_1980 = "315532800"  # the earliest time that a wheel, being a zip file, can hold

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
    """Builds the wheel into `folder` and returns its path."""
    if generate.stale():
        generate.generate()
    with tempfile.TemporaryDirectory() as name:
        source = Path(name)
        _lay_out(source)
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder.resolve()), name]
        # The mark of a build that can be repeated, unless whoever builds has set their own.
        environment = {"SOURCE_DATE_EPOCH": _EPOCH_1980, **os.environ}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        sys.exit(f"{done.stdout}{done.stderr}\nthe wheel could not be built; the reason is above")
    return max(folder.glob("stampede_stubs-*.whl"), key=lambda path: path.stat().st_mtime)


def _lay_out(source: Path) -> None:
    for package in _PACKAGES:
        shutil.copytree(generate.GEN / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
        (source / package / "py.typed").touch()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    said = {
        "version": project["version"],
        "licence": project["license"],
        "python": project["requires-python"],
        "dependencies": _dependencies(),
    }
    # JSON's strings and lists are TOML's too.
    (source / "pyproject.toml").write_text(_PYPROJECT.format(**{key: json.dumps(value) for key, value in said.items()}))
    (source / "README.md").write_text(_README.format(example=(ROOT / "examples" / "client.py").read_text()))
    for licence in ROOT.glob("LICENSE*"):
        shutil.copy(licence, source)


def _dependencies() -> list[str]:
    """What the stubs run on. They say themselves which versions are too old for them."""
    stubs = next(generate.GEN.glob("stampede/**/*_service_pb2_grpc.py"))
    grpc, grpc_major = _found(r"GRPC_GENERATED_VERSION = '((\d+)[\d.]+)'", stubs)
    protobuf, protobuf_major = _found(
        r"Protobuf Python Version: ((\d+)[\d.]+)", next(generate.GEN.glob("stampede/**/*_pb2.py"))
    )
    return [
        f"grpcio>={grpc},<{int(grpc_major) + 1}",
        # Protobuf promises to run generated code of the major version before, too.
        f"protobuf>={protobuf},<{int(protobuf_major) + 2}",
        "googleapis-common-protos>=1.70,<2",
    ]


def _found(pattern: str, path: Path) -> tuple[str, ...]:
    match = re.search(pattern, path.read_text())
    assert match, f"{path.name} does not say {pattern}"
    return match.groups()


if __name__ == "__main__":
    built = build(ROOT / "dist")
    sys.stdout.write(f"{built.relative_to(ROOT)}\n")
