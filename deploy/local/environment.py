"""The environment of the parts: a short list of variables, so that a developer's shell changes nothing in the mesh.

Libraries read proxies, PG*, PYTHON*, OTEL_* and more from the environment by themselves. A part gets those only if
STAMPEDE_PASS names them, separated by commas.
"""

import re
from collections.abc import Mapping, MutableMapping

_LISTED_IN = "STAMPEDE_PASS"
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR")
_READ_BY_LIBRARIES = re.compile(r"(?:PG|PYTHON|OTEL_|GRPC_)\w*|(?:\w+_)?proxy", re.IGNORECASE)


class Contradiction(SystemExit):
    """The environment names another mesh, or one that cannot be. It ends the command with a message for people."""


def kept(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that every part gets, besides its own settings."""
    names = (*_KEPT, *(name.strip() for name in environ.get(_LISTED_IN, "").split(",")))
    return {name: environ[name] for name in names if name in environ}


def forget_libraries(environ: MutableMapping[str, str]) -> None:
    """Deletes what libraries of this process would read: a command connects to its mesh and to nothing else."""
    passed = kept(environ)
    for name in list(environ):
        if _READ_BY_LIBRARIES.fullmatch(name) and name not in passed:
            del environ[name]


def check_is_of(mesh: Mapping[str, str], where: str, environ: Mapping[str, str]) -> None:
    """Raises `Contradiction` if a variable of `environ` differs from the mesh's: then the shell is set up for another.

    `where` describes the mesh that is meant.
    """
    if others := [name for name, value in mesh.items() if environ.get(name, value) not in (value, "")]:
        raise Contradiction(
            f"{', '.join(others)} in this shell is not of {where}. Unset it, or choose that mesh by STAMPEDE_PORT and"
            ' STAMPEDE_HOME; `eval "$(.venv/bin/python -m deploy.local env)"` sets all variables anew.'
        )
