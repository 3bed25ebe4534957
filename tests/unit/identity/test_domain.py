"""The rules of keys, sessions and settings, without a database."""

from datetime import UTC, datetime, timedelta

import pytest

from services.chassis import settings
from services.chassis.errors import AppError
from services.identity import domain
from services.identity.domain import Lifetimes
from services.identity.settings import Settings

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
LIFETIMES = Lifetimes()


def test_the_very_first_key_signs_at_once() -> None:
    assert domain.next_sign_from(None, NOW, LIFETIMES) == NOW


def test_no_key_is_created_before_its_lead() -> None:
    newest = NOW - 30 * DAY + HOUR + timedelta(seconds=1)
    assert domain.next_sign_from(newest, NOW, LIFETIMES) is None
    assert domain.next_sign_from(NOW + HOUR, NOW, LIFETIMES) is None  # the next one waits already


def test_a_key_is_created_an_hour_before_it_signs() -> None:
    newest = NOW - 30 * DAY + HOUR
    assert domain.next_sign_from(newest, NOW, LIFETIMES) == newest + 30 * DAY == NOW + HOUR


def test_an_overdue_key_is_published_for_its_whole_lead() -> None:
    assert domain.next_sign_from(NOW - 300 * DAY, NOW, LIFETIMES) == NOW + HOUR


def test_the_newest_key_that_may_sign_signs() -> None:
    times = [NOW + HOUR, NOW - DAY, NOW]
    assert domain.current_sign_from(times, NOW) == NOW
    assert domain.current_sign_from(times, NOW + HOUR) == NOW + HOUR


def test_a_key_stays_published_until_its_last_token_has_expired() -> None:
    assert domain.retire_time(NOW, LIFETIMES) >= NOW + timedelta(seconds=LIFETIMES.access_seconds)


def test_a_refresh_token_does_not_outlive_its_session() -> None:
    assert domain.refresh_expire_time(NOW, NOW + 90 * DAY, LIFETIMES) == NOW + 30 * DAY
    assert domain.refresh_expire_time(NOW, NOW + 2 * DAY, LIFETIMES) == NOW + 2 * DAY


@pytest.mark.parametrize("error", [domain.WrongCredentials, domain.RefreshTokenRefused])
def test_all_refused_sign_ins_have_one_reason(error: type[AppError]) -> None:
    assert (error.code, error.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")


def test_the_refusal_of_a_taken_address_omits_it() -> None:
    assert (domain.EmailTaken.reason, domain.EmailTaken().metadata) == ("EMAIL_TAKEN", {})


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in {
        "ENVIRONMENT": "production",
        "DATABASE_URL": "postgresql+psycopg://identity:Hq8sD2wVc5YxN9pG@db/identity",
        "NATS_URL": "nats://identity:Zk3xW9qLr7TvB2nM@nats:4222",
        "MESH_SECRET": "hG5tRf8wQz1xLk9v",
        "PAGE_SECRET": "pL0oKm9iJn8uHb7y",
        "KEY_SECRET": "vT6yBn3mQw8eXz1c",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("ADMIN_PASSWORD", "PASSWORD_ROUNDS", "KEY_LEAD_SECONDS", "KEY_ROTATION_DAYS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_production_needs_only_its_secrets(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ADMIN_PASSWORD", "")
    config = settings.load(Settings)
    assert (config.password_rounds, config.admin_password, config.lifetimes()) == (12, None, Lifetimes())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PASSWORD_ROUNDS", "11"),
        ("KEY_SECRET", "tiny7"),
        ("ADMIN_PASSWORD", "x" * 73),
        ("ADMIN_PASSWORD", "change-me-at-once-please"),
        ("ACCESS_TOKEN_SECONDS", "86400"),
    ],
)
def test_production_refuses_weak_settings_and_shows_no_secret(
    environment: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environment.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        settings.load(Settings)
    assert name in str(caught.value)
    assert name in ("PASSWORD_ROUNDS", "ACCESS_TOKEN_SECONDS") or value not in str(caught.value)


def test_a_local_stack_may_hash_faster(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ENVIRONMENT", "local")
    environment.setenv("PASSWORD_ROUNDS", "8")
    assert settings.load(Settings).password_rounds == 8
