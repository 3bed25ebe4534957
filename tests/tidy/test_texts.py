"""How texts and names read, and that READMEs keep up with the code."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from services.chassis.settings import ServiceSettings
from tests.tidy.source import ROOT, SERVICES, assert_none, modules, name_of, nodes, text_of, tracked
from tests.tidy.test_layers import settings_of, tables

_TEST_NAME_MOST = 80
_OPENER = re.compile(r"(?:^|(?<=[.!?:] )|(?<=[.!?]\n)|(?<=\n\n))(?:Who|Whoever|What)\b[^.?!]*[.?!\n]?")
# Words of the time before the glossary.
_OLD = re.compile(
    r"(?<![A-Za-z])(?:told|tells?|telling|wish(?:es|ed)?|stretch(?:ed|es)?|look_time|woken|give_up|gave_up|pay_back|paid_back"
    r"|latch(?:ed)?|everyday|flights|desks?|tills?|fence[ds]?|whoever|empty-handed|healing|heals?)(?![A-Za-z])",
    re.IGNORECASE,
)


def _prose(path: Path) -> Iterator[tuple[str, int]]:
    """Comments and docstrings of a module, or the paragraphs of a text; each with its first line."""
    text = text_of(path)
    if path.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield token.string.lstrip("# "), token.start[0]
        for node in nodes(path):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                yield node.value.value.strip(), node.lineno
    elif path.suffix in (".md", ".proto"):
        for number, line in enumerate(text.splitlines(), 1):
            yield re.sub(r"^[\s/*>#-]+|^\d+\. ", "", line), number


def test_no_sentence_begins_with_who_or_what_unless_it_asks() -> None:
    offenders = []
    for path in tracked():
        if ROOT / "tests/tidy" in path.parents:
            continue
        for text, line in _prose(path):
            for found in _OPENER.finditer(text):
                if not found.group().endswith("?"):
                    offenders.append(f"{name_of(path)}:{line}: {found.group()[:80]!r}")
    assert_none("sentences", offenders)


def test_services_use_the_words_of_the_glossary() -> None:
    offenders = []
    for path in tracked():
        if ROOT / "services" in path.parents and "migrations" not in path.parts and path.suffix in (".py", ".md"):
            for number, line in enumerate(text_of(path).splitlines(), 1):
                if found := _OLD.search(line):
                    offenders.append(f"{name_of(path)}:{number}: {found.group()}")
    assert_none("vocabulary", offenders)


def test_names_of_tests_are_short() -> None:
    assert_none(
        "names of tests",
        (
            f"{name_of(path)}:{node.lineno}: {node.name}"
            for path in modules("tests")
            for node in nodes(path)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if node.name.startswith("test_") and len(node.name) > _TEST_NAME_MOST
        ),
    )


def _readme(service: str) -> str:
    return text_of(ROOT / "services" / service / "README.md")


def test_readmes_name_files_that_exist() -> None:
    offenders = []
    for service in SERVICES:
        folder = ROOT / "services" / service
        for name in re.findall(r"`((?:[\w-]+/)*\w+\.(?:py|md|proto|yaml|sql|lua))`", _readme(service)):
            if not (folder / name).exists() and not (ROOT / name).exists():
                offenders.append(f"services/{service}/README.md: {name}")
    assert_none("files that READMEs name", offenders)


def test_links_in_texts_point_at_files_that_exist() -> None:
    offenders = []
    for path in tracked():
        if path.suffix == ".md":
            for link in re.findall(r"\]\(([^)\s]+)\)", text_of(path)):
                file = link.partition("#")[0]
                if file and "://" not in file and not (path.parent / file).exists():
                    offenders.append(f"{name_of(path)}: {link}")
    assert_none("links", offenders)


def test_readmes_name_every_variable_of_their_service() -> None:
    assert_none(
        "variables in READMEs",
        (
            f"services/{service}/README.md: {name.upper()}"
            for service in SERVICES
            for name in sorted(set(settings_of(service).model_fields) - set(ServiceSettings.model_fields))
            if not re.search(rf"\b{name.upper()}\b", _readme(service))
        ),
    )


def test_readmes_name_every_table_of_their_service() -> None:
    assert_none(
        "tables in READMEs",
        (
            f"services/{service}/README.md: {table}"
            for service in SERVICES
            for table in sorted(tables(service))
            if f"`{table}`" not in _readme(service)
        ),
    )
