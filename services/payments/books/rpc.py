"""The gRPC handlers of the books: each reads a request, calls one function, and writes the response."""

import uuid
from datetime import datetime
from typing import Any

from services.chassis.data.db import Database
from services.chassis.money import Money
from services.chassis.server import paging, wire
from services.chassis.server.paging import Pages
from services.payments.domain import DisputeState
from services.payments.sql import disputes, journal, lists
from services.payments.sql.disputes import ListedDispute, Position
from services.payments.sql.journal import Entered, Wanted
from services.payments.sql.lists import Parked
from stampede.payments.v1 import books_service_pb2 as pb
from stampede.payments.v1 import books_service_pb2_grpc as pb_grpc


class BooksService(pb_grpc.BooksServiceServicer):
    """The methods for staff who look into the books."""

    def __init__(self, db: Database, pages: Pages) -> None:
        self._db, self._pages = db, pages

    async def ListDisputes(self, request: pb.ListDisputesRequest, _context: Any) -> pb.ListDisputesResponse:
        state = DisputeState(pb.Dispute.State.Name(request.state)) if request.state else None
        size, sealed_to = paging.size(request.page_size), {"disputes": state}
        at = self._pages.verify(request.page_token, sealed_to)
        after = Position(datetime.fromisoformat(at[0]), at[1]) if at else None
        found = await disputes.page(self._db, state=state, after=after, most=size + 1)
        token = ""
        if len(found) > size:
            last = found[size - 1]
            token = self._pages.sign([last.create_time.isoformat(), last.dispute.reference], sealed_to)
        return pb.ListDisputesResponse(disputes=map(_dispute_to_proto, found[:size]), next_page_token=token)

    async def ListParkedMoney(self, request: pb.ListParkedMoneyRequest, _context: Any) -> pb.ListParkedMoneyResponse:
        problem = request.problem or None
        size, sealed_to = paging.size(request.page_size), {"parked": problem}
        at = self._pages.verify(request.page_token, sealed_to)
        after = lists.Position(datetime.fromisoformat(at[0]), uuid.UUID(at[1])) if at else None
        found = await lists.read_parked(self._db, most=size + 1, problem=problem, after=after)
        token = ""
        if len(found) > size:
            last = found[size - 1]
            token = self._pages.sign([last.update_time.isoformat(), str(last.id)], sealed_to)
        return pb.ListParkedMoneyResponse(parked=map(_parked_to_proto, found[:size]), next_page_token=token)

    async def ListJournalEntries(
        self, request: pb.ListJournalEntriesRequest, _context: Any
    ) -> pb.ListJournalEntriesResponse:
        wanted = Wanted(
            account=request.account or None,
            since=wire.datetime_of(request.from_time) if request.HasField("from_time") else None,
            until=wire.datetime_of(request.to_time) if request.HasField("to_time") else None,
        )
        size, sealed_to = paging.size(request.page_size), {"journal": wanted._asdict()}
        at = self._pages.verify(request.page_token, sealed_to)
        found = await journal.page(self._db, wanted, after=int(at[0]) if at else None, most=size + 1)
        token = self._pages.sign([str(found[size - 1].id)], sealed_to) if len(found) > size else ""
        return pb.ListJournalEntriesResponse(entries=map(_to_proto, found[:size]), next_page_token=token)


def _parked_to_proto(found: Parked) -> pb.ParkedMoney:
    return pb.ParkedMoney(
        kind=pb.ParkedMoney.Kind.Value(found.kind.upper()), id=str(found.id), payment_id=str(found.payment_id),
        order_id=str(found.order_id), state=found.state, amount=wire.money(Money(found.currency, found.amount_minor)),
        problem=found.problem, cause=found.cause, update_time=wire.timestamp(found.update_time),
    )  # fmt: skip


def _dispute_to_proto(found: ListedDispute) -> pb.Dispute:
    dispute = found.dispute
    due = dispute.evidence_due_time
    return pb.Dispute(
        id=dispute.reference, provider=dispute.provider, payment_id=str(dispute.payment_id),
        order_id=str(found.order_id), state=pb.Dispute.State.Value(dispute.state), status=dispute.status,
        reason=dispute.reason, amount=wire.money(Money(dispute.currency, dispute.amount_minor)),
        withdrawn=wire.money(Money(dispute.currency, dispute.withdrawn_minor)),
        fee=wire.money(Money(dispute.currency, dispute.fee_minor)),
        evidence_due_time=wire.timestamp(due) if due else None,
        create_time=wire.timestamp(found.create_time), update_time=wire.timestamp(found.update_time),
    )  # fmt: skip


def _to_proto(entry: Entered) -> pb.JournalEntry:
    return pb.JournalEntry(
        id=entry.id, create_time=wire.timestamp(entry.create_time), kind=entry.kind, debit=entry.debit,
        credit=entry.credit, amount=wire.money(Money(entry.currency, entry.amount_minor)),
        payment_id=str(entry.payment_id), reference=entry.reference,
    )  # fmt: skip
