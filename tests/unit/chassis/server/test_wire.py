"""Conversion of values to protobuf messages and back."""

from datetime import UTC, datetime, timedelta, timezone

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.server import wire

ZONES = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=8))])


@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=ZONES))
def test_timestamp_equals_protobufs(value: datetime) -> None:
    expected = Timestamp()
    expected.FromDatetime(value)
    assert wire.timestamp(value) == expected
    assert wire.datetime_of(wire.timestamp(value)) == value


@given(st.timedeltas(timedelta(0), timedelta(days=10_000)))
def test_duration_equals_protobufs(value: timedelta) -> None:
    expected = Duration()
    expected.FromTimedelta(value)
    assert wire.duration(value) == expected
