"""The end of the parts of a killed supervisor, with small processes."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.local import leftovers

_SLEEP = ("sleep", "60")
_HANDLES = "import signal; signal.signal(signal.SIGINT, signal.{}); print(flush=True); signal.pause()"
_ENDS = (sys.executable, "-c", _HANDLES.format("SIG_DFL"))  # a shell's background job would inherit that it is ignored
_STUBBORN = (sys.executable, "-c", _HANDLES.format("SIG_IGN"))


@contextmanager
def _running(command: tuple[str, ...] = _SLEEP) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.kill()


def _state(folder: Path, **parts: dict[str, object]) -> Path:
    path = folder / "state.json"
    path.write_text(json.dumps({"supervisor": 1, "parts": parts}))
    return path


def test_a_recorded_part_is_ended(tmp_path: Path) -> None:
    with _running(_ENDS) as child:
        assert child.stdout
        child.stdout.readline()
        state = _state(tmp_path, web={"pid": child.pid, "began": leftovers.start_time(child.pid)})
        assert leftovers.end_parts(state, tmp_path) == ["web"]
        assert child.wait() == -signal.SIGINT


def test_a_part_that_ignores_the_signal_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "_TERMINATE_SECONDS", 0.05)
    with _running(_STUBBORN) as child:
        assert child.stdout
        child.stdout.readline()
        state = _state(tmp_path, web={"pid": child.pid, "began": leftovers.start_time(child.pid)})
        leftovers.end_parts(state, tmp_path)
        assert child.wait() == -signal.SIGKILL


def test_a_process_that_got_a_used_id_is_left_alone(tmp_path: Path) -> None:
    with _running() as child:
        assert leftovers.end_parts(_state(tmp_path, web={"pid": child.pid, "began": "1"}), tmp_path) == []
        assert child.poll() is None


def test_a_process_that_nobody_reaped_has_ended() -> None:
    with _running() as child:
        assert leftovers.start_time(child.pid)
        child.kill()
        while leftovers.start_time(child.pid):
            pass
        assert child.returncode is None


def test_a_lock_file_of_a_dead_server_is_removed(tmp_path: Path) -> None:
    """Its id may belong to another process by now, or to one that nobody reaped: PostgreSQL would refuse to start."""
    lock = tmp_path / "postmaster.pid"
    with _running() as child:
        lock.write_text(f"{child.pid}\n")
        leftovers.end_parts(tmp_path / "no state", tmp_path)
        assert (lock.exists(), child.poll()) == (False, None)


def test_a_broken_state_file_names_no_part(tmp_path: Path) -> None:
    for text in ("", "{", "[]", "null", '{"parts": null}'):
        (tmp_path / "state.json").write_text(text)
        assert leftovers.end_parts(tmp_path / "state.json", tmp_path) == []
