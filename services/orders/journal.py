"""How far each saga has come, in PostgreSQL, and which process carries it on.

Each function is one transaction, or part of one; those on the hot path take a whole batch. Locks are taken in one
order: a saga's row before its order's, and several by their ids.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database, run_autocommit
from services.chassis.events import outbox
from services.orders import domain, rows, store
from services.orders.domain import Mover, State
from services.orders.saga import Saga, end_cause

LEASE_SECONDS = 10.0
"""For how long a saga is a process's own. Longer than the slowest step, or two work on it for nothing; no longer,
because it is also how long the orders of a process that died stand still."""

_LOCKED = """
    locked AS (SELECT order_id FROM sagas WHERE order_id = ANY(CAST(:ids AS uuid[])) ORDER BY order_id FOR UPDATE)
"""

# The fence decides: a process whose saga was taken over finds no row here, and changes nothing.
_FINISH = text("""
    WITH w AS (
        SELECT * FROM unnest(
            CAST(:ids AS uuid[]), CAST(:fences AS integer[]), CAST(:states AS text[]), CAST(:reasons AS text[]),
            CAST(:payments AS jsonb[]), CAST(:turned AS text[]), CAST(:causes AS text[])
        ) AS w (id, fence, state, reason, payment, turned, cause)
    ), locked AS (
        SELECT order_id FROM sagas JOIN w ON order_id = w.id ORDER BY order_id FOR UPDATE OF sagas
    ), mine AS (
        DELETE FROM sagas s USING w JOIN locked ON locked.order_id = w.id
        WHERE s.order_id = w.id AND s.fence = w.fence
        RETURNING s.order_id, s.refunded_minor AS paid_back, s.request_id, s.note,
            -- Who asked for this end; else it came by itself.
            CASE WHEN s.asked = w.turned AND s.actor <> '' THEN s.actor ELSE 'saga' END AS actor
    ), moved AS (
        UPDATE orders o SET state = w.state, state_reason = w.reason, payment = coalesce(w.payment, o.payment),
            version = o.version + 1, update_time = clock_timestamp()
        FROM w JOIN mine ON mine.order_id = w.id WHERE o.id = w.id AND o.state = 'PENDING'
        RETURNING o.id, o.customer_id, o.state, o.state_reason, o.currency, o.total_minor, o.refunded_minor, o.version,
            o.update_time, w.cause, mine.paid_back, mine.actor, mine.note, mine.request_id
    ), logged AS (
        INSERT INTO order_log (order_id, version, state, reason, actor, cause, note, request_id)
        SELECT id, version, state, state_reason, actor, cause, note, request_id FROM moved
    )
    SELECT * FROM moved
""")
_SAVE = text("""
    WITH w AS (
        SELECT * FROM unnest(
            CAST(:ids AS uuid[]), CAST(:fences AS integer[]), CAST(:phases AS text[]), CAST(:applied AS integer[]),
            CAST(:reasons AS text[]), CAST(:waiting AS boolean[]), CAST(:attempts AS integer[]),
            CAST(:seconds AS double precision[]), CAST(:payments AS jsonb[]), CAST(:asked AS text[]),
            CAST(:extended AS boolean[]), CAST(:holds AS timestamptz[]), CAST(:causes AS text[]),
            CAST(:refunded AS bigint[])
        ) AS w (id, fence, phase, applied, reason, waiting, attempts, seconds, payment, asked, extended, hold, cause,
            refunded)
    ), locked AS (
        SELECT order_id FROM sagas JOIN w ON order_id = w.id ORDER BY order_id FOR UPDATE OF sagas
    ), mine AS (
        UPDATE sagas s SET phase = w.phase, applied = w.applied, reason = w.reason, waiting = w.waiting,
            attempts = w.attempts, extended = w.extended, cause = w.cause,
            refunded_minor = greatest(s.refunded_minor, w.refunded),
            progress_time = CASE WHEN s.phase <> w.phase OR s.applied <> w.applied THEN clock_timestamp()
                ELSE s.progress_time END,
            -- What was asked, or came in, while a process had the saga, it does not know yet.
            next_time = CASE WHEN w.waiting AND (s.woken OR s.asked <> w.asked) THEN clock_timestamp()
                ELSE least(clock_timestamp() + make_interval(secs => w.seconds),
                    CASE WHEN w.waiting AND NOT w.extended THEN s.look_time END) END
        FROM w JOIN locked ON locked.order_id = w.id WHERE s.order_id = w.id AND s.fence = w.fence
        RETURNING s.order_id
    ), shown AS (
        UPDATE orders o SET payment = coalesce(w.payment, o.payment), hold_expire_time = w.hold,
            version = o.version + 1, update_time = clock_timestamp()
        FROM w JOIN mine ON mine.order_id = w.id
        WHERE o.id = w.id
            AND (o.payment IS DISTINCT FROM coalesce(w.payment, o.payment) OR o.hold_expire_time <> w.hold)
        RETURNING o.id, o.customer_id, o.state, o.state_reason, o.currency, o.total_minor, o.refunded_minor, o.version,
            o.update_time
    )
    SELECT mine.order_id, shown.* FROM mine LEFT JOIN shown ON shown.id = mine.order_id
""")
WAITS_FOR_CUSTOMER = "s.waiting AND s.asked = '' AND s.cause = '' AND o.payment->>'state' = 'AWAITING_CUSTOMER'"
"""Of a saga `s` and its order `o`. One that something keeps from asking whether the customer has paid does not."""

_CLAIM = f"""
    WITH {{due}}, mine AS (
        UPDATE sagas s SET fence = s.fence + 1, waiting = false, woken = false,
            next_time = clock_timestamp() + make_interval(secs => :lease),
            -- What the customer took is not held against whoever looks now.
            progress_time = CASE WHEN {WAITS_FOR_CUSTOMER} THEN clock_timestamp() ELSE s.progress_time END,
            -- The timer of the hold: inventory's event may be late, or lost on its way.
            asked = CASE WHEN s.asked = '' AND s.kind = 'PURCHASE'
                AND o.hold_expire_time + interval '2 seconds' < clock_timestamp() THEN 'HOLD_EXPIRED' ELSE s.asked END,
            -- Money that does not move yet may do so on the next look, after three quarters of the time that is left.
            look_time = CASE WHEN s.look_time IS NULL OR s.look_time > clock_timestamp() THEN s.look_time
                WHEN o.hold_expire_time > clock_timestamp() + interval '2 seconds'
                THEN o.hold_expire_time - (o.hold_expire_time - clock_timestamp()) / 4 END
        FROM due JOIN orders o ON o.id = due.order_id WHERE s.order_id = due.order_id
        RETURNING s.*, o.customer_id, o.currency, o.total_minor, o.hold_expire_time, o.payment,
            ARRAY(SELECT coalesce(line->>'sale_id', line->>'product_id')::uuid FROM jsonb_array_elements(o.lines) line)
                AS pools,
            old.look_time IS DISTINCT FROM new.look_time AS hold_ends, old.woken AS was_woken
    )
    SELECT * FROM mine
"""  # noqa: S608
# now() instead of clock_timestamp(), which no index can find.
_CLAIM_DUE = text(
    _CLAIM.format(
        due="""
    quick AS (
        SELECT order_id FROM sagas WHERE NOT slow AND next_time <= now() ORDER BY next_time LIMIT :most
        FOR UPDATE SKIP LOCKED
    ), slow AS (
        SELECT order_id FROM sagas WHERE slow AND next_time <= now() ORDER BY next_time
        LIMIT least(:slow, :most - (SELECT count(*) FROM quick)) FOR UPDATE SKIP LOCKED
    ), due AS (
        SELECT order_id FROM quick UNION ALL SELECT order_id FROM slow
    )"""
    )
)
_CLAIM_ONE = text(_CLAIM.format(due="due AS (SELECT order_id FROM sagas WHERE order_id = :order FOR UPDATE)"))


@dataclass(frozen=True, slots=True)
class Ending:
    """A saga that has finished, and what becomes of its order."""

    saga: Saga
    state: State
    reason: str


async def finish(db: Database, endings: Sequence[Ending]) -> list[bool]:
    """Moves orders to the states their sagas ended in. False for each saga that somebody else had taken over."""
    for ending in endings:
        domain.move(State.PENDING, ending.state)
    arguments = {
        "ids": [e.saga.order_id for e in endings],
        "fences": [e.saga.fence for e in endings],
        "states": [e.state for e in endings],
        "reasons": [e.reason for e in endings],
        "payments": [rows.payment_to_json(e.saga.payment) for e in endings],
        "turned": [e.saga.progress.reason for e in endings],
        "causes": [end_cause(e.saga.progress) for e in endings],
    }
    async with db.begin() as tx:
        moved = (await tx.execute(_FINISH, arguments)).all()
        await outbox.publish(tx, [rows.moved(row) for row in moved])
        # Staff may be faster than the saga: what they paid back meanwhile counts from here on.
        if paid_back := {row.id: row.paid_back for row in moved if row.paid_back}:
            await store.paid_back(tx, paid_back)
    ids = {row.id for row in moved}
    return [e.saga.order_id in ids for e in endings]


@dataclass(frozen=True, slots=True)
class Pause:
    """A saga that goes on later."""

    saga: Saga
    waiting: bool
    """Whether an event about its payment shall wake it before its time."""
    seconds: float


async def save(db: Database, pauses: Sequence[Pause]) -> list[bool]:
    """Stores how far sagas have come and when they go on. False for each that somebody else had taken over."""
    arguments = {
        "ids": [p.saga.order_id for p in pauses],
        "fences": [p.saga.fence for p in pauses],
        "phases": [p.saga.progress.phase for p in pauses],
        "applied": [p.saga.progress.applied for p in pauses],
        "reasons": [p.saga.progress.reason for p in pauses],
        "waiting": [p.waiting for p in pauses],
        "attempts": [p.saga.attempts for p in pauses],
        "seconds": [p.seconds for p in pauses],
        "asked": [p.saga.progress.asked for p in pauses],
        "extended": [p.saga.progress.extended for p in pauses],
        "holds": [p.saga.hold_expire_time for p in pauses],
        "payments": [rows.payment_to_json(p.saga.payment) for p in pauses],
        "causes": [p.saga.cause for p in pauses],
        "refunded": [p.saga.refunded_minor for p in pauses],
    }
    async with db.begin() as tx:
        saved = (await tx.execute(_SAVE, arguments)).all()
        await outbox.publish(tx, [rows.updated(row) for row in saved if row.id])
    mine = {row.order_id for row in saved}
    return [p.saga.order_id in mine for p in pauses]


async def claim_due(db: Database, most: int, *, slow: int) -> list[Saga]:
    """Takes over up to `most` sagas whose time has come: woken, paused, or left by a process that died.

    At most `slow` of them are some whose next step is up to the provider, and these come last.
    """
    arguments = {"most": most, "slow": slow, "lease": LEASE_SECONDS}
    return [rows.saga(row) for row in await run_autocommit(db, _CLAIM_DUE, arguments)]


async def due(db: Database) -> int:
    """How many sagas wait for somebody to have time; counted up to 20,000."""
    query = text("SELECT count(*) FROM (SELECT FROM sagas WHERE next_time <= now() LIMIT 20000) AS due")
    return int((await run_autocommit(db, query, {}))[0][0])


async def claim_one(tx: AsyncSession, order_id: uuid.UUID) -> Saga | None:
    """Takes over one order's saga, whoever had it; None where nothing is under way for the order.

    To be called where the wish is written that the saga is to carry out: whoever claims it in between would be the one
    to carry it out, and the caller would know nothing of it.
    """
    row = (await tx.execute(_CLAIM_ONE, {"order": order_id, "lease": LEASE_SECONDS})).one_or_none()
    return rows.saga(row) if row else None


async def ask(tx: AsyncSession, order_ids: Sequence[uuid.UUID], why: str, by: Mover | None = None) -> None:
    """Asks sagas that have orders paid to turn back, unless that was asked before; they are looked after at once.

    What an operator asks for, `COMPENSATED`, goes before what was asked for earlier.
    """
    by = by or Mover("inventory")
    await tx.execute(
        text(f"""
            WITH {_LOCKED}
            UPDATE sagas s SET asked = :why, actor = :actor, note = :note, progress_time = clock_timestamp(),
                request_id = CASE WHEN :request = '' THEN request_id ELSE :request END,
                next_time = CASE WHEN waiting THEN clock_timestamp() ELSE next_time END
            FROM locked WHERE s.order_id = locked.order_id AND kind = 'PURCHASE' AND asked <> 'COMPENSATED'
                AND (asked = '' OR :why = 'COMPENSATED')
        """),  # noqa: S608
        {"why": why, "ids": list(order_ids), "actor": by.actor, "note": by.note, "request": by.request_id},
    )


async def wake(tx: AsyncSession, order_ids: Sequence[uuid.UUID]) -> None:
    """Has sagas that wait for their payment look again now; those under way, when they would lie down to wait."""
    await tx.execute(
        text(f"""
            WITH {_LOCKED}
            UPDATE sagas s SET woken = true, progress_time = clock_timestamp(),
                next_time = CASE WHEN waiting THEN clock_timestamp() ELSE next_time END
            FROM locked WHERE s.order_id = locked.order_id
        """),  # noqa: S608
        {"ids": list(order_ids)},
    )
