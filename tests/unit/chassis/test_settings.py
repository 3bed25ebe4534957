"""Settings: read once, refused as a whole, and without secrets in any text."""

import pytest
from pydantic import ValidationError

from services.chassis import settings
from services.chassis.settings import Secrets, ServiceSettings

STRONG = "f3b1c6de8a9b4711"
ENVIRONMENT = {
    "ENVIRONMENT": "production",
    "DATABASE_URL": f"postgresql+psycopg://catalog:{STRONG}@db.example.com/catalog",
    "NATS_URL": f"nats://catalog:nats-{STRONG}@nats:4222",
    "MESH_SECRET": f"mesh-{STRONG}",
    "PAGE_SECRET": f"page-{STRONG}",
}


class Settings(ServiceSettings):
    workers: int = 4
    key_secret: Secrets | None = None


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def refusal() -> str:
    with pytest.raises(SystemExit) as refused:
        settings.load(Settings)
    return str(refused.value)


def test_valid_environment_is_loaded(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WORKERS", "8")
    loaded = settings.load(Settings)
    assert (loaded.environment, loaded.workers) == ("production", 8)


def test_all_problems_are_named_together(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("DATABASE_URL")
    environment.delenv("MESH_SECRET")
    environment.setenv("WORKERS", "many")
    environment.setenv("LOG_LEVEL", "loud")
    message = refusal()
    assert [
        name for name in ("DATABASE_URL", "MESH_SECRET", "WORKERS", "LOG_LEVEL") if f"{name}: " not in message
    ] == []


def test_secrets_appear_in_no_text(environment: pytest.MonkeyPatch) -> None:
    loaded = settings.load(Settings)
    for text in (repr(loaded), str(loaded), repr(loaded.model_dump()), loaded.model_dump_json()):
        assert STRONG not in text


def test_error_does_not_contain_the_refused_secret(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MESH_SECRET", "hunter2")
    assert "MESH_SECRET: " in (message := refusal())
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MESH_SECRET", "short"),
        ("MESH_SECRET", "please-change-me-now"),
        ("PAGE_SECRET", "a-default-for-pages"),
        ("KEY_SECRET", "example-of-a-long-key"),
        ("KEY_SECRET", f"{STRONG},short"),
        ("KEY_SECRET", f"{STRONG},a-default-for-keys"),
        ("DATABASE_URL", "postgresql+psycopg://catalog@db/catalog"),
        ("DATABASE_URL", "postgresql+psycopg://catalog:password@db/catalog"),
        ("NATS_URL", "nats://nats-server-of-ours:4222"),
    ],
)
def test_production_refuses_weak_secrets(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment.setenv(name, value)
    assert f"{name}: " in refusal()
    environment.setenv("ENVIRONMENT", "local")
    settings.load(Settings)


def test_environment_defaults_to_production(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("ENVIRONMENT")
    environment.setenv("MESH_SECRET", "change-me")
    assert "MESH_SECRET: " in refusal()


def test_url_may_contain_any_word_outside_its_password(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DATABASE_URL", f"postgresql+psycopg://default:{STRONG}@secret.example.com/password")
    settings.load(Settings)


def test_several_secrets_are_separated_by_commas(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("KEY_SECRET", f"new-{STRONG}, old-{STRONG},")
    loaded = settings.load(Settings)
    assert loaded.key_secret
    assert loaded.key_secret.values() == [f"new-{STRONG}", f"old-{STRONG}"]
    assert STRONG not in repr(loaded)


@pytest.mark.parametrize("value", ["", " ", ","])
def test_empty_list_of_secrets_is_refused(environment: pytest.MonkeyPatch, value: str) -> None:
    environment.setenv("ENVIRONMENT", "local")
    environment.setenv("KEY_SECRET", value)
    assert "KEY_SECRET: " in refusal()


def test_settings_are_immutable(environment: pytest.MonkeyPatch) -> None:
    loaded = settings.load(Settings)
    with pytest.raises(ValidationError):
        loaded.workers = 5
