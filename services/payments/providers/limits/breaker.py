"""The circuit breaker of one provider: while it gives no answers, calls to it fail at once."""

import time
from collections.abc import Callable

import structlog
from prometheus_client import Gauge

log = structlog.get_logger()

_OPEN = Gauge("stampede_provider_circuit_open", "Whether calls to a provider fail at once.", ["provider"])
FAILURES_MOST = 5
"""So many calls in a row without an answer open the circuit."""
PROBE_SECONDS = 1.0


class Breaker:
    """Closed, it admits all calls. Open, one a second: its answer closes the circuit."""

    def __init__(self, provider: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._provider, self._clock = provider, clock
        self._failures, self._probe_time = 0, 0.0
        self._gauge = _OPEN.labels(provider)
        self.callbacks: list[Callable[[], None]] = []
        """Called when the circuit closes again."""

    @property
    def is_open(self) -> bool:
        return self._failures >= FAILURES_MOST

    def admits(self) -> bool:
        """Whether a call may be sent now. It counts as the probe of this second, if the circuit is open."""
        if not self.is_open:
            return True
        now = self._clock()
        if now < self._probe_time:
            return False
        self._probe_time = now + PROBE_SECONDS
        return True

    def note_answer(self) -> None:
        """Close the circuit."""
        was_open, self._failures = self.is_open, 0
        if was_open:
            self._gauge.set(0)
            log.warning("a provider answers again", provider=self._provider)
            for callback in self.callbacks:
                callback()

    def note_failure(self) -> None:
        """Count a call without an answer."""
        self._failures += 1
        if self._failures == FAILURES_MOST:
            self._gauge.set(1)
            self._probe_time = self._clock() + PROBE_SECONDS
            log.error("a provider gives no answers; calls to it fail at once", provider=self._provider)
