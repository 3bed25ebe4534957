"""Ids sort by creation time; derived ids are constant within a period."""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from services.chassis import ids

NOW_MS = 1_793_000_000_000
PERIOD_MS = 1 << 30


def made_at_ms(id_: uuid.UUID) -> int:
    return id_.int >> 80


def test_new_ids_rise_also_within_a_millisecond() -> None:
    made = [ids.new() for _ in range(10_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_new_ids_are_of_version_7() -> None:
    id_ = ids.new()
    assert isinstance(id_, uuid.UUID)
    assert (id_.version, id_.variant) == (7, uuid.RFC_4122)


@given(parts=st.lists(st.text(max_size=20) | st.uuids(), min_size=1, max_size=4), now_ms=st.integers(0, (1 << 48) - 1))
def test_derived_ids_are_of_version_7_and_not_from_the_future(parts: list[str | uuid.UUID], now_ms: int) -> None:
    id_ = ids.derive_id(*parts, now_ms=now_ms)
    assert (id_.version, id_.variant) == (7, uuid.RFC_4122)
    assert now_ms - PERIOD_MS < made_at_ms(id_) <= now_ms


def test_same_parts_derive_the_same_id_within_a_period() -> None:
    begin = NOW_MS // PERIOD_MS * PERIOD_MS
    assert ids.derive_id("ada", "1", now_ms=begin) == ids.derive_id("ada", "1", now_ms=begin + PERIOD_MS - 1)
    assert ids.derive_id("ada", "1", now_ms=begin) != ids.derive_id("ada", "1", now_ms=begin + PERIOD_MS)


def test_other_parts_derive_another_id() -> None:
    parts_of_ids = [("ada", "1"), ("ada", "2"), ("bob", "1"), ("ada", "1", "1")]
    assert len({ids.derive_id(*parts, now_ms=NOW_MS) for parts in parts_of_ids}) == len(parts_of_ids)


def test_uuid_and_its_text_are_the_same_part() -> None:
    user = uuid.uuid4()
    assert ids.derive_id(user, now_ms=NOW_MS) == ids.derive_id(str(user), now_ms=NOW_MS)
