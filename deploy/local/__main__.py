"""Run the whole mesh on this machine: gateway, five services, databases, brokers and payment sandbox.

STAMPEDE_PORT (default 8080) is the gateway's port; the other ports follow from it.
STAMPEDE_HOME (default .stampede) is the folder of data, logs and secrets.
STAMPEDE_PASS names variables of this shell that the parts shall get; by default PATH, HOME, LANG and TMPDIR only.
"""

import argparse
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from deploy.local import control
from deploy.local.environment import forget_libraries, kept
from deploy.local.location import Site
from deploy.local.parts import service_environment
from deploy.local.ports import SERVICES

_console = Console(highlight=False, soft_wrap=True)


def _print(line: str) -> None:
    style = {control.READY: "bold green", control.FAILED: "bold red"}.get(line.split(" ")[0].rstrip(":"))
    _console.print(line, style=style, markup=False)


def _up(site: Site, _: argparse.Namespace) -> int:
    """start everything, and return when all parts are ready"""
    code = control.up(site, _print)
    is_printed = site.data / "admin-password-printed"
    if code == 0 and not is_printed.exists():
        _print(f"first sign-in: admin@stampede.local, password {site.secrets['admin']}")
        is_printed.touch()
    return code


def _down(site: Site, _: argparse.Namespace) -> int:
    """stop everything; the data stays"""
    _print("stopped" if control.down(site) else "the mesh is not up")
    return 0


def _status(site: Site, _: argparse.Namespace) -> int:
    """show the state of every part; exit status 1 unless all are ready"""
    parts = control.parts(site)
    if not parts and control.running(site):
        _print("the mesh is starting")
        return 1
    if not parts:
        _print("the mesh is not up; `make up` starts it")
        return 1
    table = Table("part", "pid", "port", "state", "restarts", "since", box=None)
    for name, part in parts.items():
        since = f"{time.time() - part['since']:.0f} s ago"
        cells = (part["pid"] or "", part["port"] or "", part["state"], part["restarts"])
        table.add_row(name, *map(str, cells), since)
    _console.print(table)
    return 0 if all(part["state"] in {"ready", "done"} for part in parts.values()) else 1


def _run(site: Site, _: argparse.Namespace) -> int:
    """run everything in the foreground until Ctrl-C"""
    return control.run(site, _print)


def _logs(site: Site, options: argparse.Namespace) -> int:
    """show the end of one part's log, or of all logs; -f follows them"""
    logs = [site.log(name) for name in options.part] or sorted(site.log("x").parent.glob("*.log"))
    if missing := [log.stem for log in logs if not log.exists()]:
        names = ", ".join(path.stem for path in sorted(site.log("x").parent.glob("*.log")))
        _print(f"no log of {', '.join(missing)}; there are logs of: {names or 'no part yet'}")
        return 1
    if not logs:
        _print("there are no logs yet; `make up` starts the mesh")
        return 1
    following = ["-F"] if options.follow else []
    command = ["tail", "-n", str(options.lines), *following, *map(str, logs)]
    sys.stdout.flush()
    return os.execvp("tail", command)  # noqa: S606 - tail follows files that are replaced


def _reset(site: Site, _: argparse.Namespace) -> int:
    """stop everything and delete all data; secrets stay"""
    control.down(site)
    shutil.rmtree(site.data)
    _print("stopped; all data is deleted")
    return 0


def _service(site: Site, options: argparse.Namespace) -> int:
    """run an operator command of a service with its settings, for example: service orders dead-letters list"""
    # The user's name goes into the order log.
    user = {name: os.environ[name] for name in ("USER", "LOGNAME", "TERM") if name in os.environ}
    environment = {**kept(os.environ), **user, **service_environment(site, options.name)}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", f"services.{options.name}", *options.arguments], environment)  # noqa: S606 - replaces this process


def _env(site: Site, _: argparse.Namespace) -> int:
    """print addresses and passwords as shell exports, for other tools"""
    for name, value in site.exports().items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    return 0


_COMMANDS: dict[str, Callable[[Site, argparse.Namespace], int]] = {
    "up": _up,
    "down": _down,
    "status": _status,
    "run": _run,
    "logs": _logs,
    "reset": _reset,
    "env": _env,
    "service": _service,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in _COMMANDS.items():
        sub = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        if name == "logs":
            sub.add_argument("part", nargs="*", help="for example: orders gateway")
            sub.add_argument("-f", "--follow", action="store_true", help="print new lines as they are written")
            sub.add_argument("-n", "--lines", type=int, default=40, help="lines to show (default: %(default)s)")
        if name == "service":
            sub.add_argument("name", choices=SERVICES)
            sub.add_argument(
                "arguments", nargs=argparse.REMAINDER, metavar="command", help="--help lists the service's commands"
            )
    options = parser.parse_args()
    forget_libraries(os.environ)
    site = Site.to_export() if options.command == "env" else Site.here()
    try:
        return _COMMANDS[options.command](site, options)
    except OSError as error:  # the disk is full, or a file is not ours
        print(f"{options.command} failed: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
