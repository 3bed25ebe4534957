"""Turns protos/ into what the rest of the repository imports and serves.

Writes protos/gen, which git ignores:
  stampede/**        Python messages and stubs, with type stubs
  buf/validate/**    the same for the validation rules, whose .proto no wheel carries
  gateway.binpb      descriptors with comments, for Envoy, the style tests and buf
"""

import os
import shutil
import sys
from pathlib import Path

import google.api
import grpc_tools
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
# googleapis-common-protos and grpcio-tools ship their .proto files inside their wheels.
COMMON = Path(next(iter(google.api.__path__))).parents[1]
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"
VALIDATE = "buf/validate/validate.proto"
# Envoy renders error details as JSON only when it knows their types.
GATEWAY_EXTRAS = ["google/rpc/error_details.proto"]


def sources() -> list[str]:
    """All .proto files of ours, relative to protos/."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("stampede/**/*.proto"))


def stale() -> bool:
    """Whether any .proto, or this file, is newer than what was generated from it."""
    marker = GEN / "gateway.binpb"
    if not marker.exists():
        return True
    inputs = [ROOT / source for source in sources()] + [Path(__file__)]
    return max(path.stat().st_mtime for path in inputs) > marker.stat().st_mtime


def generate() -> None:
    """Makes protos/gen anew. Takes about a second; exits with protoc's message on a bad .proto."""
    shutil.rmtree(GEN, ignore_errors=True)
    GEN.mkdir()
    rules = GEN / "rules.binpb"
    rules.write_bytes(_validation_rules().SerializeToString())
    # mypy-protobuf's plugins stand beside the interpreter, which need not be on PATH.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    python = [f"--python_out={GEN}", f"--mypy_out=quiet:{GEN}"]
    _protoc(rules, *python, f"--grpc_python_out={GEN}", f"--mypy_grpc_out=quiet:{GEN}", *sources())
    _protoc(rules, *python, VALIDATE)
    for folder in sorted(path for path in GEN.rglob("*") if path.is_dir()):
        (folder / "__init__.py").touch()
    _protoc(
        rules,
        "--include_imports",
        "--include_source_info",
        f"--descriptor_set_out={GEN}/gateway.binpb",
        *sources(),
        *GATEWAY_EXTRAS,
    )


def _validation_rules() -> descriptor_pb2.FileDescriptorSet:
    """The validation rules as descriptors, taken from inside protovalidate."""
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
        sys.exit("protoc failed; its message is above")


if __name__ == "__main__":
    generate()
