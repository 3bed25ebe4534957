"""The location of one mesh: its folder, its ports, its secrets, and the addresses that follow from them."""

import contextlib
import fcntl
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from deploy.local import environment, wheels
from deploy.local.environment import Contradiction
from deploy.local.ports import BASE_MAX, BASE_MIN, HOST, SERVICES, Ports

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
    "razorpay/key",
    "razorpay/webhook",
)
_SPOKEN_OF = ("STAMPEDE_URL", "STAMPEDE_ADMIN_PASSWORD")
"""The variables by which commands recognise that the shell is set up for another mesh."""
_PREFIXES = {"stripe/key": "sk_test_", "stripe/webhook": "whsec_"}


@dataclass(frozen=True, kw_only=True)
class Site:
    """A mesh's folder, ports and secrets."""

    home: Path
    ports: Ports
    secrets: Mapping[str, str] = field(repr=False)

    @classmethod
    def at(cls, home: Path, base_port: int, *, admin_password: str = "") -> "Site":
        """The mesh in that folder; creates the folder and the secrets if they are missing.

        The first administrator gets `admin_password` if the secrets are created now.
        """
        home = home.resolve()
        home.mkdir(parents=True, exist_ok=True)
        for folder in (home, *(home / name for name in ("data", "logs", "run"))):
            folder.mkdir(exist_ok=True)
            folder.chmod(_ENTERED if wheels.other_user() and folder.name != "logs" else _PRIVATE)
        return cls(home=home, ports=Ports(base_port), secrets=_secrets(home / "secrets.json", admin_password))

    @classmethod
    def here(cls) -> "Site":
        """The mesh of this checkout, in the folder of STAMPEDE_HOME and on the ports of STAMPEDE_PORT.

        Raises `Contradiction` if the environment names no possible mesh, or has the address or password of another.
        """
        site = cls._chosen()
        where = f"the mesh in {site.home} at {site.url}"
        environment.check_is_of({name: site.exports()[name] for name in _SPOKEN_OF}, where, os.environ)
        return site

    @classmethod
    def _chosen(cls) -> "Site":
        text = os.environ.get("STAMPEDE_PORT") or str(_PORT)
        if not re.fullmatch(r"[0-9]{1,5}", text) or not BASE_MIN <= int(text) <= BASE_MAX:
            raise Contradiction(f"STAMPEDE_PORT={text} is not a port from {BASE_MIN} to {BASE_MAX}")
        port = int(text)
        # A mesh on other ports is another mesh, with data of its own.
        folder = ".stampede" if port == _PORT else f".stampede-{port}"
        home = Path(os.environ.get("STAMPEDE_HOME") or ROOT / folder)
        is_of_another = os.environ.get("STAMPEDE_URL", "") not in ("", f"http://{HOST}:{port}")
        password = "" if is_of_another else os.environ.get("STAMPEDE_ADMIN_PASSWORD", "")
        try:
            return cls.at(home, port, admin_password=password)
        except OSError as error:
            raise Contradiction(f"STAMPEDE_HOME={home} cannot be used: {error.strerror}") from None

    @classmethod
    def to_export(cls) -> "Site":
        """As `here`, without comparing the environment: its variables are about to be set anew."""
        return cls._chosen()

    def exports(self) -> dict[str, str]:
        """The addresses and passwords of this mesh, for other tools, by the variables that those read."""
        variables = {
            "STAMPEDE_URL": self.url,
            "STAMPEDE_ADMIN_EMAIL": "admin@stampede.local",
            "STAMPEDE_ADMIN_PASSWORD": self.secrets["admin"],
            "NATS_URL": self.nats_url,
            "VALKEY_URL": self.valkey_url,
            "SANDBOX_URL": self.sandbox_url,
            "MESH_SECRET": self.secrets["mesh"],
            "STRIPE_API_KEY": self.secrets["stripe/key"],
            "STRIPE_WEBHOOK_SECRET": self.secrets["stripe/webhook"],
            "RAZORPAY_KEY_SECRET": self.secrets["razorpay/key"],
            "RAZORPAY_WEBHOOK_SECRET": self.secrets["razorpay/webhook"],
        }
        for service in SERVICES:
            variables[f"{service.upper()}_TARGET"] = self.target(service)
            variables[f"{service.upper()}_DATABASE_URL"] = self.database_url(service)
        return variables

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


@contextlib.contextmanager
def locked(path: Path, *, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the lock of this name alone, and calls `waits` before waiting for another process that has it."""
    with open_private(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


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


def _secrets(path: Path, admin_password: str) -> dict[str, str]:
    with locked(path.with_suffix(".lock")):  # two commands that start at once must agree
        try:
            known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        except ValueError:
            raise Contradiction(f"{path} is damaged; restore it, or begin anew: rm -r {path.parent}") from None
        made = {name: _PREFIXES.get(name, "") + secrets.token_urlsafe(24) for name in _NAMES if name not in known}
        if admin_password and "admin" in made:
            made["admin"] = admin_password
        if made:
            # Replaced as a whole: a full disk must not cost the passwords of data that exists.
            write_private(path.with_suffix(".new"), json.dumps(known | made, indent=2)).replace(path)
    return known | made
