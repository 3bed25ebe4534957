"""The table `order_log`: every move of an order. Rows are only added."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.money import Money
from services.orders.domain import Actor, LogEntry, Order, State
from services.orders.sql.schema import OrderLogRow, columns

_ENTRIES = text(f"""
    SELECT {columns(OrderLogRow)} FROM order_log WHERE order_id = :order AND id > :after ORDER BY id LIMIT :most
""")  # noqa: S608


def insert_from(source: str, *, actor: str, cause: str, note: str = "''", call_id: str = "''") -> str:
    """SQL that writes an entry for each order in `source`, which has the columns of a changed order.

    The others are SQL expressions.
    """
    return f"""
        INSERT INTO order_log (order_id, version, state, reason, refunded_minor, actor, cause, note, request_id)
        SELECT id, version, state, state_reason, refunded_minor, {actor}, {cause}, {note}, {call_id} FROM {source}
    """  # noqa: S608


INSERT_BY_ACTOR = {"actor": ":actor", "cause": ":cause", "note": ":note", "call_id": ":call"}
"""Arguments of `insert_from` for one actor; `arguments` gives the values."""

_APPEND = text(insert_from("orders WHERE id = :id", **INSERT_BY_ACTOR))


def arguments(by: Actor, cause: str) -> dict[str, object]:
    """The values that `INSERT_BY_ACTOR` names."""
    return {"actor": by.name, "cause": cause, "note": by.note, "call": by.call_id}


async def append(tx: AsyncSession, order_id: object, by: Actor, *, cause: str) -> None:
    """Writes that an actor tried something on an order, which stays as it is."""
    await tx.execute(_APPEND, {"id": order_id, **arguments(by, cause)})


async def entries(db: Database, order: Order, *, after: int, most: int) -> list[LogEntry]:
    """The entries of an order after the one with the id `after`, oldest first."""
    async with db() as tx:
        return [
            LogEntry(
                id=row.id, version=row.version, state=State(row.state), state_reason=row.reason, actor=row.actor,
                cause=row.cause, note=row.note, call_id=row.request_id, create_time=row.create_time,
                refunded=Money(order.total.currency, row.refunded_minor),
            )
            for row in await tx.execute(_ENTRIES, {"order": order.id, "after": after, "most": most})
        ]  # fmt: skip
