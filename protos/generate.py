"""Generates protos/gen, which git ignores, from the .proto files:

  stampede/**        Python messages and stubs, with type stubs
  buf/validate/**    the same for the validation rules, whose .proto is in no wheel
  gateway.binpb      descriptors with comments, for Envoy, the contract tests and buf

`--baseline` also writes the current contract to baseline.binpb, which is committed: later versions must not break it.
Renew it with each release, never to silence tests/contract/test_breaking.py.
"""

import os
import sys
import tempfile
from pathlib import Path

import google.api
import grpc_tools  # type: ignore[import-untyped]
from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb

ROOT = Path(__file__).parent
GEN = ROOT / "gen"
BASELINE = ROOT / "baseline.binpb"
# The wheels of googleapis-common-protos and grpcio-tools contain their .proto files.
COMMON = Path(next(iter(google.api.__path__))).parents[1]
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"
VALIDATE = "buf/validate/validate.proto"
# Envoy renders error details as JSON only if the descriptors contain their types.
GATEWAY_EXTRAS = ["google/rpc/error_details.proto"]


def sources() -> list[str]:
    """Return our .proto files, relative to protos/."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("stampede/**/*.proto"))


def stale() -> bool:
    """Return whether a .proto or this file is newer than the generated files."""
    marker = GEN / "gateway.binpb"
    if not marker.exists():
        return True
    inputs = [ROOT / source for source in sources()] + [Path(__file__)]
    return max(path.stat().st_mtime for path in inputs) > marker.stat().st_mtime


def generate() -> None:
    """Write protos/gen in about a second. Exits with protoc's message if a .proto is wrong."""
    # A rename puts the new files in place, so concurrent readers find the old or the new ones, never a part of them.
    with tempfile.TemporaryDirectory(dir=ROOT, prefix=".gen-") as scratch:
        _generate_into(Path(scratch) / "new")
        if GEN.exists():
            GEN.rename(Path(scratch) / "old")
        (Path(scratch) / "new").rename(GEN)


def _generate_into(folder: Path) -> None:
    folder.mkdir()
    rules = folder / "rules.binpb"
    rules.write_bytes(_validation_rules().SerializeToString())
    # The plugins of mypy-protobuf are installed beside the interpreter, whose folder may be missing in PATH.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    python = [f"--python_out={folder}", f"--mypy_out=quiet:{folder}"]
    _protoc(rules, *python, f"--grpc_python_out={folder}", f"--mypy_grpc_out=quiet:{folder}", *sources())
    _protoc(rules, *python, VALIDATE)
    for package in sorted(path for path in folder.rglob("*") if path.is_dir()):
        (package / "__init__.py").touch()
    _protoc(
        rules,
        "--include_imports",
        "--include_source_info",
        f"--descriptor_set_out={folder}/gateway.binpb",
        *sources(),
        *GATEWAY_EXTRAS,
    )


def keep_baseline() -> None:
    """Write the generated contract to baseline.binpb."""
    files = descriptor_pb2.FileDescriptorSet.FromString((GEN / "gateway.binpb").read_bytes())
    ours = [file for file in files.file if file.name.startswith("stampede/")]
    for file in ours:
        file.ClearField("source_code_info")
    BASELINE.write_bytes(descriptor_pb2.FileDescriptorSet(file=ours).SerializeToString(deterministic=True))


def _validation_rules() -> descriptor_pb2.FileDescriptorSet:
    """Return the descriptors of the validation rules, taken from protovalidate."""
    modules = [
        descriptor_pb2, any_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2, wrappers_pb2,
    ]  # fmt: skip
    files = descriptor_pb2.FileDescriptorSet()
    for module in modules:
        module.DESCRIPTOR.CopyToProto(files.file.add())
    files.file.add().ParseFromString(validate_pb.desc().proto.to_binary())
    return files


def _protoc(rules: Path, *arguments: str) -> None:
    paths = [f"-I{ROOT}", f"-I{COMMON}", f"-I{WELL_KNOWN}", f"--descriptor_set_in={rules}"]
    if protoc.main(["protoc", *paths, *arguments]) != 0:
        sys.exit("protoc failed; the output above has the reason")


if __name__ == "__main__":
    generate()
    if "--baseline" in sys.argv[1:]:
        keep_baseline()
