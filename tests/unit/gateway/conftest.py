import sys
from collections.abc import Callable
from pathlib import Path

import google.api
import grpc_tools  # type: ignore[import-untyped, unused-ignore]
import pytest
from grpc_tools import protoc  # type: ignore[import-untyped, unused-ignore]

HERE = Path(__file__).parent
COMMON = Path(next(iter(google.api.__path__))).parents[1]
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"

Compile = Callable[[str], Path]


@pytest.fixture(scope="session")
def shop() -> str:
    return (HERE / "shop.proto").read_text()


@pytest.fixture
def compile_contract(tmp_path: Path) -> Compile:
    """Return a function that compiles the text of a .proto to a descriptor set for Envoy."""

    def compiled(text: str) -> Path:
        (tmp_path / "shop.proto").write_text(text)
        target = tmp_path / "shop.binpb"
        roots = (tmp_path, HERE.parents[2] / "protos", COMMON, WELL_KNOWN)
        options = [f"-I{root}" for root in roots]
        files = [str(tmp_path / "shop.proto"), "google/rpc/error_details.proto"]
        code = protoc.main(["protoc", *options, "--include_imports", f"--descriptor_set_out={target}", *files])
        assert code == 0, f"protoc failed: {sys.stderr}"
        return target

    return compiled


@pytest.fixture
def descriptor(compile_contract: Compile, shop: str) -> Path:
    return compile_contract(shop)
