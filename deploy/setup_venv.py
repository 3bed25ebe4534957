"""Installs the packages of a lock file into a virtual environment: `python3 deploy/setup_venv.py .venv LOCK`.

Make calls it before every command. It returns at once if the environment is complete, belongs to this folder, and has a
Python that runs. Otherwise it makes it anew. It needs no package, and any Python since 3.8 can read it.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Optional

ROOT = Path(__file__).resolve().parent.parent
_ADVICE = "the packages could not be installed; the reason is above. Behind a proxy, set HTTPS_PROXY, and repeat"


def wanted(venv: Path, lock: Path) -> str:
    """The content of the environment's mark, when it is complete."""
    return f"{venv}\n{hashlib.sha256(lock.read_bytes()).hexdigest()}\n"


def reason_to_install(venv: Path, lock: Path) -> Optional[str]:  # noqa: UP045 - see the module's first lines
    """Why the environment cannot be used; None if it can."""
    mark = venv / ".ready"
    if not mark.exists():
        return "once; a minute or so"
    found = mark.read_text()
    if not found and _is_of_earlier_release(venv, lock):
        return None
    if not found.startswith(f"{venv}\n"):
        return "again, because the folder was moved"
    if not _runs(venv / "bin/python"):
        return "again, because its Python does not run any more"
    return None if found == wanted(venv, lock) else "again, because the packages have changed"


def install(venv: Path, lock: Path, paths: str) -> None:
    """Installs the packages, in a new environment unless the old one can be used; `paths` go into its sys.path."""
    mark = venv / ".ready"
    keeps = mark.exists() and mark.read_text().startswith(f"{venv}\n") and _runs(venv / "bin/python")
    if not keeps:
        shutil.rmtree(venv, ignore_errors=True)
    mark.unlink() if mark.exists() else None
    # PostgreSQL may run from here as another user. There are no secrets in it.
    os.umask(0o022)
    python = str(venv / "bin/python")
    if not keeps and subprocess.run([sys.executable, "-m", "venv", str(venv)], check=False).returncode:
        raise SystemExit(f"{sys.executable} made no virtual environment; on Debian, install python3-venv")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    if subprocess.run([*pip, "-r", str(lock)], check=False).returncode:
        raise SystemExit(_ADVICE)
    if paths:
        where = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True, stdout=subprocess.PIPE, text=True,
        ).stdout.strip()  # fmt: skip
        (Path(where) / "stampede.pth").write_text(paths)
    mark.write_text(wanted(venv, lock))


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - to say so
        raise SystemExit("Stampede needs Python 3.11 or later; name one with make PYTHON=python3.12")
    venv, lock = ROOT / sys.argv[1], ROOT / sys.argv[2]
    with lock.open("rb") as held:  # two commands that start at once install once
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another command is setting up {venv.name}; waiting for it", flush=True)
            fcntl.flock(held, fcntl.LOCK_EX)
        if reason := reason_to_install(venv, lock):
            print(f"setting up {venv.name} ({reason})", flush=True)
            install(venv, lock, "".join(f"{ROOT / path}\n" for path in sys.argv[3:]))


def _is_of_earlier_release(venv: Path, lock: Path) -> bool:
    """Whether an environment with an empty mark, as earlier releases made it, can be used."""
    paths = [path.read_text() for path in venv.glob("lib/python*/site-packages/stampede.pth")]
    is_of_here = any(text.startswith(f"{venv.parent}\n") for text in paths)
    is_newer = (venv / ".ready").stat().st_mtime >= lock.stat().st_mtime
    return is_of_here and is_newer and _runs(venv / "bin/python")


def _runs(python: Path) -> bool:
    try:
        return subprocess.run([str(python), "-c", ""], check=False, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


if __name__ == "__main__":
    main()
