"""The location of one mesh: its folder, its ports, its secrets, and the addresses that follow from them."""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from deploy.local import users
from deploy.local.ports import HOST, SERVICES, Ports

ROOT = Path(__file__).parents[2]
_PORT = 8080
_PRIVATE = 0o700
_ENTERED = 0o711
"""Of a folder that PostgreSQL passes through as another user, without seeing what is in it."""
_DATABASE_ROLES = tuple(role for service in SERVICES for role in (service, f"{service}_owner"))
_NAMES = (
    *(f"database/{role}" for role in ("postgres", *_DATABASE_ROLES)),
    "valkey",
    "nats",
    "mesh",
    "keys",
    "pages",
    "admin",
    "stripe/key",
    "stripe/webhook",
)
_PREFIXES = {"stripe/key": "sk_test_", "stripe/webhook": "whsec_"}


@dataclass(frozen=True, kw_only=True)
class Site:
    """A mesh's folder, ports and secrets."""

    home: Path
    ports: Ports
    secrets: Mapping[str, str] = field(repr=False)

    @classmethod
    def at(cls, home: Path, base_port: int) -> "Site":
        """The mesh in that folder; creates the folder and the secrets if they are missing."""
        home = home.resolve()
        home.mkdir(parents=True, exist_ok=True)
        for folder in (home, *(home / name for name in ("data", "logs", "run"))):
            folder.mkdir(exist_ok=True)
            folder.chmod(_ENTERED if users.other_user() and folder.name != "logs" else _PRIVATE)
        return cls(home=home, ports=Ports(base_port), secrets=_secrets(home / "secrets.json"))

    @classmethod
    def here(cls) -> "Site":
        """The mesh of this checkout, in the folder of STAMPEDE_HOME and on the ports of STAMPEDE_PORT."""
        port = int(os.environ.get("STAMPEDE_PORT") or _PORT)
        # A mesh on other ports is another mesh, with data of its own.
        folder = ".stampede" if port == _PORT else f".stampede-{port}"
        return cls.at(Path(os.environ.get("STAMPEDE_HOME") or ROOT / folder), port)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.ports.gateway}"

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def run(self) -> Path:
        return self.home / "run"

    def log(self, part: str) -> Path:
        return self.home / "logs" / f"{part}.log"

    def password(self, role: str) -> str:
        return self.secrets[f"database/{role}"]

    def database_url(self, service: str, role: str | None = None) -> str:
        """The URL for SQLAlchemy, as the service's runtime role unless another is named."""
        role = role or service
        return f"postgresql+psycopg://{role}:{self.password(role)}@{HOST}:{self.ports.postgres}/{service}"

    @property
    def nats_url(self) -> str:
        return f"nats://stampede:{self.secrets['nats']}@{HOST}:{self.ports.nats}"

    @property
    def valkey_url(self) -> str:
        return f"redis://:{self.secrets['valkey']}@{HOST}:{self.ports.valkey}/0"

    @property
    def sandbox_url(self) -> str:
        return f"http://{HOST}:{self.ports.sandbox}"

    def target(self, service: str) -> str:
        return f"{HOST}:{self.ports.grpc(service)}"


def open_private(path: Path, mode: Literal["wb", "ab"]) -> BinaryIO:
    """Opens a file for writing that only its owner can read."""
    number = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if mode == "ab" else os.O_TRUNC), 0o600)
    os.fchmod(number, 0o600)
    return os.fdopen(number, mode)


def write_private(path: Path, text: str) -> Path:
    """Writes a file that only its owner can read, from its creation on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return path


def _secrets(path: Path) -> dict[str, str]:
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    made = {name: _PREFIXES.get(name, "") + secrets.token_urlsafe(24) for name in _NAMES if name not in known}
    wanted = known | made
    if chosen := os.environ.get("STAMPEDE_ADMIN_PASSWORD"):
        wanted["admin"] = chosen
    if wanted != known:
        write_private(path, json.dumps(wanted, indent=2))
    return wanted
