"""Holding units for orders: the hot path. A whole batch is one transaction, of a dozen statements at most."""

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeGuard

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.errors import AppError, RequestIdReused
from services.chassis.money import Money
from services.inventory import domain, everyday, tickets
from services.inventory.domain import Grant, Hold, Line, Pool, Reservation, State
from services.inventory.gate.gate import Gate
from services.inventory.reservations import Outcome, from_row, lines_to_json

# The check is the write: one statement grants what is there and no more, so no two batches can see the same unit.
_TAKE_SALES = text("""
    WITH wanted AS (
        SELECT * FROM unnest(CAST(:pools AS uuid[]), CAST(:products AS uuid[]), CAST(:units AS integer[]))
            AS w (id, product_id, units)
    ), locked AS (
        SELECT s.id FROM flash_sales s JOIN wanted w ON s.id = w.id AND s.product_id = w.product_id
        ORDER BY s.product_id, s.id FOR UPDATE OF s
    )
    UPDATE flash_sales s
    SET held = s.held + least(w.units, s.allocation - s.held - s.sold - s.returned), update_time = clock_timestamp()
    FROM wanted w JOIN locked USING (id)
    WHERE s.id = w.id AND s.product_id = w.product_id AND s.closed_as IS NULL
        AND s.start_time <= clock_timestamp() AND s.end_time > clock_timestamp()
        AND s.allocation - s.held - s.sold - s.returned > 0
    RETURNING s.id, s.product_id, new.held - old.held AS units, s.price_minor, s.currency, s.hold_seconds,
        s.per_customer_limit
""")
_TAKE_STOCK = text("""
    WITH wanted AS (
        SELECT * FROM unnest(CAST(:pools AS uuid[]), CAST(:units AS integer[])) AS w (product_id, units)
    ), locked AS (
        SELECT s.product_id FROM stock s JOIN wanted USING (product_id) ORDER BY s.product_id FOR UPDATE OF s
    )
    UPDATE stock s SET held = s.held + least(w.units, s.on_hand - s.held), update_time = clock_timestamp()
    FROM wanted w JOIN locked USING (product_id)
    WHERE s.product_id = w.product_id AND s.on_hand > s.held
    RETURNING s.product_id AS id, new.held - old.held AS units
""")
_COUNT = text("""
    INSERT INTO sale_customers AS c (sale_id, customer_id, units)
    SELECT w.sale_id, w.customer_id, w.units
    FROM unnest(
        CAST(:sales AS uuid[]), CAST(:customers AS uuid[]), CAST(:units AS integer[]), CAST(:limits AS integer[])
    ) AS w (sale_id, customer_id, units, most)
    WHERE w.units <= w.most
    ORDER BY w.sale_id, w.customer_id
    ON CONFLICT (sale_id, customer_id) DO UPDATE SET units = c.units + excluded.units
    WHERE c.units + excluded.units <= (SELECT per_customer_limit FROM flash_sales WHERE id = c.sale_id)
    RETURNING customer_id
""")
_INSERT = text("""
    INSERT INTO reservations (id, customer_id, state, lines, sale_id, expire_time)
    SELECT w.id, w.customer_id, 'HELD', w.lines, w.sale_id, clock_timestamp() + make_interval(secs => w.seconds)
    FROM jsonb_to_recordset(CAST(:holds AS jsonb))
        AS w (id uuid, customer_id uuid, lines jsonb, sale_id uuid, seconds integer)
    ORDER BY w.id
    ON CONFLICT (id) DO NOTHING
    RETURNING id, expire_time
""")
# One by one, for those that are found: who goes away empty has no ticket that could be looked for.
_LOOK_AGAIN = text("""
    SELECT id, customer_id, state, lines, expire_time,
        (SELECT ticket FROM tickets t WHERE t.reservation_id = r.id) AS ticket
    FROM reservations r WHERE id = ANY(CAST(:ids AS uuid[]))
""")
_KNOWN = text("SELECT id FROM reservations WHERE id = ANY(CAST(:ids AS uuid[]))")
_COUNTED = text("""
    SELECT c.sale_id, c.customer_id, c.units
    FROM sale_customers c JOIN unnest(CAST(:sales AS uuid[]), CAST(:customers AS uuid[])) AS w (sale_id, customer_id)
        USING (sale_id, customer_id)
""")
_WHY_NOT = text("""
    SELECT id, product_id, CASE
        WHEN closed_as IS NOT NULL THEN closed_as
        WHEN end_time <= clock_timestamp() THEN 'ENDED'
        WHEN start_time > clock_timestamp() THEN 'SCHEDULED'
        ELSE 'LIVE' END AS state, allocation - held - sold - returned AS remaining
    FROM flash_sales WHERE id = ANY(CAST(:ids AS uuid[]))
""")


async def admit(db: Database, gate: Gate, holds: Sequence[Hold]) -> list[Outcome]:
    """`reserve` for the holds that pass the gate; the gate refuses the others without touching PostgreSQL."""
    taken, refused = await gate.take(holds)
    admitted = [hold for hold in holds if hold.id not in refused]
    decided: dict[uuid.UUID, Outcome] = {}
    if admitted:
        try:
            decided.update(zip([hold.id for hold in admitted], await reserve(db, admitted), strict=True))
        finally:
            # After an error nobody knows what was committed. A counter that is too high does no harm.
            held = {id_ for id_, o in decided.items() if isinstance(o, Reservation) and not o.repeated}
            sold_out = {uuid.UUID(o.metadata["flashSaleId"]) for o in decided.values() if _is_sold_out(o)}
            await gate.give_back((item for item in taken if item[0].id not in held), sold_out=sold_out)
    outcomes = {**refused, **decided}
    return [outcomes[hold.id] for hold in holds]


def _is_sold_out(outcome: Outcome) -> TypeGuard[domain.SoldOut]:
    return isinstance(outcome, domain.SoldOut) and outcome.metadata["remaining"] == "0"


async def reserve(db: Database, holds: Sequence[Hold]) -> list[Outcome]:
    """Holds units for orders; one outcome per hold, in order. See `ReservationService.BatchReserve`."""
    if (held := await everyday.reserve(db, holds)) is not None:
        return list(held)
    async with db.begin() as tx:
        outcomes = await _reserve(tx, holds)
    return [outcomes[hold.id] for hold in holds]


async def _reserve(tx: AsyncSession, holds: Sequence[Hold]) -> dict[uuid.UUID, Outcome]:
    wanted = domain.demand(holds)
    grants = await _take(tx, wanted)
    # The pools are locked from here on: what is read of their customers stays as it is.
    counted = await _counted(tx, holds, grants)
    enough = all(pool in grants and grants[pool].units == units for pool, units in wanted.items())
    # Where there is enough for all, a repeat takes nothing from anybody: it is found when it cannot be written.
    known = set() if enough else set(await tx.scalars(_KNOWN, {"ids": [hold.id for hold in holds]}))
    dealt = domain.allot(holds, grants, counted=counted, known=known)
    held = await _insert(tx, dealt.held)
    await tickets.keep(tx, (hold for hold in dealt.held if hold.id in held))
    await _count(tx, [hold for hold in dealt.held if hold.id in held], grants)
    outcomes: dict[uuid.UUID, Outcome] = dict(held)
    if len(held) == len(holds):
        return outcomes

    # From here on it is the rare case: somebody goes away empty, or comes for the second time.
    back = Counter(dealt.leftover)
    back.update(domain.demand([hold for hold in dealt.held if hold.id not in held]))
    await _give_back(tx, back)
    refused: dict[uuid.UUID, AppError] = {
        hold.id: domain.CustomerLimit(flashSaleId=line.sale_id, limit=grants[line.pool].per_customer_limit)
        for hold, line in dealt.over
    }
    refused.update(await _why_short(tx, dealt.short))
    outcomes.update(await _repeats(tx, [hold for hold in holds if hold.id not in outcomes], refused))
    return outcomes


async def _take(tx: AsyncSession, wanted: Mapping[Pool, int]) -> dict[Pool, Grant]:
    grants: dict[Pool, Grant] = {}
    sales = [(product_id, sale_id, units) for (product_id, sale_id), units in wanted.items() if sale_id]
    if sales:
        products, ids, units = zip(*sales, strict=True)
        for row in await tx.execute(
            _TAKE_SALES, {"pools": list(ids), "products": list(products), "units": list(units)}
        ):
            price = Money(row.currency, row.price_minor)
            grants[row.product_id, row.id] = Grant(row.units, price, row.hold_seconds, row.per_customer_limit)
    stock = {product_id: units for (product_id, sale_id), units in wanted.items() if not sale_id}
    if stock:
        for row in await tx.execute(_TAKE_STOCK, {"pools": list(stock), "units": list(stock.values())}):
            grants[row.id, None] = Grant(row.units)
    return grants


async def _counted(
    tx: AsyncSession, holds: Sequence[Hold], grants: Mapping[Pool, Grant]
) -> dict[tuple[uuid.UUID, uuid.UUID], int]:
    """How many units the customers of `holds` have of sales with a limit, by sale and customer."""
    pairs = list(_limited(holds, grants))
    if not pairs:
        return {}
    sales, customers = zip(*pairs, strict=True)
    rows = await tx.execute(_COUNTED, {"sales": list(sales), "customers": list(customers)})
    return {(row.sale_id, row.customer_id): row.units for row in rows}


async def _count(tx: AsyncSession, holds: Sequence[Hold], grants: Mapping[Pool, Grant]) -> None:
    """Counts units against the sales' limits. `domain.allot` has seen to it that they are kept; here it is certain."""
    units = _limited(holds, grants)
    if not units:
        return
    sales, customers = zip(*units, strict=True)
    limit = {sale_id: grant.per_customer_limit for (_, sale_id), grant in grants.items()}
    arguments = {
        "sales": list(sales),
        "customers": list(customers),
        "units": list(units.values()),
        "limits": [limit[sale_id] for sale_id in sales],
    }
    counted = (await tx.scalars(_COUNT, arguments)).all()
    assert len(counted) == len(units), "a customer was counted while the sale was locked"


def _limited(holds: Sequence[Hold], grants: Mapping[Pool, Grant]) -> Counter[tuple[uuid.UUID, uuid.UUID]]:
    """The units that `holds` are of sales with a limit, by sale and customer."""
    units: Counter[tuple[uuid.UUID, uuid.UUID]] = Counter()
    for hold in holds:
        for line in hold.lines:
            if line.sale_id and line.pool in grants and grants[line.pool].per_customer_limit:
                units[line.sale_id, hold.customer_id] += line.quantity
    return units


async def _insert(tx: AsyncSession, holds: Sequence[Hold]) -> dict[uuid.UUID, Reservation]:
    if not holds:
        return {}
    documents = [
        {
            "id": h.id,
            "customer_id": h.customer_id,
            "lines": lines_to_json(h.lines),
            "sale_id": next((line.sale_id for line in h.lines if line.sale_id), None),
            "seconds": h.seconds,
        }
        for h in holds
    ]
    inserted = await tx.execute(_INSERT, {"holds": orjson.dumps(documents).decode()})
    expires = {row.id: row.expire_time for row in inserted}
    return {
        hold.id: Reservation(hold.id, hold.customer_id, State.HELD, hold.lines, expires[hold.id])
        for hold in holds
        if hold.id in expires
    }


async def _give_back(tx: AsyncSession, units: Mapping[Pool, int]) -> None:
    """Gives units back that this very transaction took; nobody saw them gone."""
    for table, key, pools in (
        ("flash_sales", "id", {sale_id: n for (_, sale_id), n in units.items() if sale_id}),
        ("stock", "product_id", {product_id: n for (product_id, sale_id), n in units.items() if not sale_id}),
    ):
        if pools:
            await tx.execute(
                text(f"""
                    UPDATE {table} s SET held = s.held - w.units
                    FROM unnest(CAST(:pools AS uuid[]), CAST(:units AS integer[])) AS w (id, units) WHERE s.{key} = w.id
                """),  # noqa: S608  # both names stand three lines above
                {"pools": list(pools), "units": list(pools.values())},
            )


async def _why_short(tx: AsyncSession, short: Sequence[tuple[Hold, Line]]) -> dict[uuid.UUID, AppError]:
    if not short:
        return {}
    sales = {line.sale_id for _, line in short if line.sale_id}
    states = {row.id: row for row in await tx.execute(_WHY_NOT, {"ids": list(sales)})} if sales else {}
    products = [line.product_id for _, line in short if not line.sale_id]
    stocked: set[uuid.UUID] = set()
    if products:
        query = text("SELECT product_id FROM stock WHERE product_id = ANY(CAST(:ids AS uuid[]))")
        stocked = {row.product_id for row in await tx.execute(query, {"ids": products})}
    why: dict[uuid.UUID, AppError] = {}
    for hold, line in short:
        sale = states.get(line.sale_id)
        if line.sale_id is None:
            known = line.product_id in stocked
            kind = domain.OutOfStock if known else domain.StockNotFound
            why[hold.id] = kind(productId=line.product_id)
        elif sale is None or sale.product_id != line.product_id:
            why[hold.id] = domain.FlashSaleNotFound(flashSaleId=line.sale_id)
        elif sale.state != "LIVE":
            why[hold.id] = domain.SaleNotLive(flashSaleId=line.sale_id, state=sale.state)
        else:
            why[hold.id] = domain.SoldOut(flashSaleId=line.sale_id, remaining=sale.remaining)
    return why


async def _repeats(
    tx: AsyncSession, holds: Sequence[Hold], refused: Mapping[uuid.UUID, AppError]
) -> dict[uuid.UUID, Outcome]:
    """Answers holds that got nothing new: with what they hold already, else with why not."""
    rows = await tx.execute(_LOOK_AGAIN, {"ids": [hold.id for hold in holds]})
    known = {row.id: replace(from_row(row), repeated=True, ticket=row.ticket or b"") for row in rows}
    outcomes: dict[uuid.UUID, Outcome] = {}
    for hold in holds:
        reservation = known.get(hold.id)
        if reservation is None:
            outcomes[hold.id] = refused[hold.id]
        elif reservation.is_for(hold):
            outcomes[hold.id] = reservation
        else:
            outcomes[hold.id] = RequestIdReused(requestId=hold.id)
    return outcomes
