"""Conversion of values to protobuf messages and back."""

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.money import Money
from stampede.type.v1 import money_pb2

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def money(value: Money) -> money_pb2.Money:
    return money_pb2.Money(currency_code=value.currency, minor_units=value.minor)


def money_of(message: money_pb2.Money) -> Money:
    return Money(message.currency_code, message.minor_units)


def timestamp(value: datetime) -> Timestamp:
    # Costs a third of Timestamp.FromDatetime, and an order has four.
    since = value - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)


def datetime_of(message: Timestamp) -> datetime:
    return message.ToDatetime(UTC)


def duration(value: timedelta) -> Duration:
    """Converts `value`, which must not be negative."""
    return Duration(seconds=value.days * 86400 + value.seconds, nanos=value.microseconds * 1000)
