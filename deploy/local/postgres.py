"""The commands that run PostgreSQL from its wheel, also for root, as whom PostgreSQL refuses to run."""

import shutil
from pathlib import Path

from deploy.local import wheels
from deploy.local.location import ROOT, Site, write_private
from deploy.local.ports import HOST, SERVICES
from deploy.local.wheels import check_can_reach, other_user, unprivileged

_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "wal_compression": "on",
    "random_page_cost": "1.1",
    "track_io_timing": "on",
    # Details of errors quote rows and keys, such as an e-mail address.
    "log_error_verbosity": "terse",
    # The defaults, spelled out because every guarantee rests on them: a commit that was answered is on disk.
    "fsync": "on",
    "synchronous_commit": "on",
}


def initdb(site: Site) -> tuple[str, ...]:
    """The command that creates the cluster; every connection needs a password."""
    options = ("-D", str(_data(site)), "-U", "postgres", "--auth=scram-sha-256", "--encoding=UTF8")
    # C.UTF-8 sorts the same on every machine, so no index breaks with a new C library.
    return unprivileged(
        str(wheels.postgres("initdb")), *options, "--locale=C.UTF-8", f"--pwfile={_password_file(site)}"
    )


def before_initdb(site: Site) -> None:
    """Deletes what a failed first start left, and gives the folder to PostgreSQL's user. Raises `Barred`."""
    before_start(site)
    shutil.rmtree(_data(site), ignore_errors=True)
    _data(site).mkdir(parents=True)
    write_private(_password_file(site), site.password("postgres"))
    if user := other_user():
        shutil.chown(_data(site), user)
        shutil.chown(_password_file(site), user)


def before_start(site: Site) -> None:
    """Raises `Barred` if PostgreSQL's user cannot reach its program or its data."""
    check_can_reach(wheels.postgres("postgres"), site.data)


def serve(site: Site) -> tuple[str, ...]:
    """The command of the server."""
    settings = (argument for name, value in _SETTINGS.items() for argument in ("-c", f"{name}={value}"))
    return unprivileged(
        str(wheels.postgres("postgres")), "-D", str(_data(site)), "-p", str(site.ports.postgres), *settings
    )


def make_roles(site: Site) -> tuple[str, ...]:
    """The command that creates databases and roles, with the script that Compose and Kubernetes run, too."""
    where = ("-h", HOST, "-p", str(site.ports.postgres), "-U", "postgres", "-d", "postgres")
    script = str(ROOT / "deploy/postgres/roles.sql")
    return (str(wheels.postgres("psql")), "--no-psqlrc", *where, "--file", script)


def role_passwords(site: Site) -> dict[str, str]:
    """The environment of `make_roles`."""
    roles = (role for service in SERVICES for role in (service, f"{service}_owner"))
    return {"PGPASSWORD": site.password("postgres")} | {
        f"{role.upper()}_PASSWORD": site.password(role) for role in roles
    }


def _data(site: Site) -> Path:
    return site.data / "postgres"


def _password_file(site: Site) -> Path:
    return site.run / "postgres-password"
