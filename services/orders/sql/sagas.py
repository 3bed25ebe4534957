"""The table `sagas`: the progress of each saga, and which process holds its lease.

Locks are taken in one order: a saga's row before its order's, and several by their ids.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database, run_autocommit
from services.chassis.money import Money
from services.orders.domain import Actor, Refund, State
from services.orders.saga.attempts import PaymentTerms
from services.orders.saga.plan import Kind, Phase, Progress, Saga, SagaView
from services.orders.saga.slots import OPENING_EACH_MOST, Free
from services.orders.sql import orders
from services.orders.sql.schema import SagaRow, columns

STUCK_SECONDS = 60
LEASE_SECONDS = 10.0
"""For how long one process holds a saga. Longer than the slowest step, else two processes take that step; no longer,
because the sagas of a process that died stand still for as long."""

WAITS_FOR_CUSTOMER = """
    s.paused AND s.cancel_reason = '' AND s.cause = ''
    AND (o.payment->>'state' = 'AWAITING_CUSTOMER' OR NOT (o.secret_wanted OR s.payment_method <> ''))
"""
"""Of a saga `s` and its order `o`. With a `cause`, something keeps it from asking whether the customer has paid."""

MOVING_DAYS = 21
"""A provider may move money for so long. The slowest debit, SEPA's, is confirmed or refused within 14 business days."""
WAITS_FOR_PROVIDER = f"""
    s.waits_for_provider AND s.create_time > clock_timestamp() - interval '{MOVING_DAYS} days'
    AND s.next_time > clock_timestamp() - interval '{STUCK_SECONDS} seconds'
"""
"""Of a saga `s`: the provider has answered that it is moving the money, and a process goes on asking."""

# A hold is checked early enough for a slow charge, a process that dies, and its lease.
FIRST_CHECK = "hold_expire_time - least(interval '30 seconds', (hold_expire_time - clock_timestamp()) / 2)"


def insert_from(source: str, **values: str) -> str:
    """SQL that writes a saga for each row of `source`: SQL expressions by column; other columns have their defaults."""
    return f"INSERT INTO sagas ({', '.join(values)}) SELECT {', '.join(values.values())} FROM {source}"  # noqa: S608


def lock(condition: str) -> str:
    """SQL that locks the rows that match `condition`, by their ids."""
    return f"SELECT order_id FROM sagas WHERE {condition} ORDER BY order_id FOR UPDATE"  # noqa: S608


# The fencing token decides: a process whose saga was taken over finds no row here, and changes nothing.
DELETE_OWN = """
    DELETE FROM sagas s USING w JOIN locked ON locked.order_id = w.id
    WHERE s.order_id = w.id AND s.fencing_token = w.fencing_token
    RETURNING w.*, s.refunded_minor, s.request_id, s.note,
        -- The actor that requested this end; else the saga came to it by itself.
        CASE WHEN s.kind = 'REFUND' OR (s.cancel_reason = w.turned_for AND s.actor <> '') THEN s.actor ELSE 'saga' END
            AS actor
"""
"""Ends those sagas of `w (id, fencing_token, turned_for)`, locked as `locked`, whose lease was not taken over.

Like `SAVE_OWN`, it returns the rows of `w` that it matched: a batch may hold a saga twice, with an older token too."""
SAVE_OWN = """
    UPDATE sagas s SET phase = w.phase, steps_done = w.steps_done, reason = w.reason, paused = w.paused,
        attempts = w.attempts, cause = w.cause, waits_for_provider = w.waits_for_provider,
        refunded_minor = greatest(s.refunded_minor, w.refunded),
        progress_time = CASE WHEN s.phase <> w.phase OR s.steps_done <> w.steps_done THEN clock_timestamp()
            ELSE s.progress_time END,
        hold_check_time = CASE WHEN NOT w.extended THEN s.hold_check_time END,
        -- The process does not have what came in while it held the lease.
        next_time = CASE WHEN w.paused AND (s.payment_changed OR s.cancel_reason <> w.cancel_reason)
            THEN clock_timestamp()
            ELSE least(clock_timestamp() + make_interval(secs => w.seconds),
                CASE WHEN w.paused AND NOT w.extended THEN s.hold_check_time END) END
    FROM w JOIN locked ON locked.order_id = w.id WHERE s.order_id = w.id AND s.fencing_token = w.fencing_token
    RETURNING w.*
"""
"""Saves those sagas of `w`, locked as `locked`, whose lease was not taken over."""

QUEUE_WANTED = """
    UPDATE sagas s SET fencing_token = fencing_token + 1, next_time = clock_timestamp(),
        progress_time = clock_timestamp()
    FROM wanted WHERE s.order_id = wanted.id
"""
"""Has any process claim the sagas of the orders in `wanted (id)`. One that has a lease knows less, and cannot save."""

_CLAIM = f"""
    WITH {{due}}, claimed AS (
        UPDATE sagas s SET fencing_token = s.fencing_token + 1, holder = :holder, paused = false,
            payment_changed = false,
            next_time = clock_timestamp() + make_interval(secs => :lease),
            -- Time spent waiting for the customer does not count as stuck.
            progress_time = CASE WHEN {WAITS_FOR_CUSTOMER} THEN clock_timestamp() ELSE s.progress_time END,
            -- Only the order's own timer decides that its hold has ended: an event may be late, lost or forged.
            cancel_reason = CASE WHEN s.cancel_reason = '' AND s.kind = 'PURCHASE'
                AND o.hold_expire_time <= clock_timestamp()
                THEN 'HOLD_EXPIRED' ELSE s.cancel_reason END,
            -- The customer may begin to pay after this check: the next one is after three quarters of the time left.
            hold_check_time = CASE
                WHEN s.hold_check_time IS NULL OR s.hold_check_time > clock_timestamp() THEN s.hold_check_time
                WHEN o.hold_expire_time > clock_timestamp() + interval '2 seconds'
                THEN o.hold_expire_time - (o.hold_expire_time - clock_timestamp()) / 4 END
        FROM due JOIN orders o ON o.id = due.order_id WHERE s.order_id = due.order_id
        RETURNING {columns(SagaRow, "s")}, o.customer_id, o.currency, o.total_minor, o.hold_expire_time, o.payment,
            o.payment_page, o.secret_wanted, o.payment_attempts, o.reopened,
            ARRAY(SELECT coalesce(line->>'sale_id', line->>'product_id')::uuid FROM jsonb_array_elements(o.lines) line)
                AS pools,
            ARRAY(SELECT (line->>'product_id')::uuid FROM jsonb_array_elements(o.lines) line) AS products,
            old.hold_check_time IS DISTINCT FROM new.hold_check_time AS hold_check_due,
            old.payment_changed AS payment_had_changed
    )
    SELECT * FROM claimed
"""  # noqa: S608
# As `Saga.opens_payment`, of a provider-bound saga.
_OPENS_PAYMENT = "(s.kind = 'PURCHASE' AND s.payment_method = '')"
# now() instead of clock_timestamp(), which no index can find.
_CLAIM_DUE = text(
    _CLAIM.format(
        due=f"""
    others AS (
        SELECT order_id FROM sagas WHERE NOT provider_bound AND next_time <= now() ORDER BY next_time LIMIT :most
        FOR UPDATE SKIP LOCKED
    ), charging AS (
        SELECT order_id FROM sagas s WHERE provider_bound AND NOT {_OPENS_PAYMENT} AND next_time <= now()
        ORDER BY next_time
        LIMIT least(:provider_bound, :most - (SELECT count(*) FROM others)) FOR UPDATE SKIP LOCKED
    ), ranked AS (
        -- The first payments of each customer come before the further ones of one who opens many.
        SELECT s.order_id, s.next_time, row_number() OVER (PARTITION BY o.customer_id ORDER BY s.next_time) AS rank
        FROM sagas s JOIN orders o ON o.id = s.order_id
        WHERE s.provider_bound AND s.next_time <= now() AND {_OPENS_PAYMENT}
            AND o.customer_id <> ALL(CAST(:crowded AS uuid[]))
    ), opening AS (
        SELECT order_id FROM sagas WHERE provider_bound AND next_time <= now()
            AND order_id IN (SELECT order_id FROM ranked WHERE rank <= :each ORDER BY next_time LIMIT :opening)
        LIMIT least(:opening, :provider_bound - (SELECT count(*) FROM charging),
            :most - (SELECT count(*) FROM others) - (SELECT count(*) FROM charging))
        FOR UPDATE SKIP LOCKED
    ), due AS (
        SELECT order_id FROM others UNION ALL SELECT order_id FROM charging UNION ALL SELECT order_id FROM opening
    )"""  # noqa: S608
    )
)
_CLAIM_ONE = text(_CLAIM.format(due=f"due AS ({lock('order_id = :order')})"))
_MAKE_LEASED_DUE = text(f"""
    WITH locked AS ({lock("holder = :holder AND NOT paused AND next_time > clock_timestamp()")})
    UPDATE sagas s SET next_time = clock_timestamp() FROM locked WHERE s.order_id = locked.order_id
    RETURNING s.order_id
""")  # noqa: S608
_STILL_WANTED = text("""
    SELECT s.order_id, s.fencing_token
    FROM sagas s JOIN unnest(CAST(:ids AS uuid[]), CAST(:tokens AS integer[])) AS w (id, token)
        ON s.order_id = w.id AND s.fencing_token = w.token
    WHERE s.cancel_reason = ''
""")
_COUNT_DUE = text("SELECT count(*) FROM (SELECT FROM sagas WHERE next_time <= now() LIMIT :most) AS due")
_LOCKED = f"WITH locked AS ({lock('order_id = ANY(CAST(:ids AS uuid[]))')})"
_REQUEST_CANCEL = text(f"""
    {_LOCKED}
    UPDATE sagas s SET cancel_reason = :reason, actor = :actor, note = :note, progress_time = clock_timestamp(),
        request_id = CASE WHEN :call = '' THEN request_id ELSE :call END,
        next_time = CASE WHEN paused THEN clock_timestamp() ELSE next_time END
    FROM locked WHERE s.order_id = locked.order_id AND kind = 'PURCHASE'
        -- A cancellation is a promise, which the end of the hold must not weaken.
        AND CASE cancel_reason WHEN '' THEN true WHEN 'HOLD_EXPIRED' THEN :reason <> 'HOLD_EXPIRED'
            WHEN 'CANCELLED' THEN :reason = 'COMPENSATED' ELSE false END
    RETURNING s.order_id
""")  # noqa: S608
_NOTE_PAYMENTS = text(f"""
    {_LOCKED}
    UPDATE sagas s SET payment_changed = true, progress_time = clock_timestamp(),
        next_time = CASE WHEN paused THEN clock_timestamp() ELSE next_time END
    FROM locked WHERE s.order_id = locked.order_id
""")  # noqa: S608
_WAKE = text(f"""
    {_LOCKED}
    UPDATE sagas s SET next_time = clock_timestamp() FROM locked WHERE s.order_id = locked.order_id AND s.paused
""")  # noqa: S608
_LOCK_PURCHASE = text(f"""
    SELECT {columns(SagaRow)} FROM sagas WHERE order_id = :id AND kind = 'PURCHASE' FOR UPDATE
""")  # noqa: S608
_MAKE_DUE = text("""
    UPDATE sagas SET attempts = 0, next_time = clock_timestamp(),
        fencing_token = fencing_token + CASE WHEN :revoke THEN 1 ELSE 0 END
    WHERE order_id = :id RETURNING order_id
""")


# --- what workers do ---


async def claim_due(db: Database, free: Free, *, crowded: Sequence[uuid.UUID] = (), holder: str = "") -> list[Saga]:
    """Claims sagas that are due into `free` slots, for `holder`: paused until now, or left by a process that died.

    Provider-bound ones come last, and of these, those that open a payment: a few of each customer, none of `crowded`.
    """
    arguments = {
        "most": free.all, "provider_bound": free.provider_bound, "opening": free.opening, "crowded": list(crowded),
        "each": OPENING_EACH_MOST, "lease": LEASE_SECONDS, "holder": holder,
    }  # fmt: skip
    return [_saga(row) for row in await run_autocommit(db, _CLAIM_DUE, arguments)]


async def count_due(db: Database, most: int) -> int:
    """How many sagas are due; counted up to `most`."""
    return int((await run_autocommit(db, _COUNT_DUE, {"most": most}))[0][0])


async def still_wanted(db: Database, held: Sequence[tuple[uuid.UUID, int]]) -> set[tuple[uuid.UUID, int]]:
    """Of sagas by order id and fencing token: those that are neither taken over nor to turn back."""
    ids, tokens = zip(*held, strict=True)
    rows = await run_autocommit(db, _STILL_WANTED, {"ids": list(ids), "tokens": list(tokens)})
    return {(row.order_id, row.fencing_token) for row in rows}


async def make_leased_due(db: Database, holder: str) -> int:
    """Has any process claim the sagas whose leases `holder` has; returns how many."""
    return len(await run_autocommit(db, _MAKE_LEASED_DUE, {"holder": holder}))


async def claim_one(tx: AsyncSession, order_id: uuid.UUID, *, holder: str = "") -> Saga | None:
    """Claims one order's saga, also from a process that has its lease; None if no saga is running for the order.

    Call it in the transaction that writes what the saga shall do. Otherwise another process may claim it in between,
    carry that out, and leave the caller without an outcome.
    """
    arguments = {"order": order_id, "lease": LEASE_SECONDS, "holder": holder}
    row = (await tx.execute(_CLAIM_ONE, arguments)).one_or_none()
    return _saga(row) if row else None


# --- what others have a saga do ---


async def request_cancel(tx: AsyncSession, order_ids: Sequence[uuid.UUID], reason: str, by: Actor) -> list[uuid.UUID]:
    """Has purchases turn back for `reason`; paused ones are due at once. Returns those for which the reason is new.

    A stronger reason replaces a weaker one: `COMPENSATED`, then `CANCELLED`, then `HOLD_EXPIRED`.
    """
    arguments = {"reason": reason, "ids": list(order_ids), "actor": by.name, "note": by.note, "call": by.call_id}
    return list(await tx.scalars(_REQUEST_CANCEL, arguments))


class Purchase(NamedTuple):
    """A running purchase whose row nobody else changes before the transaction ends."""

    progress: Progress
    payment_method: str
    terms: PaymentTerms


async def lock_purchase(tx: AsyncSession, order_id: uuid.UUID) -> Purchase | None:
    """Locks the purchase of an order; None if none is running."""
    row = (await tx.execute(_LOCK_PURCHASE, {"id": order_id})).one_or_none()
    return Purchase(_progress(row), row.payment_method, PaymentTerms(**(row.terms or {}))) if row else None


async def wake(tx: AsyncSession, order_ids: Sequence[uuid.UUID]) -> None:
    """Has any process claim paused sagas now."""
    await tx.execute(_WAKE, {"ids": list(order_ids)})


async def note_payments(tx: AsyncSession, order_ids: Sequence[uuid.UUID]) -> None:
    """Notes that the payments of these orders changed. Paused sagas are due at once, others once they would pause."""
    await tx.execute(_NOTE_PAYMENTS, {"ids": list(order_ids)})


async def make_due(tx: AsyncSession, order_id: uuid.UUID, *, revoke: bool = False) -> bool:
    """Has any process claim a saga now. With `revoke`, a process that has its lease cannot save any more.

    Returns whether it is running.
    """
    return bool((await tx.execute(_MAKE_DUE, {"id": order_id, "revoke": revoke})).all())


# --- what people see ---

_STUCK = f"""
    NOT coalesce({WAITS_FOR_CUSTOMER}, false) AND NOT ({WAITS_FOR_PROVIDER})
    AND s.progress_time < clock_timestamp() - interval '{STUCK_SECONDS} seconds'
"""
_VIEW = f"""
    SELECT {columns(SagaRow, "s")}, o.customer_id, o.state AS order_state,
        coalesce({WAITS_FOR_CUSTOMER}, false) AS waits_for_customer,
        {WAITS_FOR_PROVIDER} AS waits_for_provider, {_STUCK} AS stuck
    FROM sagas s JOIN orders o ON o.id = s.order_id
"""  # noqa: S608
_LIST = text(f"""
    {_VIEW} WHERE (NOT :only_stuck OR {_STUCK})
        AND (CAST(:id AS uuid) IS NULL OR (s.progress_time, s.order_id) > (CAST(:time AS timestamptz), :id))
    ORDER BY s.progress_time, s.order_id LIMIT :most
""")
_ONE = text(f"{_VIEW} WHERE s.order_id = :id")
_COUNT = text(f"""
    SELECT count(*) AS running, count(*) FILTER (WHERE {_STUCK}) AS stuck,
        count(*) FILTER (WHERE {WAITS_FOR_PROVIDER}) AS moving,
        coalesce(clock_timestamp() - min(s.progress_time)
            FILTER (WHERE NOT coalesce({WAITS_FOR_CUSTOMER}, false) AND NOT ({WAITS_FOR_PROVIDER})),
            interval '0') AS oldest
    FROM sagas s JOIN orders o ON o.id = s.order_id
""")  # noqa: S608


async def list_views(
    db: Database, *, only_stuck: bool, after: tuple[datetime, uuid.UUID] | None, most: int
) -> list[SagaView]:
    """Running sagas, the longest without progress first; `after` is the (progress time, order id) of one."""
    time, id_ = after or (None, None)
    arguments = {"only_stuck": only_stuck, "time": time, "id": id_, "most": most}
    async with db() as tx:
        return [_view(row) for row in await tx.execute(_LIST, arguments)]


async def view(tx: AsyncSession, order_id: uuid.UUID) -> SagaView | None:
    """The saga of one order, if one is running."""
    row = (await tx.execute(_ONE, {"id": order_id})).one_or_none()
    return _view(row) if row else None


class Counts(NamedTuple):
    """The running sagas of all processes."""

    running: int
    stuck: int
    moving: int
    """Those that wait while the provider moves money."""
    oldest_seconds: float
    """The longest time without progress of one that waits neither for its customer nor for the provider."""


async def count(db: Database) -> Counts:
    """Counts the running sagas."""
    async with db() as tx:
        row = (await tx.execute(_COUNT)).one()
    return Counts(row.running, row.stuck, row.moving, row.oldest.total_seconds())


# --- rows and values ---


def _saga(row: Any) -> Saga:
    return Saga(
        order_id=row.order_id,
        customer_id=row.customer_id,
        total=Money(row.currency, row.total_minor),
        payment_method=row.payment_method,
        hold_expire_time=row.hold_expire_time,
        progress=_progress(row),
        fencing_token=row.fencing_token,
        pools=tuple(row.pools),
        secret_wanted=row.secret_wanted,
        products=tuple(row.products),
        payment_attempt=row.payment_attempts,
        terms=PaymentTerms(**row.terms) if row.terms else None,
        reholds=row.reopened,
        attempts=row.attempts,
        payment=orders.payment_from_json(row.payment, row.payment_page),
        hold_check_due=row.hold_check_due,
        payment_changed=row.payment_had_changed,
        refund=_refund(row.refund) if row.refund else None,
        refunded_minor=row.refunded_minor,
        cause=row.cause,
    )


def _progress(row: Any) -> Progress:
    return Progress(Phase(row.phase), row.steps_done, row.reason, row.cancel_reason, Kind(row.kind))


def _view(row: Any) -> SagaView:
    return SagaView(
        order_id=row.order_id, customer_id=row.customer_id, order_state=State(row.order_state),
        progress=_progress(row), waits_for_customer=row.waits_for_customer,
        waits_for_provider=row.waits_for_provider, stuck=row.stuck, cause=row.cause, attempts=row.attempts,
        create_time=row.create_time, progress_time=row.progress_time, next_time=row.next_time,
    )  # fmt: skip


def _refund(column: dict[str, Any]) -> Refund:
    return Refund(
        uuid.UUID(column["id"]),
        Money(**column["amount"]) if column["amount"] else None,
        State(column["wanted"]),
        column["restock"],
        tuple((uuid.UUID(product_id), quantity) for product_id, quantity in column["lines"]),
    )
