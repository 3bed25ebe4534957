"""A service with weak or shared secrets, or a provider without TLS, does not start in production."""

import asyncio
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from services.chassis import settings
from services.chassis.settings import Secrets
from tests.contract.deployment.deployed import SERVICES, environments
from tests.contract.deployment.deployed import settings as settings_of

ROOT = Path(__file__).parents[3]
_SECRET = "change-me-please-1234567890"
_WEAK = {
    "MESH_SECRET": _SECRET, "PAGE_SECRET": "short", "NATS_URL": "nats://stampede:password@nats:4222",
    "DATABASE_URL": "postgresql+psycopg://orders:example@postgres/orders", "KEY_SECRET": _SECRET,
    "STRIPE_API_KEY": "sk_test_example", "STRIPE_WEBHOOK_SECRET": "whsec_change-me-0000",
    "RAZORPAY_KEY_SECRET": "secret_of_the_sandbox", "RAZORPAY_WEBHOOK_SECRET": _SECRET,
    "VALKEY_URL": "redis://:secret@valkey:6379/0",
}  # fmt: skip
_OF_RAZORPAY = ("RAZORPAY_KEY_SECRET", "RAZORPAY_WEBHOOK_SECRET")
_OWN = {"identity": ["KEY_SECRET"], "payments": ["STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET", *_OF_RAZORPAY]}


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


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"RAZORPAY_KEY_ID": "rzp_live_1", "RAZORPAY_KEY_SECRET": ""}, "RAZORPAY_KEY_ID needs"),
        ({"RAZORPAY_KEY_ID": "rzp_live_1", "RAZORPAY_WEBHOOK_SECRET": ""}, "RAZORPAY_KEY_ID needs"),
        ({"PAYMENT_PROVIDER": "razorpay"}, "PAYMENT_PROVIDER=razorpay needs RAZORPAY_KEY_ID"),
        ({"PAYMENT_PROVIDER": "paypal"}, "PAYMENT_PROVIDER: "),
        ({"RAZORPAY_API_BASE": "http://api.razorpay.com"}, "RAZORPAY_API_BASE: "),
        ({"RAZORPAY_KEY_ID": "rzp_live_1", "PAYMENT_PROVIDER": "razorpay"}, ""),
    ],
)
def test_a_provider_is_set_up_as_a_whole(
    changes: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = _started("payments", changes, monkeypatch)
    assert problem in refusal if problem else not refusal


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


_STRONG, _OTHER = "kV7bT2mXq9LwZ4cRf8Ys", "pG3nJ6hDx5QvB1tWz0Ua"
_WEAK_SECRETS = (
    "", " " * 16, "x", "a" * 32, "ab" * 16, "abcd1234" * 4, "abcd1234abcd1234ab", "0123456789abcdef",
    "zyxwvutsrqponmlkj", "aabbccddeeffgghh", "acegikmoqsuwy024", "change_me_" * 3, "ChangeMe-please-now",
    "p4ssw0rd-of-the-shop", "correct-passphrase-1", f"  {_STRONG[:12]}  ", "\t\n" * 20, "Xk9f" * 4, "pG7vQ2mZ" * 3,
    "stampede-2026-shop", "Adm1n-adm1n-2026-x", "qwertzuiopasdfgh", "1q2w3e4r5t6z7u8i", "deadbeefcafebabe",
)  # fmt: skip


def _started(service: str, changes: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Starts the service with the settings of Compose and these changes; returns the refusal, or nothing."""
    _, _, serve = environments(service)[0]
    for name in settings_of(service).model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in {**serve, **changes}.items():
        monkeypatch.setenv(name, value)
    try:
        settings.load(settings_of(service))
    except SystemExit as refused:
        return str(refused)
    return ""


def _secret_settings() -> Iterator[tuple[str, str, bool]]:
    """Yields (service, variable, is a list) of every setting that holds a secret."""
    for service in SERVICES:
        for name, field in settings_of(service).model_fields.items():
            if "Secret" in str(field.annotation):
                yield service, name.upper(), field.annotation in (Secrets, Secrets | None)


def _holding(variable: str, secret: str) -> str:
    """The value of the setting that holds this secret: of a URL, the password."""
    return f"scheme://name:{secret}@host.example.com/name" if variable.endswith("_URL") else secret


@pytest.mark.parametrize(("service", "variable", "is_list"), list(_secret_settings()))
def test_every_secret_of_every_service_must_be_strong(
    service: str, variable: str, is_list: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _started(service, {variable: _holding(variable, _STRONG)}, monkeypatch) == ""
    for weak in _WEAK_SECRETS:
        if variable in ("ADMIN_PASSWORD", *_OF_RAZORPAY) and not weak:
            continue  # no administrator is to be created, or nothing is paid through Razorpay
        assert f"{variable}: " in (refusal := _started(service, {variable: _holding(variable, weak)}, monkeypatch)), (
            weak
        )
        assert len(weak.strip()) < 2 or weak.strip() not in refusal
        if is_list and weak.strip():
            for several in (f"{_STRONG},{weak}", f"{weak},{_STRONG}", f"{_STRONG}, {weak} ,{_OTHER}"):
                assert f"{variable}: " in _started(service, {variable: several}, monkeypatch), several


@pytest.mark.parametrize("service", SERVICES)
def test_no_two_settings_of_a_service_hold_one_secret(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = [(variable, is_list) for owner, variable, is_list in _secret_settings() if owner == service]
    forms = (_STRONG, _STRONG.upper(), f"{_STRONG[:10]}-{_STRONG[10:]}", f" {_STRONG} ", f"%6B{_STRONG[1:]}")
    for index, (first, _) in enumerate(mine):
        for second, is_list in mine[index + 1 :]:
            for form in forms if second.endswith("_URL") else forms[:-1]:
                values = [form, f"{_OTHER},{form}"] if is_list else [form]
                for value in values:
                    changes = {first: _holding(first, _STRONG), second: _holding(second, value)}
                    refusal = _started(service, changes, monkeypatch)
                    assert re.search(rf"\b({first} and {second}|{second} and {first}) hold the same secret", refusal)
                    assert _STRONG not in refusal


def test_list_that_repeats_a_secret_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"MESH_SECRET": f"{_STRONG},{_OTHER},{_STRONG}"}
    assert "MESH_SECRET and MESH_SECRET hold the same secret" in _started("orders", changes, monkeypatch)


def test_key_of_a_provider_is_as_strong_as_what_follows_its_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    for weak in ("sk_live_" + "a" * 24, "sk_test_0123456789abcdef", "sk_test_sandbox_sandbox_1"):
        assert "STRIPE_API_KEY: " in _started("payments", {"STRIPE_API_KEY": weak}, monkeypatch)
    same = {"STRIPE_API_KEY": f"sk_live_{_STRONG}", "STRIPE_WEBHOOK_SECRET": f"whsec_{_STRONG}"}
    assert "hold the same secret" in _started("payments", same, monkeypatch)


@pytest.mark.parametrize(
    "url", ["http://api.stripe.com", "HTTP://api.stripe.com", " http://x", "api.stripe.com", "", "//x"]
)
def test_provider_is_called_over_tls(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "STRIPE_API_BASE: " in _started("payments", {"STRIPE_API_BASE": url}, monkeypatch)


def test_every_setting_with_a_url_holds_a_secret_or_demands_tls() -> None:
    for service in SERVICES:
        for name, field in settings_of(service).model_fields.items():
            if name.endswith(("_url", "_base", "_uri")) or "://" in str(field.default):
                is_secret = field.annotation in (SecretStr, SecretStr | None)
                assert is_secret or "_is_safe" in str(field.metadata), f"{service}: {name}"


def test_malformed_url_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = _started("orders", {"DATABASE_URL": f"postgresql+psycopg://orders:{_STRONG}@[db/orders"}, monkeypatch)
    assert "DATABASE_URL: " in refusal
    assert _STRONG not in refusal
