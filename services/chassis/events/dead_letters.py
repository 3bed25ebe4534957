"""Dead letters: events that a consumer of this service gave up, kept for an operator.

`python -m services.<service> dead-letters list | show | replay | drop`.
"""

import argparse
import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from prometheus_client import Gauge

from services.chassis.data import db as databases
from services.chassis.events import subscriber
from services.chassis.events.streams import DEAD_LETTERS
from services.chassis.events.subscriber import Consumer
from services.chassis.settings import ServiceSettings
from services.chassis.telemetry.heartbeats import beat

_WAITING = Gauge("stampede_dead_letters", "Dead letters that wait for an operator.", ["consumer"])
_MEASURE_SECONDS = 15.0
_SHOWN_BYTES = 4000
_LISTED_MAX = 1000


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """An event that a consumer gave up."""

    sequence: int
    """Its number in the stream of dead letters."""
    time: str
    consumer: str
    subject: str
    event_id: uuid.UUID
    attempts: str
    cause: str
    payload: bytes


async def measure(jetstream: JetStreamContext, consumers: Sequence[Consumer]) -> None:
    """Updates the gauge of waiting letters, until cancelled."""
    while beat():
        try:
            for consumer in consumers:
                info = await jetstream.stream_info(DEAD_LETTERS, subjects_filter=f"dead.{consumer.name}.>")
                _WAITING.labels(consumer.name).set(sum((info.state.subjects or {}).values()))
        except (nats.errors.Error, TimeoutError):
            pass  # the gauge keeps its value; others report that NATS is unavailable
        await asyncio.sleep(_MEASURE_SECONDS)


async def list_letters(jetstream: JetStreamContext, consumers: Sequence[Consumer]) -> AsyncIterator[DeadLetter]:
    """Yields the letters of these consumers, oldest first for each."""
    for consumer in consumers:
        sequence = 1
        while True:
            try:
                found = await jetstream.get_msg(DEAD_LETTERS, sequence, subject=f"dead.{consumer.name}.>", next=True)
            except NotFoundError:
                break
            letter = _letter(found, consumer)
            yield letter
            sequence = letter.sequence + 1


async def find_letter(
    jetstream: JetStreamContext, consumers: Sequence[Consumer], sequence: int
) -> tuple[DeadLetter, Consumer] | None:
    """Returns the letter of that number and its consumer; None if it belongs to none of `consumers`."""
    try:
        found = await jetstream.get_msg(DEAD_LETTERS, sequence)
    except NotFoundError:
        return None
    owner = next((c for c in consumers if str(found.subject).startswith(f"dead.{c.name}.")), None)
    return (_letter(found, owner), owner) if owner else None


def _letter(found: Any, consumer: Consumer) -> DeadLetter:
    headers: Mapping[str, str] = found.headers or {}
    # Letters of an older version carry the event's own id as message id, and neither attempts nor cause.
    given = headers.get(subscriber.EVENT_ID) or headers.get("Nats-Msg-Id")
    return DeadLetter(
        sequence=found.seq, time=str(found.time or ""), consumer=consumer.name,
        subject=str(found.subject).removeprefix(f"dead.{consumer.name}."), 
        event_id=subscriber.event_id(given, f"{DEAD_LETTERS}/{found.seq}"),
        attempts=headers.get(subscriber.ATTEMPTS, "?"),
        cause=headers.get(subscriber.CAUSE, "?"), payload=found.data or b"",
    )  # fmt: skip


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `dead-letters`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    actions.add_parser("list", help="list those that wait, with their causes")
    actions.add_parser("show", help="show one with its payload").add_argument("sequence", nargs=1, type=int)
    replay = actions.add_parser("replay", help="act on events again, and remove those that succeed")
    replay.add_argument("sequence", nargs="*", type=int)
    replay.add_argument("--all", action="store_true", help="all that wait, oldest first")
    actions.add_parser("drop", help="remove events without acting on them").add_argument(
        "sequence", nargs="+", type=int
    )


async def run_command(config: ServiceSettings, options: argparse.Namespace, consumers: subscriber.Consumers) -> int:
    """Runs the command; returns the exit code, which is 1 if something is left to be done."""
    engine, db = databases.connect(config.database_url.get_secret_value(), pool_size=1)
    try:
        connection = await nats.connect(
            config.nats_url.get_secret_value(), max_reconnect_attempts=1, reconnect_time_wait=0.2, error_cb=_ignore
        )
    except (OSError, TimeoutError, nats.errors.Error) as error:
        _print(f"NATS does not answer ({type(error).__name__}). Start it, or check NATS_URL.")
        return 1
    try:
        return await _act(connection.jetstream(), consumers(db), options)
    finally:
        await connection.close()
        await engine.dispose()


async def _act(jetstream: JetStreamContext, consumers: Sequence[Consumer], options: argparse.Namespace) -> int:
    if options.action == "list":
        return await _list(jetstream, consumers)
    if options.action == "replay" and options.all == bool(options.sequence):
        _print("replay needs either numbers that `list` shows, or --all.")
        return 1
    numbers = options.sequence
    if options.action == "replay" and options.all:
        numbers = sorted([letter.sequence async for letter in list_letters(jetstream, consumers)])
    failed = 0
    for number in numbers:
        found = await find_letter(jetstream, consumers, number)
        if found is None:
            _print(f"{number}: this service has no such letter. `list` shows those that wait.")
            failed = 1
        elif options.action == "show":
            _show(found[0])
        elif options.action == "replay":
            failed |= await _replay(jetstream, *found)
        else:
            await jetstream.delete_msg(DEAD_LETTERS, number)
            _print(f"{number}: dropped")
    return failed


async def _list(jetstream: JetStreamContext, consumers: Sequence[Consumer]) -> int:
    listed = 0
    async for letter in list_letters(jetstream, consumers):
        if listed == _LISTED_MAX:
            _print(f"and more than these {listed}")
            break
        listed += 1
        _print(
            f"{letter.sequence}\t{letter.time}\t{letter.consumer}\t{letter.subject}\t{letter.attempts} attempts\t"
            f"{letter.cause}\t{len(letter.payload)} bytes"
        )
    if not listed:
        _print("no dead letters")
    return 0


def _show(letter: DeadLetter) -> None:
    _print(
        f"sequence  {letter.sequence}\ntime      {letter.time}\nconsumer  {letter.consumer}\n"
        f"subject   {letter.subject}\nevent id  {letter.event_id}\nattempts  {letter.attempts}\n"
        f"cause     {letter.cause}\npayload   {letter.payload[:_SHOWN_BYTES]!r}"
    )


async def _replay(jetstream: JetStreamContext, letter: DeadLetter, consumer: Consumer) -> int:
    try:
        is_new = await consumer.act_once({letter.event_id: letter.payload})
    except Exception as error:
        _print(
            f"{letter.sequence}: failed again, {subscriber.cause_of(error)}. It stays. "
            "Fix the cause and replay it, or drop it if nobody needs it."
        )
        return 1
    await jetstream.delete_msg(DEAD_LETTERS, letter.sequence)
    _print(f"{letter.sequence}: {'succeeded' if is_new else 'had succeeded before'}, removed")
    return 0


async def _ignore(_: Exception) -> None:
    """The caller reports the error; nats-py would log it as well."""


def _print(line: str) -> None:
    sys.stdout.write(line + os.linesep)
