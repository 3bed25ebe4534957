"""The streams of JetStream: declared at start, and again when the broker has lost them."""

import nats.js.errors
import structlog
from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy, StreamConfig

log = structlog.get_logger()

_WEEK_SECONDS = 7 * 24 * 3600
_DUPLICATE_SECONDS = 120
DEAD_LETTERS = "DEAD_LETTERS"


async def declare_streams(jetstream: JetStreamContext, service: str) -> None:
    """Creates or updates the stream of the service's own events, `stampede.<service>.>`, and that of dead letters."""
    for wanted in _wanted(service):
        try:
            await jetstream.add_stream(wanted)
        except nats.js.errors.BadRequestError:
            await jetstream.update_stream(wanted)  # it exists, perhaps with the limits of another version


async def last_sequence(jetstream: JetStreamContext, service: str) -> int:
    """Returns the number of the last event in the service's stream. Declares streams that are missing."""
    found = 0
    for wanted in _wanted(service):
        assert wanted.name
        try:
            info = await jetstream.stream_info(wanted.name)
        except nats.js.errors.NotFoundError:
            log.error("the broker has lost a stream", stream=wanted.name)
            await declare_streams(jetstream, service)
            continue
        if wanted.name != DEAD_LETTERS:
            found = info.state.last_seq
    return found


def _wanted(service: str) -> tuple[StreamConfig, StreamConfig]:
    own = StreamConfig(
        name=service.upper(),
        subjects=[f"stampede.{service}.>"],
        retention=RetentionPolicy.LIMITS,
        max_age=_WEEK_SECONDS,
        duplicate_window=_DUPLICATE_SECONDS,
    )
    return own, StreamConfig(name=DEAD_LETTERS, subjects=["dead.>"], max_age=4 * _WEEK_SECONDS)
