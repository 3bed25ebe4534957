"""Lists of orders. Every page costs about the same, however many orders there are.

The filter that selects the fewest orders decides which index is walked: product, customer, state, else the time alone.
The other filters are checked order by order, on at most `_CANDIDATES_MOST` orders a page.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from services.chassis.data.db import Database
from services.orders.domain import Order, OrderFilter
from services.orders.sql import orders

_CANDIDATES_MOST = 2_000

Position = tuple[datetime, uuid.UUID]
"""The end of a page: the order's create time and id."""


async def recent_ids(db: Database, most: int) -> list[uuid.UUID]:
    """The ids of the latest orders, newest first."""
    async with db() as tx:
        query = text("SELECT id FROM orders ORDER BY create_time DESC, id DESC LIMIT :most")
        return list(await tx.scalars(query, {"most": most}))


@dataclass(frozen=True, slots=True)
class Walk:
    """The SQL of one page: the index that is walked, and the condition that is checked on the way."""

    candidates: str
    """Selects ids and create times of orders, along an index in the order of lists."""
    condition: str
    """A condition on the candidates; empty if all of them match."""
    arguments: Mapping[str, object]

    @property
    def page(self) -> str:
        """`:most` orders, out of the first `:candidates` candidates."""
        where = f"WHERE {self.condition}" if self.condition else ""
        return f"""
            {orders.SELECT} o JOIN ({self.candidates} LIMIT :candidates) candidate USING (id, create_time)
            {where} ORDER BY create_time DESC, id DESC LIMIT :most
        """

    @property
    def edge(self) -> str:
        """The last of `:candidates` candidates, if there are as many."""
        return f"{self.candidates} OFFSET :candidates - 1 LIMIT 1"


def walk(query: OrderFilter, after: Position | None) -> Walk:
    """The walk that finds the orders of `query`."""
    table, id_ = "orders", "id"
    conditions: list[str] = []
    checked: list[str] = []
    if query.product_id:
        table, id_ = "order_products", "order_id"
        conditions.append("product_id = :product")
    if query.customer_id:
        (checked if conditions else conditions).append("customer_id = :customer")
    if query.state:
        (checked if conditions else conditions).append("state = :state")
    if query.since:
        conditions.append("create_time >= :since")
    if after:
        # It lies before `until`. With both bounds, PostgreSQL may walk all the way from the other one.
        conditions.append(f"(create_time, {id_}) < (:after_time, :after_id)")
    elif query.until:
        conditions.append("create_time < :until")
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    candidates = f"SELECT {id_} AS id, create_time FROM {table} {where} ORDER BY create_time DESC, {id_} DESC"  # noqa: S608
    arguments = {
        "product": query.product_id, "customer": query.customer_id, "state": query.state, "since": query.since,
        "until": query.until, "after_time": after and after[0], "after_id": after and after[1],
    }  # fmt: skip
    return Walk(candidates, " AND ".join(f"o.{condition}" for condition in checked), arguments)


async def page(
    db: Database, query: OrderFilter, *, after: Position | None, most: int
) -> tuple[list[Order], Position | None]:
    """One page of orders, newest first, and its end; None on the last page.

    A page may hold fewer than `most` orders and not be the last, if few of the candidates match.
    """
    way = walk(query, after)
    arguments = {**way.arguments, "candidates": _CANDIDATES_MOST if way.condition else most + 1, "most": most + 1}
    async with db() as tx:
        found = [orders.from_row(row) for row in await tx.execute(text(way.page), arguments)]
        if len(found) > most:
            return found[:most], (found[most - 1].create_time, found[most - 1].id)
        if not way.condition:
            return found, None
        edge = (await tx.execute(text(way.edge), arguments)).one_or_none()
        return found, (edge.create_time, edge.id) if edge else None
