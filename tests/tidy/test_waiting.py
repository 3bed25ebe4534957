"""Tests wait for events, not for time; and each runner collects the same tests."""

import ast

from tests.tidy.source import ROOT, assert_none, calls, modules, name_of, text_of

# Each exception polls something that publishes no event, or is no test of timing.
_MAY_SLEEP = {
    "tests/support/infra.py": "polls a port until a server that just started listens on it",
    "tests/support/waiting.py": "polls databases and processes, which publish no event",
    "tests/integration/inventory/replicas.py": "has buyers come again and again, with a rest in between",
    "tests/bench/rivals/celery_chain.py": "polls the results of chains, all that are under way at once",
    "tests/bench/shop.py": "polls the database until no saga is left",
    "tests/bench/measure/statements.py": "measures what is done in a time in which nothing is asked for",
}

_CHANGE = {"time.time", "time.monotonic", "datetime.now", "uuid.uuid4", "uuid4", "new_id", "ids.new"}


def test_tests_wait_for_events_not_for_time() -> None:
    assert_none(
        "no sleep in tests",
        (
            f"{name_of(path)}:{node.lineno}"
            for path in modules("tests")
            for called, node in calls(path)
            # A sleep of 0 only yields.
            if called in ("time.sleep", "asyncio.sleep") and ast.unparse(node.args[0]) != "0"
            if name_of(path) not in _MAY_SLEEP
        ),
    )


def test_only_modules_that_sleep_are_excused() -> None:
    stale = [name for name in _MAY_SLEEP if not (ROOT / name).exists() or "sleep(" not in text_of(ROOT / name)]
    assert_none("excused from sleeping", stale)


def _named_after(node: ast.AST, *, as_text: bool) -> set[str]:
    """The changing calls whose values pytest takes into a case's name; it names a dict by its position."""
    if isinstance(node, ast.Dict) and not as_text:
        return set()
    found = {ast.unparse(node.func)} & _CHANGE if isinstance(node, ast.Call) else set()
    return found.union(*(_named_after(child, as_text=as_text) for child in ast.iter_child_nodes(node)))


def test_names_of_cases_are_the_same_in_each_run() -> None:
    """Two runners that collect different names refuse to begin; they collect at different times."""
    offenders = []
    for path in modules("tests"):
        for called, node in calls(path):
            ids = next((ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "ids"), "")
            if called.endswith("parametrize") and ids in ("", "str", "repr"):
                changing = _named_after(node.args[1], as_text=bool(ids))
                offenders += [f"{name_of(path)}:{node.lineno}: {name}" for name in sorted(changing)]
    assert_none("names of cases", offenders)
