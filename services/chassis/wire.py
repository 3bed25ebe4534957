"""Values as messages and back."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.money import Money
from stampede.type.v1 import money_pb2


def money(value: Money) -> money_pb2.Money:
    return money_pb2.Money(currency_code=value.currency, minor_units=value.minor)


def money_of(message: money_pb2.Money) -> Money:
    return Money(message.currency_code, message.minor_units)


def timestamp(value: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(value)
    return message


def datetime_of(message: Timestamp) -> datetime:
    return message.ToDatetime(UTC)
