"""A service that is told placeholders for secrets does not start in production."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_SECRET = "change-me-please-1234567890"


async def start(service: str, **environment: str) -> tuple[int, str]:
    """Exit code and everything that was said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"services.{service}",
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos/gen'}", **environment},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode is not None
    return process.returncode, said.decode()


@pytest.mark.parametrize("service", ["catalog", "identity", "inventory", "orders", "payments"])
async def test_production_refuses_placeholders_naming_all_of_them_and_none_of_their_values(service: str) -> None:
    weak = {
        "MESH_SECRET": _SECRET, "PAGE_SECRET": "short", "NATS_URL": "nats://stampede:password@nats:4222",
        "DATABASE_URL": "postgresql+psycopg://orders:example@postgres/orders", "KEY_SECRET": _SECRET,
        "STRIPE_API_KEY": "sk_test_example", "STRIPE_WEBHOOK_SECRET": "whsec_change-me-0000",
        "VALKEY_URL": "redis://:secret@valkey:6379/0",
    }  # fmt: skip
    own = {"identity": ["KEY_SECRET"], "payments": ["STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET"]}.get(service, [])

    code, said = await start(service, ENVIRONMENT="production", **weak)

    assert code != 0
    for name in ("MESH_SECRET", "PAGE_SECRET", "NATS_URL", "DATABASE_URL", *own):
        assert f"{name}:" in said, said
    for value in (_SECRET, "short\n", ":password@", ":example@", "sk_test_example", "change-me"):
        assert value not in said, said
    assert "Traceback" not in said


async def test_production_is_what_a_service_takes_itself_to_be_in_unless_told_otherwise() -> None:
    code, said = await start("orders", MESH_SECRET=_SECRET)

    assert code != 0
    assert "MESH_SECRET: " in said
    assert "DATABASE_URL: Field required" in said
    assert _SECRET not in said
