"""Orders that end in every way there is, while processes die at seeded points. `make chaos` plays many more rounds."""

import os

import pytest

from tests.chaos.rounds import VICTIMS, plan, played
from tests.chaos.stories import STORIES
from tests.e2e.shop import Shop

_SEED, _ROUNDS = 1352, 4


async def test_whatever_dies_at_whatever_point_each_order_ends_right(shop: Shop) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or _SEED)

    outcomes = await played(shop, plan(seed, int(os.environ.get("CHAOS_ROUNDS") or _ROUNDS)), print)

    if wrong := [outcome for outcome in outcomes if outcome.wrong]:
        again = [f"{outcome}\n    again: make chaos CHAOS_AT='{outcome.again}'" for outcome in wrong]
        pytest.fail("\n".join(again))
    assert any(outcome.died_at for outcome in outcomes), "nothing died"


def test_seed_means_the_same_rounds_and_a_longer_plan_extends_a_shorter_one() -> None:
    rounds = plan(7, 100)

    assert plan(7, 40) == rounds[:40]
    assert plan(8, 40) != rounds[:40]
    assert {one.story for one in rounds[: len(STORIES)]} == set(STORIES)
    assert {one.victim for one in rounds} == set(VICTIMS)
