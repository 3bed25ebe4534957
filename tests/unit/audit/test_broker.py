"""The events that the audit reads from the broker."""

from types import SimpleNamespace

from deploy.audit.reading import broker
from stampede.payments.v1.events_pb2 import PaymentChanged


def test_message_that_is_no_event_ends_no_audit() -> None:
    subject = "stampede.payments.payment.succeeded"
    event = SimpleNamespace(data=PaymentChanged(payment_id="p1").SerializeToString(), subject=subject)
    noise = SimpleNamespace(data=b"\xff\xff\xff", subject=subject)
    assert broker._rows("payments", [noise, event]) == [("p1", subject)]
