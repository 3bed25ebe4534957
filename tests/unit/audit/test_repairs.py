"""The command that a finding names exists, and accepts what is printed."""

import argparse
import shlex
import uuid
from collections.abc import Callable

import pytest

from deploy.audit.__main__ import parser
from deploy.audit.checks.all_checks import CHECKS
from deploy.audit.findings import Check, Finding
from services.chassis.events import dead_letters
from services.identity import cli as identity
from services.orders import cli as orders
from services.payments import cli as payments
from services.payments.books import cli as books

_PROGRAMS: dict[tuple[str, ...], Callable[[argparse.ArgumentParser], None]] = {
    ("services.identity", "keys"): identity.describe,
    ("services.orders", "sagas"): orders.describe,
    ("services.orders", "dead-letters"): dead_letters.add_arguments,
    ("services.payments", "events"): payments.describe_events,
    ("services.payments", "journal"): books.describe_journal,
    ("services.payments", "parked"): payments.describe_parked,
}


def parse(command: str) -> argparse.Namespace:
    _, _, module, *arguments = shlex.split(command, comments=True)
    if module == "deploy.audit":
        return parser().parse_args(arguments)
    made = argparse.ArgumentParser()
    _PROGRAMS[module, arguments[0]](made)
    return made.parse_args(arguments[1:])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_the_command_that_repairs_a_finding_exists(check: Check) -> None:
    repair = Finding(check, (str(uuid.uuid4()),), "").repair
    if repair.startswith("python -m services.") or repair.startswith("python -m deploy."):
        assert parse(repair)
    else:
        assert "see its log" in repair


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_only_checks_with_statements_are_repaired_by_the_audit(check: Check) -> None:
    assert ("deploy.audit repair" in check.repair) == bool(check.mend)
    assert bool(check.service) or not check.mend
