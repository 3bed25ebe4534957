"""The wheel of stubs works for another team: it installs, the example runs on it, and its types are checked."""

import asyncio
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest
import wheel

from stampede.catalog.v1 import catalog_service_pb2 as catalog_pb
from stampede.catalog.v1.catalog_service_pb2_grpc import CatalogServiceServicer, add_CatalogServiceServicer_to_server
from stampede.inventory.v1 import flash_sale_service_pb2 as sales_pb
from stampede.inventory.v1.flash_sale_service_pb2_grpc import (
    FlashSaleServiceServicer,
    add_FlashSaleServiceServicer_to_server,
)
from stampede.type.v1.money_pb2 import Money
from tests.support.serving import serving

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "client.py"
SITE_PACKAGES = sysconfig.get_path("purelib")
# Paths of a machine, which must not be in a wheel; the checkout's own first.
PATHS = re.compile(re.escape(str(ROOT)).encode() + rb"|/(?:home|root|tmp|Users)/")


class Catalog(CatalogServiceServicer):
    async def ListProducts(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        assert request.page_size > 0
        clock = catalog_pb.Product(
            sku="RETRO-CLOCK", name="Retro clock", price=Money(currency_code="EUR", minor_units=4900)
        )
        return catalog_pb.ListProductsResponse(products=[clock])


class FlashSales(FlashSaleServiceServicer):
    async def ListFlashSales(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        sale = sales_pb.FlashSale(title="Clocks at dawn", state=sales_pb.FlashSale.LIVE, remaining=3, allocation=100)
        return sales_pb.ListFlashSalesResponse(flash_sales=[sale])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel.build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the installed wheel and nothing else."""
    target = tmp_path_factory.mktemp("client")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--target", target]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, built], check=True)
    return target


def isolated(target: Path, *arguments: str | Path, **variables: str) -> tuple[list[str | Path], dict[str, str]]:
    """Return a command of this interpreter that finds the wheel and its dependencies, but not this checkout.

    Without `site`, the .pth file that puts the checkout on the path of the virtual environment is not read.
    """
    path = f"{target}:{SITE_PACKAGES}"
    return [sys.executable, "-S", "-P", *arguments], {"PYTHONPATH": path, "PATH": "", **variables}


def test_the_wheel_holds_typed_packages_and_no_paths_of_this_machine(built: Path) -> None:
    with zipfile.ZipFile(built) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert {"stampede/py.typed", "buf/py.typed", "buf/validate/validate_pb2.pyi"} <= contents.keys()
    stubs = {name for name in contents if name.endswith("_pb2_grpc.py")}
    assert {f"{name}i" for name in stubs} <= contents.keys()
    assert {name.split("/")[0].split("-")[0] for name in contents} == {"stampede", "buf", "stampede_stubs"}
    assert not [name for name, content in contents.items() if PATHS.search(content)]


def test_the_wheel_has_a_licence_and_its_requirements(built: Path) -> None:
    with zipfile.ZipFile(built) as archive:
        metadata = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    needed = set(re.findall(r"^Requires-Dist: ([\w-]+)<\d+,>=[\d.]+$", metadata, re.MULTILINE))
    assert needed == {"grpcio", "protobuf", "googleapis-common-protos"}


def test_the_same_contract_gives_the_same_wheel(built: Path, tmp_path: Path) -> None:
    assert wheel.build(tmp_path).read_bytes() == built.read_bytes()


async def test_the_example_runs_on_the_wheel_alone(installed: Path) -> None:
    ports: list[int] = []

    async with (
        serving("catalog", lambda server: add_CatalogServiceServicer_to_server(Catalog(), server), ports=ports),
        serving("inventory", lambda server: add_FlashSaleServiceServicer_to_server(FlashSales(), server), ports=ports),
    ):
        catalog, inventory = (f"127.0.0.1:{port}" for port in ports)
        command, environment = isolated(installed, EXAMPLE, CATALOG_TARGET=catalog, INVENTORY_TARGET=inventory)
        client = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        output, errors = await asyncio.wait_for(client.communicate(), 30)
    assert client.returncode == 0, errors.decode()
    assert output.decode().splitlines() == ["RETRO-CLOCK Retro clock 4900 EUR", "Clocks at dawn LIVE 3 of 100 left"]


def test_the_example_has_no_other_stubs_to_find(installed: Path) -> None:
    """Otherwise the test above would show only that this checkout works."""
    command, environment = isolated(installed, "-c", "import stampede, buf; print(stampede.__file__, buf.__file__)")
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert all(path.startswith(str(installed)) for path in output.split())


def test_the_example_passes_strict_types(installed: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        "--cache-dir",
        ROOT / ".mypy_cache" / "stubs",
    ]
    done = subprocess.run(
        [*command, EXAMPLE], env={"MYPYPATH": str(installed), "PATH": ""}, cwd=installed, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_readme_shows_the_example_as_it_is() -> None:
    readme = ROOT / "README.md"
    block = re.search(
        r"<!-- examples/client\.py -->\s*```python\n(.*?)```", readme.read_text() if readme.exists() else "", re.DOTALL
    )
    if not block:
        pytest.skip("README.md has no block marked <!-- examples/client.py --> yet")
    assert block[1] == EXAMPLE.read_text()
