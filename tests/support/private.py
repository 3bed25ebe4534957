"""Finds in logs what must not be there: personal data, passwords, tokens, keys, card numbers."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_FORBIDDEN = re.compile(
    r"[\w.+-]+@[\w-]+\.(?:com|org|net|local)\b"  # an e-mail address
    r"|eyJ[\w-]{10,}\.[\w-]{10,}"  # an access token or a mesh token
    r"|pi_\w+_secret_\w+"
    r"|(?:sk|rk|whsec)_(?:(?:test|live)_)?[A-Za-z0-9]{8,}"
    r"|\$2[aby]\$\d\d\$"  # a hash of a password
    r"|-----BEGIN"
    # The number of a card, which is no part of a UUID.
    r"|(?<![\w-])(?:4\d{3}|5[1-5]\d{2}|3[47]\d{2})[ -]?(?:\d{4}[ -]?){2}\d{3,4}(?![\w-])"
)
_SHOWN = 60


def leaks(logs: Path, secrets: Iterable[str]) -> list[str]:
    """Returns what the files in `logs` show of people or secrets, with file and line; at most once a file."""
    wanted = re.compile("|".join([_FORBIDDEN.pattern, *map(re.escape, secrets)]))
    return [found for path in sorted(logs.iterdir()) for found in _first(path, wanted)]


def open_to_others(folder: Path) -> list[str]:
    """Returns the files and folders in `folder` that anybody but their owner can read, write or list."""
    return [
        f"{path.relative_to(folder)}: {path.lstat().st_mode & 0o777:o}"
        for path in (folder, *folder.rglob("*"))
        if path.exists() and not path.is_symlink() and path.stat().st_mode & 0o066
    ]


def _first(path: Path, wanted: re.Pattern[str]) -> Iterator[str]:
    with path.open(errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if match := wanted.search(line):
                start = max(0, match.start() - _SHOWN)
                yield f"{path.name}:{number}: {line[start : match.end() + _SHOWN].strip()}"
                return
