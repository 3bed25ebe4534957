"""The gRPC handlers of the books: each reads a request, calls one function, and writes the response."""

from typing import Any

from services.chassis.data.db import Database
from services.chassis.money import Money
from services.chassis.server import paging, wire
from services.chassis.server.paging import Pages
from services.payments.sql import journal
from services.payments.sql.journal import Entered, Wanted
from stampede.payments.v1 import books_service_pb2 as pb
from stampede.payments.v1 import books_service_pb2_grpc as pb_grpc


class BooksService(pb_grpc.BooksServiceServicer):
    """The methods for staff who look into the books."""

    def __init__(self, db: Database, pages: Pages) -> None:
        self._db, self._pages = db, pages

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


def _to_proto(entry: Entered) -> pb.JournalEntry:
    return pb.JournalEntry(
        id=entry.id, create_time=wire.timestamp(entry.create_time), kind=entry.kind, debit=entry.debit,
        credit=entry.credit, amount=wire.money(Money(entry.currency, entry.amount_minor)),
        payment_id=str(entry.payment_id), reference=entry.reference,
    )  # fmt: skip
