"""The stored state: one append-only file of lines, each on the disk before its answer is sent.

A line is `{"c": changes, "k": key record, "d": delivered events}`, all of them optional. With a key record, a tab and
the answer's body follow. Bodies and old events stay in the file and are read by their offset, so memory holds numbers
instead of text. An event follows, in the same line, the state that it reports, so every line can be read alone.

`append` writes a line, `sync` brings all lines to the disk; `group_commit` calls it before any answer leaves. So what
a client has heard survives the death of the process, and a power cut. Only the owner of the file can read it, because
it has client secrets.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from sandbox.rows import Change, Event, Subject

# The place of an event: the offset of its line, and its index among the line's changes.
Place = tuple[int, int]

LINE_MAX = 1 << 20
NOTES_MAX = 64
_CHUNK = 16_384


class Busy(Exception):
    """Another process uses this state file."""


class Damaged(Exception):
    """A line of the state file, other than the last one, cannot be read."""


class KeyRecord(NamedTuple):
    """The saved answer of an idempotency key; `offset` is that of its line in the journal."""

    key: str
    fingerprint: str
    created: int
    status: int
    request_id: str
    offset: int = 0


class Record(NamedTuple):
    """One line of the journal."""

    offset: int
    changes: list[Change]
    key: KeyRecord | None
    delivered: list[str]
    body: bytes


class Journal:
    """The open state file. One process at a time has it; for a second one, `Busy` is raised."""

    def __init__(self, path: Path, kinds: Mapping[str, type[Any]]) -> None:
        """`kinds` are the rows of all protocols, by their tags in the file."""
        self._path = path
        self._kinds = kinds
        self._tags = {kind: tag for tag, kind in kinds.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        # A lock file of its own: compaction replaces the state file, and a lock on that would be lost.
        self._lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise Busy(f"{path} is in use by another sandbox") from None
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.fchmod(self._file, 0o600)  # an older sandbox may have made it readable by all
        self._sync_folder()
        self._end = os.fstat(self._file).st_size
        self._delivered: list[str] = []

    @property
    def size(self) -> int:
        return self._end

    def append(self, changes: Sequence[Change] = (), key: KeyRecord | None = None, body: bytes = b"") -> int:
        """Writes one line and returns its offset. No change may be applied before this returns."""
        line = self._encode(changes, key, self._delivered, body)
        offset = self._end
        written = os.pwrite(self._file, line, offset)
        if written != len(line):
            os.ftruncate(self._file, offset)
            raise OSError(f"only {written} of {len(line)} bytes fitted into {self._path}")
        self._end = offset + written
        self._delivered = []
        return offset

    def sync(self) -> None:
        """Brings all appended lines to the disk. May be called in another thread."""
        os.fdatasync(self._file)

    def note_delivered(self, event_id: str) -> None:
        """Records a delivery in the next line. A lost record only repeats a webhook."""
        self._delivered.append(event_id)
        if len(self._delivered) >= NOTES_MAX:
            self.append()

    def body_at(self, offset: int) -> bytes:
        """The saved answer in the line at `offset`."""
        return self._line_at(offset).partition(b"\t")[2]

    def event_at(self, offset: int, index: int) -> Event:
        """The event at `index` among the changes of the line at `offset`."""
        event = self._decode(offset, self._line_at(offset)).changes[index]
        assert isinstance(event, Event)
        return event

    def read(self) -> Iterator[Record]:
        """Yields all lines from the start. An incomplete last line was never answered, and is cut off."""
        offset = 0
        with self._path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    os.ftruncate(self._file, offset)
                    self._end = offset
                    return
                try:
                    yield self._decode(offset, line[:-1])
                except (ValueError, KeyError, TypeError, IndexError) as error:
                    raise Damaged(f"{self._path} cannot be read at byte {offset}: {error}") from error
                offset += len(line)

    def compact(
        self,
        *,
        current: dict[str, Subject],
        events: Collection[str],
        pending: Collection[str],
        keys: Collection[str],
    ) -> None:
        """Rewrites the file without changes that no request can read any more. Call it before serving."""
        fresh = self._path.with_name(self._path.name + ".new")
        seen: set[str] = set()
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            for record in self.read():
                changes = _needed(record.changes, seen, current, events, pending)
                key = record.key if record.key is not None and record.key.key in keys else None
                if changes or key:
                    out.write(self._encode(changes, key, [], record.body if key else b""))
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(self._path)
        self._sync_folder()
        os.close(self._file)
        self._file = os.open(self._path, os.O_RDWR)
        self._end = os.fstat(self._file).st_size

    def close(self) -> None:
        if self._delivered:
            self.append()
        os.fsync(self._file)
        os.close(self._file)
        os.close(self._lock)

    def _sync_folder(self) -> None:
        """Brings the file's name to the disk; without it, a power cut may lose the file."""
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _line_at(self, offset: int) -> bytes:
        line = b""
        while b"\n" not in line:
            part = os.pread(self._file, _CHUNK, offset + len(line))
            if not part or len(line) > LINE_MAX:
                raise Damaged(f"{self._path} has no whole line at byte {offset}")
            line += part
        return line.partition(b"\n")[0]

    def _encode(self, changes: Sequence[Change], key: KeyRecord | None, delivered: Sequence[str], body: bytes) -> bytes:
        """Encodes one line, with its newline."""
        parts: dict[str, Any] = {}
        if changes:
            parts["c"] = [
                ["ev", (c.id, c.type, c.created, c.request_id, c.idempotency_key, c.pending)]
                if isinstance(c, Event)
                else [self._tags[type(c)], tuple(c)]
                for c in changes
            ]
        if key is not None:
            parts["k"] = key[:5]
        if delivered:
            parts["d"] = delivered
        head = orjson.dumps(parts)
        return head + b"\t" + body + b"\n" if key is not None else head + b"\n"

    def _decode(self, offset: int, line: bytes) -> Record:
        """Decodes one line, given without its newline."""
        head, _, body = line.partition(b"\t")
        parts = orjson.loads(head)
        changes: list[Change] = []
        subject: Subject | None = None
        for tag, fields in parts.get("c", ()):
            if tag != "ev":
                subject = self._kinds[tag](*fields)
                changes.append(subject)
                continue
            if subject is None:
                raise ValueError("an event without its subject")
            identifier, kind, created, request_id, idempotency_key, pending = fields
            changes.append(Event(identifier, kind, created, subject, request_id, idempotency_key, pending))
        key = KeyRecord(*parts["k"])._replace(offset=offset) if "k" in parts else None
        return Record(offset, changes, key, parts.get("d", []), body)


def _needed(
    changes: Sequence[Change],
    seen: set[str],
    current: dict[str, Subject],
    events: Collection[str],
    pending: Collection[str],
) -> list[Change]:
    """The events that can still be read or must be sent, with the states that they report.

    Each object also keeps its first state, which decides its place in lists, and its last, which is the object.
    """
    kept: list[Change] = []
    waiting: Subject | None = None
    for change in changes:
        if isinstance(change, Event):
            if change.id in events or change.id in pending:
                if waiting is not None:
                    kept.append(waiting)
                    waiting = None
                kept.append(change._replace(pending=change.id in pending))
            continue
        waiting = change
        if change.id not in seen or current[change.id] == change:
            seen.add(change.id)
            kept.append(change)
            waiting = None
    return kept
