"""Finds in logs and databases what must not be there: personal data, passwords, tokens, keys, card numbers."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psycopg
from psycopg import sql

from deploy.local import Site
from deploy.local.ports import SERVICES

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


def kept_in_databases(site: Site, texts: Sequence[str]) -> list[str]:
    """Returns the tables of all services with a row that contains one of `texts`, as text or as bytes."""
    wanted = [f"%{form}%" for text in texts for form in (text, text.encode().hex())]
    found = []
    for service in SERVICES:
        url = site.database_url(service, "postgres").replace("+psycopg", "")
        with psycopg.connect(url, autocommit=True) as db:
            named = db.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            assert named, service
            for (table,) in named:
                query = sql.SQL("SELECT count(*) FROM {} AS t WHERE t::text LIKE ANY(%s)").format(sql.Identifier(table))
                row = db.execute(query, [wanted]).fetchone()
                if row and row[0]:
                    found.append(f"{service}.{table}: {row[0]} rows")
    return found


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
