"""A service with placeholders for secrets does not start in production."""

import asyncio
import importlib
import os
import sys
from pathlib import Path

import pytest

from services.chassis import settings

ROOT = Path(__file__).parents[2]
_SECRET = "change-me-please-1234567890"
_WEAK = {
    "MESH_SECRET": _SECRET, "PAGE_SECRET": "short", "NATS_URL": "nats://stampede:password@nats:4222",
    "DATABASE_URL": "postgresql+psycopg://orders:example@postgres/orders", "KEY_SECRET": _SECRET,
    "STRIPE_API_KEY": "sk_test_example", "STRIPE_WEBHOOK_SECRET": "whsec_change-me-0000",
    "VALKEY_URL": "redis://:secret@valkey:6379/0",
}  # fmt: skip
_OWN = {"identity": ["KEY_SECRET"], "payments": ["STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET"]}


@pytest.mark.parametrize("service", ["catalog", "identity", "inventory", "orders", "payments"])
def test_production_refuses_placeholders_by_name_and_not_by_value(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = importlib.import_module(f"services.{service}.settings").Settings
    for name in kind.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in {"ENVIRONMENT": "production", **_WEAK}.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SystemExit) as refused:
        settings.load(kind)

    message = str(refused.value)
    for name in ("MESH_SECRET", "PAGE_SECRET", "NATS_URL", "DATABASE_URL", *_OWN.get(service, [])):
        assert f"{name}:" in message
    for value in (_SECRET, "short\n", ":password@", ":example@", "sk_test_example", "change-me"):
        assert value not in message


async def test_process_that_is_not_told_otherwise_takes_itself_to_be_in_production() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.orders",
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos/gen'}", "MESH_SECRET": _SECRET
        },
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), 60)

    assert process.returncode != 0
    assert "MESH_SECRET: " in output.decode()
    assert "DATABASE_URL: Field required" in output.decode()
    assert _SECRET not in output.decode()
    assert "Traceback" not in output.decode()
