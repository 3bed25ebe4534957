"""Checks the contract with buf, offline: its style rules (buf.yaml) and its formatting.

buf would fetch the files that ours import from its registry. It gets them from protos/gen/gateway.binpb instead,
marked as imports, so that it lints ours alone.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import generate  # type: ignore[import-not-found]  # it stands beside this file
from google.protobuf.descriptor_pb2 import FileDescriptorSet

ROOT = Path(__file__).parent
BUF = Path(sys.executable).with_name("buf")
# The field that makes a file of a descriptor set one of a buf image: `buf_extension = 8042`, with `is_import: true`.
_IS_IMPORT = bytes.fromhex("d2f603 02 0801")


def image() -> bytes:
    """What was generated last, as an image in which all but our own files are imports."""
    files = FileDescriptorSet.FromString((ROOT / "gen" / "gateway.binpb").read_bytes())
    for file in files.file:
        if not file.name.startswith("stampede/"):
            file.MergeFromString(_IS_IMPORT)
    return files.SerializeToString()


def main() -> int:
    """Prints what is wrong; the exit status is 1 where anything is."""
    if generate.stale():
        generate.generate()
    with tempfile.NamedTemporaryFile(suffix=".binpb") as file:
        file.write(image())
        file.flush()
        style = _buf("lint", file.name, "--config", "buf.yaml")
    formatting = _buf("format", "--diff", "--exit-code", ".")
    if formatting:
        sys.stdout.write("fix with: cd protos && ../.venv/bin/buf format --write .\n")
    return int(bool(style or formatting))


def _buf(*arguments: str) -> int:
    return subprocess.run([BUF, *arguments], cwd=ROOT, check=False).returncode  # noqa: S603  # buf is ours


if __name__ == "__main__":
    sys.exit(main())
