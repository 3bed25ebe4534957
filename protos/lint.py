"""Checks the contract with buf, offline: style rules and formatting here, breaking changes in tests/contract.

buf would download the imports of our files from its registry. Instead it gets them from protos/gen/gateway.binpb,
marked as imports, so buf checks our files alone.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import generate  # type: ignore[import-not-found]  # it is in this folder
from google.protobuf.descriptor_pb2 import FileDescriptorSet

ROOT = Path(__file__).parent
BUF = Path(sys.executable).with_name("buf")
# `buf_extension = 8042` with `is_import: true`: this field of a file turns a descriptor set into a buf image.
_IS_IMPORT = bytes.fromhex("d2f603 02 0801")


def current() -> FileDescriptorSet:
    """Return the descriptors that `generate.py` wrote last."""
    return FileDescriptorSet.FromString((ROOT / "gen" / "gateway.binpb").read_bytes())


def breaking_changes(before: FileDescriptorSet, now: FileDescriptorSet) -> list[str]:
    """Return what `buf breaking` reports, one JSON object per break."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, files in (("before.binpb", before), ("now.binpb", now)):
            (folder / path).write_bytes(_image(files))
        arguments = ["breaking", "now.binpb", "--against", "before.binpb", "--error-format", "json"]
        config = ["--config", str(ROOT / "buf.yaml")]
        done = subprocess.run([BUF, *arguments, *config], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603  # buf is ours
    # buf exits with 100 if it reports breaks; any other code but 0 means that it could not compare.
    if done.returncode not in (0, 100):
        raise RuntimeError(done.stderr)
    return done.stdout.splitlines()


def main() -> int:
    """Print all findings and return 1 if there are any."""
    if generate.stale():
        generate.generate()
    with tempfile.NamedTemporaryFile(suffix=".binpb") as file:
        file.write(_image(current()))
        file.flush()
        style = _buf("lint", file.name, "--config", "buf.yaml")
    formatting = _buf("format", "--diff", "--exit-code", ".")
    if formatting:
        sys.stdout.write("fix with: cd protos && ../.venv/bin/buf format --write .\n")
    return int(bool(style or formatting))


def _image(files: FileDescriptorSet) -> bytes:
    """Return a buf image of our files in `files`, with everything that they import."""
    image = FileDescriptorSet(file=[file for file in current().file if not file.name.startswith("stampede/")])
    for file in image.file:
        file.MergeFromString(_IS_IMPORT)
    image.file.extend(file for file in files.file if file.name.startswith("stampede/"))
    return image.SerializeToString()


def _buf(*arguments: str) -> int:
    return subprocess.run([BUF, *arguments], cwd=ROOT, check=False).returncode  # noqa: S603  # buf is ours


if __name__ == "__main__":
    sys.exit(main())
