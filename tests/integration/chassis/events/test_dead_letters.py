"""Dead letters: an operator can list, replay and drop them."""

import argparse
import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext
from prometheus_client import REGISTRY
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.events import dead_letters, streams, subscriber
from services.chassis.events.subscriber import Consumer
from services.chassis.settings import ServiceSettings
from tests.integration.chassis.events.sample_events import message, number_of
from tests.support.infra import Infra
from tests.support.waiting import until

ROOT = Path(__file__).parents[4]


class Operator:
    """A service with one consumer, and the command for its dead letters."""

    def __init__(self, infra: Infra, db: Database, jetstream: JetStreamContext, service: str) -> None:
        self.jetstream, self.service, self.db = jetstream, service, db
        self.poison: set[int] = set()
        self.done: list[int] = []
        self.consumers = [self.consumer("reader")]
        self._config = ServiceSettings(
            environment="local", database_url=infra.database_url(str(db.kw["bind"].url.database)),
            nats_url=infra.nats_url, mesh_secret="m" * 32, page_secret="p" * 32,
        )  # type: ignore[arg-type]  # fmt: skip

    def consumer(self, name: str) -> Consumer:
        subject = f"stampede.{self.service}.>"
        return Consumer(f"{self.service}-{name}", stream=self.service, subject=subject, db=self.db, act=self._act)

    async def _act(self, _tx: AsyncSession, payloads: Sequence[bytes]) -> None:
        numbers = [number_of(payload) for payload in payloads]
        if self.poison & set(numbers):
            raise ValueError("a secret that nobody may read")
        self.done += numbers

    async def publish(self, *numbers: int) -> None:
        for number in numbers:
            headers = {"Nats-Msg-Id": str(uuid.uuid4())}
            subject = f"stampede.{self.service}.thing.happened"
            await self.jetstream.publish(subject, message(number).SerializeToString(), headers=headers)

    async def consume(self, *, letters: int, done: int) -> None:
        """Until so many events were given up, and so many done."""

        async def ended() -> bool:
            return len(await self.waiting()) == letters and len(self.done) == done

        tasks = [asyncio.create_task(consumer.run(self.jetstream)) for consumer in self.consumers]
        try:
            await until(ended)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def waiting(self) -> list[dead_letters.DeadLetter]:
        return [letter async for letter in dead_letters.list_letters(self.jetstream, self.consumers)]

    async def run(self, *words: str) -> int:
        parser = argparse.ArgumentParser()
        dead_letters.add_arguments(parser)
        return await dead_letters.run_command(self._config, parser.parse_args(words), lambda _: self.consumers)


@pytest.fixture
async def operator(
    infra: Infra, db: Database, jetstream: JetStreamContext, service: str, monkeypatch: pytest.MonkeyPatch
) -> Operator:
    monkeypatch.setattr(subscriber, "_ATTEMPTS_MAX", 2)
    monkeypatch.setattr(subscriber, "_RETRY_SECONDS", 0.01)
    await streams.declare_streams(jetstream, service)
    return Operator(infra, db, jetstream, service)


async def test_list_shows_the_cause_but_no_secrets(operator: Operator, capsys: pytest.CaptureFixture[str]) -> None:
    operator.poison = {2}
    await operator.publish(1, 2, 3)
    await operator.consume(letters=1, done=2)
    letter = (await operator.waiting())[0]
    capsys.readouterr()  # the consumer's log

    assert await operator.run("list") == 0
    listed = capsys.readouterr().out.strip().split("\t")
    assert listed[0] == str(letter.sequence)
    assert listed[2:5] == [f"{operator.service}-reader", f"stampede.{operator.service}.thing.happened", "2 attempts"]
    assert listed[5].startswith("ValueError in ")

    assert await operator.run("show", str(letter.sequence)) == 0
    shown = capsys.readouterr().out
    assert str(letter.event_id) in shown
    assert "secret" not in shown


async def test_replay_succeeds_after_the_cause_is_fixed(operator: Operator, capsys: pytest.CaptureFixture[str]) -> None:
    operator.poison = {2}
    await operator.publish(1, 2)
    await operator.consume(letters=1, done=1)
    number = str((await operator.waiting())[0].sequence)

    assert await operator.run("replay", number) == 1
    assert "failed again, ValueError" in capsys.readouterr().out
    assert [str(letter.sequence) for letter in await operator.waiting()] == [number]

    operator.poison = set()
    assert await operator.run("replay", number) == 0
    assert operator.done == [1, 2]
    assert await operator.run("replay", number) == 1
    assert "no such letter" in capsys.readouterr().out
    assert operator.done == [1, 2]


async def test_replay_of_an_event_already_acted_on_only_removes_it(
    operator: Operator, capsys: pytest.CaptureFixture[str]
) -> None:
    """An earlier replay died before it removed the letter."""
    operator.poison = {1}
    await operator.publish(1)
    await operator.consume(letters=1, done=0)
    operator.poison = set()
    letter = (await operator.waiting())[0]
    await operator.consumers[0].act_once({letter.event_id: letter.payload})

    assert await operator.run("replay", "--all") == 0
    assert "had succeeded before" in capsys.readouterr().out
    assert operator.done == [1]
    assert await operator.waiting() == []


async def test_replay_that_fails_again_delays_no_other(operator: Operator) -> None:
    operator.poison = {1, 2, 3}
    await operator.publish(1, 2, 3)
    await operator.consume(letters=3, done=0)
    operator.poison = {2}
    assert await operator.run("replay", "--all") == 1
    assert operator.done == [1, 3]
    assert [number_of(letter.payload) for letter in await operator.waiting()] == [2]


async def test_event_of_two_consumers_becomes_two_letters(operator: Operator) -> None:
    operator.poison = {1}
    operator.consumers.append(operator.consumer("writer"))
    await operator.publish(1)
    await operator.consume(letters=2, done=0)
    assert {letter.consumer for letter in await operator.waiting()} == {
        f"{operator.service}-reader",
        f"{operator.service}-writer",
    }


async def test_letters_of_other_services_are_not_touched(
    operator: Operator, capsys: pytest.CaptureFixture[str]
) -> None:
    operator.poison = {1}
    await operator.publish(1)
    await operator.consume(letters=1, done=0)
    number = str((await operator.waiting())[0].sequence)
    theirs, operator.consumers = operator.consumers, [operator.consumer("reader2")]
    assert await operator.run("list") == 0
    assert "no dead letters" in capsys.readouterr().out
    assert await operator.run("drop", number) == 1
    operator.consumers = theirs
    assert await operator.run("drop", number) == 0
    assert await operator.waiting() == []
    assert operator.done == []


async def test_gauge_counts_waiting_letters(operator: Operator) -> None:
    operator.poison = {1, 2}
    await operator.publish(1, 2)
    await operator.consume(letters=2, done=0)
    measuring = asyncio.create_task(dead_letters.measure(operator.jetstream, operator.consumers))

    async def measured() -> bool:
        return REGISTRY.get_sample_value("stampede_dead_letters", {"consumer": f"{operator.service}-reader"}) == 2

    await until(measured)
    measuring.cancel()
    await asyncio.gather(measuring, return_exceptions=True)


async def test_replay_without_numbers_explains_its_arguments(
    operator: Operator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await operator.run("replay") == 1
    assert "--all" in capsys.readouterr().out


def test_command_runs_with_the_settings_of_the_local_mesh(tmp_path: Path) -> None:
    """NATS does not run there, and the command prints what to do."""
    environment = {**os.environ, "STAMPEDE_HOME": str(tmp_path), "STAMPEDE_PORT": "19870"}
    command = [sys.executable, "-m", "deploy.local", "service", "orders", "dead-letters", "list"]
    done: Any = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout.startswith("NATS does not answer")
