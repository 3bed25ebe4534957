"""Orders that end in every way there is, while faults happen at seeded points. `make chaos` plays many more rounds."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.rounds import KNOWN, VICTIMS, Outcome, Round, plan, played
from tests.chaos.stories import STORIES
from tests.e2e.shop import Shop

_ROUNDS = 3


def seed_of_the_commit() -> int:
    """Each commit plays other rounds. Without a repository, as in an archive, the same."""
    command = ["git", "rev-parse", "--short=6", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return int(found.stdout.strip() or "0", 16)


async def test_whatever_fails_at_whatever_point_each_order_ends_right(shop: Shop) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or seed_of_the_commit())

    outcomes = await played(shop, plan(seed, int(os.environ.get("CHAOS_ROUNDS") or _ROUNDS)), print)

    if wrong := [outcome for outcome in outcomes if outcome.wrong]:
        again = [f"{outcome}\n    again: make chaos CHAOS_AT='{outcome.again}'" for outcome in wrong]
        pytest.fail("\n".join(again))
    assert any(outcome.sprung_at for outcome in outcomes), "no fault happened"


def test_round_at_a_point_that_does_not_come_is_wrong() -> None:
    """Points are named after functions. A name that is gone would be passed as if all were right."""
    named = Outcome(Round.at(1, "compensated payments 1 after commit of gone.for_good"))
    with pytest.raises(AssertionError, match="payments passed no 'after commit of gone"):
        named.check_point()
    Outcome(Round.at(1, "compensated payments 40")).check_point()
    named.sprung_at = named.round.name
    named.check_point()


def test_seed_means_the_same_rounds_and_a_longer_plan_extends_a_shorter_one() -> None:
    rounds = plan(7, 100)

    assert plan(7, 40) == rounds[:40]
    assert plan(8, 40) != rounds[:40]
    assert {one.story for one in rounds[: 2 * len(STORIES)]} == set(STORIES)
    assert {str(replace(one, number=0)) for one in rounds[:24] if one.name} == {str(Round.at(0, at)) for at in KNOWN}
    assert {one.victim for one in rounds} == set(VICTIMS)
    assert {one.fault for one in rounds} == set(FAULTS)
