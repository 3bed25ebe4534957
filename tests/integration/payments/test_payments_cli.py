"""`events`: what an operator does with parked provider events."""

import argparse

import pytest

from services.payments import cli
from services.payments.webhooks import inbox
from tests.integration.payments.conftest import Payments, Sandbox


async def _run(service: Payments, *words: str) -> int:
    parser = argparse.ArgumentParser()
    cli.describe_events(parser)
    return await cli._act_on_events(parser.parse_args(words), service.db)


@pytest.fixture
async def parked(service: Payments) -> None:
    """Two events that nobody can read."""
    await service.rows(
        "INSERT INTO provider_events (provider, event_id, payload, attempts)"
        " VALUES ('stripe', 'evt_1', '{\"type\": \"charge.odd\"}', 0), ('stripe', 'evt_2', '[]', 0)"
    )
    await inbox.apply_events(service.db, service.dispatcher)


async def test_list_shows_parked_events_with_their_causes(
    service: Payments, sandbox: Sandbox, parked: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await _run(service, "list") == 0
    first, second, count = capsys.readouterr().out.splitlines()
    assert first.startswith("evt_1  charge.odd")
    assert all(line.endswith("1 attempts  UNREADABLE") for line in (first, second))
    assert count == "2 parked"


async def test_retry_has_parked_events_applied_again(
    service: Payments, sandbox: Sandbox, parked: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await _run(service, "retry") == 1  # neither ids nor --all
    assert await _run(service, "retry", "evt_1", "evt_3") == 1
    assert "evt_1: will be applied again\nevt_3: no such event is parked" in capsys.readouterr().out
    assert (await inbox.apply_events(service.db, service.dispatcher)).size == 1
    assert await _run(service, "retry", "--all") == 0
    assert (await inbox.apply_events(service.db, service.dispatcher)).size == 2


async def test_dropped_events_are_no_longer_parked(
    service: Payments, sandbox: Sandbox, parked: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await _run(service, "drop", "evt_1", "evt_2") == 0
    capsys.readouterr()
    assert await _run(service, "list") == 0
    assert capsys.readouterr().out == "0 parked\n"
    assert await _run(service, "drop", "evt_1") == 1
