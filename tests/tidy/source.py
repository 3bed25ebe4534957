"""The files that the rules are about, parsed once: modules, imports, calls, texts."""

import ast
import re
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVICES = sorted(path.parent.name for path in ROOT.glob("services/*/__main__.py"))


def name_of(path: Path) -> str:
    """The path as it stands in the repository."""
    return str(path.relative_to(ROOT))


@cache
def tracked() -> tuple[Path, ...]:
    """All files that git tracks, or would track after `git add`."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    return tuple(ROOT / name for name in sorted(set(names)) if name and (ROOT / name).is_file())


@cache
def text_of(path: Path) -> str:
    """The text of a file; empty for one that holds bytes."""
    content = path.read_bytes()
    return "" if b"\0" in content else content.decode(errors="replace")


def modules(*folders: str) -> list[Path]:
    """The Python modules below these folders of the repository."""
    wanted = tuple(ROOT / folder for folder in folders)
    return [
        path for path in tracked() if path.suffix == ".py" and any(path.is_relative_to(folder) for folder in wanted)
    ]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(text_of(path))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(parsed(path)))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Each imported name in full, with its line."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{'.' * node.level}{node.module or ''}.{alias.name}", node.lineno) for alias in node.names)


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Each call, with the text of its callee."""
    for node in nodes(path):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def strings(path: Path) -> Iterator[tuple[str, int]]:
    """Each constant text, docstrings included, with its line."""
    for node in nodes(path):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, node.lineno


def holding(pattern: str, paths: Iterable[Path]) -> list[str]:
    """The lines in which a pattern occurs."""
    expression = re.compile(pattern)
    return [
        f"{name_of(path)}:{number}: {line.strip()[:100]}"
        for path in paths
        if ROOT / "tests/tidy" not in path.parents
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if expression.search(line)
    ]


def assert_none(rule: str, offenders: Iterable[str]) -> None:
    """Fail with the complete list of offenders."""
    found = list(offenders)
    assert not found, f"{rule}: {len(found)} offenders\n" + "\n".join(found)
