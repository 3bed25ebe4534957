"""Dead letters: what is given up can be found, and carried out once its cause is gone."""

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
from services.chassis.events import dead_letters, subscriber
from services.chassis.events.subscriber import Consumer
from services.chassis.settings import ServiceSettings
from tests.integration.chassis.sample_events import message, number_of
from tests.support.infra import Infra
from tests.support.waiting import until

ROOT = Path(__file__).parents[3]


class Desk:
    """A service with one consumer, and its operators."""

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

    async def waiting(self) -> list[dead_letters.Letter]:
        return [letter async for letter in dead_letters.waiting(self.jetstream, self.consumers)]

    async def operate(self, *words: str) -> int:
        parser = argparse.ArgumentParser()
        dead_letters.arguments(parser)
        return await dead_letters.command(self._config, parser.parse_args(words), lambda _: self.consumers)


@pytest.fixture
async def desk(
    infra: Infra, db: Database, jetstream: JetStreamContext, service: str, monkeypatch: pytest.MonkeyPatch
) -> Desk:
    monkeypatch.setattr(subscriber, "_ATTEMPTS_MAX", 2)
    monkeypatch.setattr(subscriber, "_RETRY_SECONDS", 0.01)
    await subscriber.declare_stream(jetstream, service)
    return Desk(infra, db, jetstream, service)


async def test_what_is_given_up_is_listed_with_its_cause_and_without_its_secrets(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.poison = {2}
    await desk.publish(1, 2, 3)
    await desk.consume(letters=1, done=2)
    letter = (await desk.waiting())[0]
    capsys.readouterr()  # the consumer's log

    assert await desk.operate("list") == 0
    listed = capsys.readouterr().out.strip().split("\t")
    assert listed[0] == str(letter.sequence)
    assert listed[2:5] == [f"{desk.service}-reader", f"stampede.{desk.service}.thing.happened", "2 attempts"]
    assert listed[5].startswith("ValueError in ")

    assert await desk.operate("show", str(letter.sequence)) == 0
    shown = capsys.readouterr().out
    assert str(letter.event_id) in shown
    assert "secret" not in shown


async def test_a_letter_is_carried_out_once_its_cause_is_gone(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.poison = {2}
    await desk.publish(1, 2)
    await desk.consume(letters=1, done=1)
    number = str((await desk.waiting())[0].sequence)

    assert await desk.operate("replay", number) == 1
    assert "failed again, ValueError" in capsys.readouterr().out
    assert [str(letter.sequence) for letter in await desk.waiting()] == [number]

    desk.poison = set()
    assert await desk.operate("replay", number) == 0
    assert desk.done == [1, 2]
    assert await desk.operate("replay", number) == 1
    assert "no such letter" in capsys.readouterr().out
    assert desk.done == [1, 2]


async def test_a_replay_that_died_before_it_could_remove_the_letter_is_repeated_without_effect(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.poison = {1}
    await desk.publish(1)
    await desk.consume(letters=1, done=0)
    desk.poison = set()
    letter = (await desk.waiting())[0]
    await desk.consumers[0].act_once({letter.event_id: letter.payload})

    assert await desk.operate("replay", "--all") == 0
    assert "carried out before" in capsys.readouterr().out
    assert desk.done == [1]
    assert await desk.waiting() == []


async def test_one_that_fails_again_holds_the_others_up_no_more(desk: Desk) -> None:
    desk.poison = {1, 2, 3}
    await desk.publish(1, 2, 3)
    await desk.consume(letters=3, done=0)
    desk.poison = {2}
    assert await desk.operate("replay", "--all") == 1
    assert desk.done == [1, 3]
    assert [number_of(letter.payload) for letter in await desk.waiting()] == [2]


async def test_an_event_that_two_consumers_give_up_is_two_letters(desk: Desk) -> None:
    desk.poison = {1}
    desk.consumers.append(desk.consumer("writer"))
    await desk.publish(1)
    await desk.consume(letters=2, done=0)
    assert {letter.consumer for letter in await desk.waiting()} == {f"{desk.service}-reader", f"{desk.service}-writer"}


async def test_letters_of_other_services_are_none_of_ours(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.poison = {1}
    await desk.publish(1)
    await desk.consume(letters=1, done=0)
    number = str((await desk.waiting())[0].sequence)
    theirs, desk.consumers = desk.consumers, [desk.consumer("reader2")]
    assert await desk.operate("list") == 0
    assert "no dead letters" in capsys.readouterr().out
    assert await desk.operate("drop", number) == 1
    desk.consumers = theirs
    assert await desk.operate("drop", number) == 0
    assert await desk.waiting() == []
    assert desk.done == []


async def test_a_gauge_says_how_many_wait(desk: Desk) -> None:
    desk.poison = {1, 2}
    await desk.publish(1, 2)
    await desk.consume(letters=2, done=0)
    counting = asyncio.create_task(dead_letters.count(desk.jetstream, desk.consumers))

    async def counted() -> bool:
        return REGISTRY.get_sample_value("stampede_dead_letters", {"consumer": f"{desk.service}-reader"}) == 2

    await until(counted)
    counting.cancel()
    await asyncio.gather(counting, return_exceptions=True)


async def test_who_says_not_which_to_replay_is_told_what_to_do(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert await desk.operate("replay") == 1
    assert "or --all" in capsys.readouterr().out


def test_a_command_runs_with_the_settings_of_the_local_mesh(tmp_path: Path) -> None:
    """NATS is not up there, and the command says what to do."""
    environment = {**os.environ, "STAMPEDE_HOME": str(tmp_path), "STAMPEDE_PORT": "19870"}
    command = [sys.executable, "-m", "deploy.local", "service", "orders", "dead-letters", "list"]
    done: Any = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout.startswith("NATS does not answer")
