"""Lists of orders, and how one came to where it is. Every page costs about the same, however many orders there are.

What narrows a list down most decides which index is walked: the product, the customer, the state, else the time alone.
The rest is looked at order by order, and no more than `_LOOK_MOST` of them for one page.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from services.chassis.data.db import Database
from services.orders import rows
from services.orders.domain import LogEntry, Order, State

_LOOK_MOST = 2_000


@dataclass(frozen=True, slots=True)
class Query:
    """Which orders to list; None for any. Times are when they were placed: from `since` on, and before `until`."""

    customer_id: uuid.UUID | None = None
    state: State | None = None
    product_id: uuid.UUID | None = None
    since: datetime | None = None
    until: datetime | None = None


Position = tuple[datetime, uuid.UUID]
"""Where a page ends: the order's create time and id."""


async def recent_ids(db: Database, most: int) -> list[uuid.UUID]:
    """The ids of the latest orders, newest first."""
    async with db() as tx:
        query = text("SELECT id FROM orders ORDER BY create_time DESC, id DESC LIMIT :most")
        return list(await tx.scalars(query, {"most": most}))


@dataclass(frozen=True, slots=True)
class Walk:
    """The SQL of one page: which index is walked, and what is looked at on the way."""

    candidates: str
    """Ids and create times of orders, along an index in the order of lists."""
    wanted: str
    """A condition on the orders it finds; empty where it finds only what is wanted."""
    arguments: Mapping[str, object]

    @property
    def page(self) -> str:
        """`:most` orders, out of the first `:look` candidates."""
        where = f"WHERE {self.wanted}" if self.wanted else ""
        return f"""
            {rows.ORDER} o JOIN ({self.candidates} LIMIT :look) candidate USING (id, create_time)
            {where} ORDER BY create_time DESC, id DESC LIMIT :most
        """

    @property
    def edge(self) -> str:
        """The last of `:look` candidates, if there are as many."""
        return f"{self.candidates} OFFSET :look - 1 LIMIT 1"


def walk(query: Query, after: Position | None) -> Walk:
    """How to find what `query` asks for."""
    table, id_ = "orders", "id"
    conditions: list[str] = []
    wanted: list[str] = []
    if query.product_id:
        table, id_ = "order_products", "order_id"
        conditions.append("product_id = :product")
    if query.customer_id:
        (wanted if conditions else conditions).append("customer_id = :customer")
    if query.state:
        (wanted if conditions else conditions).append("state = :state")
    if query.since:
        conditions.append("create_time >= :since")
    if after:
        # It lies before `until`. Given both bounds, PostgreSQL may walk all the way from the other one.
        conditions.append(f"(create_time, {id_}) < (:after_time, :after_id)")
    elif query.until:
        conditions.append("create_time < :until")
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    candidates = f"SELECT {id_} AS id, create_time FROM {table} {where} ORDER BY create_time DESC, {id_} DESC"  # noqa: S608
    arguments = {
        "product": query.product_id, "customer": query.customer_id, "state": query.state, "since": query.since,
        "until": query.until, "after_time": after and after[0], "after_id": after and after[1],
    }  # fmt: skip
    return Walk(candidates, " AND ".join(f"o.{condition}" for condition in wanted), arguments)


async def orders_of(
    db: Database, query: Query, *, after: Position | None, most: int
) -> tuple[list[Order], Position | None]:
    """One page of orders, newest first, and where it ends; None where this is the last.

    A page may hold fewer than `most` and not be the last, where few of the orders looked at are wanted.
    """
    way = walk(query, after)
    arguments = {**way.arguments, "look": _LOOK_MOST if way.wanted else most + 1, "most": most + 1}
    async with db() as tx:
        found = [rows.order(row) for row in await tx.execute(text(way.page), arguments)]
        if len(found) > most:
            return found[:most], (found[most - 1].create_time, found[most - 1].id)
        if not way.wanted:
            return found, None
        edge = (await tx.execute(text(way.edge), arguments)).one_or_none()
        return found, (edge.create_time, edge.id) if edge else None


async def log_of(db: Database, order: Order, *, after: int, most: int) -> list[LogEntry]:
    """The entries of an order's log after the one with the id `after`, oldest first."""
    query = text("SELECT * FROM order_log WHERE order_id = :order AND id > :after ORDER BY id LIMIT :most")
    async with db() as tx:
        found = await tx.execute(query, {"order": order.id, "after": after, "most": most})
        return [rows.log_entry(row, order.total.currency) for row in found]
