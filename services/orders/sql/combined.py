"""Statements that write several tables in one round trip, composed of the fragments of each table's module.

Those on the hot path take a whole batch and return one outcome for each item, in order.
"""

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis import ids
from services.chassis.data.db import Database, run_autocommit
from services.chassis.events import outbox
from services.orders import domain, events
from services.orders.domain import Actor, Order, Refund, State
from services.orders.events import changed_event
from services.orders.saga import plan
from services.orders.saga.attempts import PaymentTerms
from services.orders.saga.plan import Phase, Saga
from services.orders.sql import order_log, orders, sagas

_NEW = "w JOIN placed USING (id)"
_BEGIN_PURCHASE = sagas.insert_from(
    _NEW,
    order_id="id",
    phase="'FORWARD'",
    steps_done="1",
    payment_method="payment_method",
    request_id="call_id",
    next_time="clock_timestamp() + make_interval(secs => lease)",
    holder=":holder",
    hold_check_time=sagas.FIRST_CHECK,
)
# One document instead of a dozen arrays: it is made in C, while psycopg makes arrays in Python.
_PLACE = text(f"""
    WITH w AS (
        SELECT * FROM jsonb_to_recordset(CAST(:orders AS jsonb)) AS w ({orders.DOCUMENT},
            payment_method text, call_id text, secret_rank integer, lease double precision, event_id uuid, event bytea)
    ), placed AS ({orders.insert_from("w")}), products AS ({orders.insert_products_from(_NEW)}),
        begun AS ({_BEGIN_PURCHASE}),
        logged AS ({order_log.insert_from(_NEW, actor="'customer'", cause="'PlaceOrder'", call_id="call_id")}),
        published AS (
            INSERT INTO outbox (event_id, subject, key, payload)
            SELECT event_id, '{events.PLACED}', id::text, event FROM {_NEW}
        )
    SELECT id, create_time, secret_wanted FROM placed
""")  # noqa: S608
_LOCKED = f"locked AS ({sagas.lock('order_id IN (SELECT id FROM w)')})"  # noqa: S608
_PURCHASE_END = """
    state = w.state, state_reason = w.reason, payment = coalesce(w.payment, o.payment), cancel_requested = false,
    payment_page = NULL,
    -- An order that has ended must not change behind its reader: the reversed money is part of its end.
    refunded_minor = greatest(o.refunded_minor, least(w.reversed, o.total_minor))
"""
_FINISH = text(f"""
    WITH w AS (
        SELECT * FROM unnest(
            CAST(:ids AS uuid[]), CAST(:tokens AS integer[]), CAST(:states AS text[]), CAST(:reasons AS text[]),
            CAST(:payments AS jsonb[]), CAST(:turned_for AS text[]), CAST(:causes AS text[]),
            CAST(:reversed AS bigint[])
        ) AS w (id, fencing_token, state, reason, payment, turned_for, cause, reversed)
    ), {_LOCKED}, own AS ({sagas.DELETE_OWN}), changed AS (
        {orders.update(_PURCHASE_END)}
        FROM own AS w WHERE o.id = w.id AND o.state = 'PENDING'
        RETURNING {orders.CHANGED}, w.fencing_token, w.cause, w.actor, w.note,
            w.request_id
    ), logged AS (
        {order_log.insert_from("changed", actor="actor", cause="cause", note="note", call_id="request_id")}
    )
    SELECT * FROM changed
""")  # noqa: S608
_PAGE = "CASE WHEN w.payment IS NULL THEN o.payment_page ELSE w.page END"
_SAVE = text(f"""
    WITH w AS (
        SELECT * FROM unnest(
            CAST(:ids AS uuid[]), CAST(:tokens AS integer[]), CAST(:phases AS text[]), CAST(:steps_done AS integer[]),
            CAST(:reasons AS text[]), CAST(:paused AS boolean[]), CAST(:attempts AS integer[]),
            CAST(:seconds AS double precision[]), CAST(:payments AS jsonb[]), CAST(:cancel_reasons AS text[]),
            CAST(:extended AS boolean[]), CAST(:holds AS timestamptz[]), CAST(:causes AS text[]),
            CAST(:refunded AS bigint[]), CAST(:waits_for_provider AS boolean[]), CAST(:pages AS jsonb[])
        ) AS w (id, fencing_token, phase, steps_done, reason, paused, attempts, seconds, payment, cancel_reason,
            extended, hold, cause, refunded, waits_for_provider, page)
    ), {_LOCKED}, own AS ({sagas.SAVE_OWN}), changed AS (
        {orders.update(f"payment = coalesce(w.payment, o.payment), payment_page = {_PAGE}, hold_expire_time = w.hold")}
        FROM own AS w WHERE o.id = w.id
            AND (o.payment IS DISTINCT FROM coalesce(w.payment, o.payment) OR o.payment_page IS DISTINCT FROM {_PAGE}
                OR o.hold_expire_time <> w.hold)
        RETURNING {orders.CHANGED}
    )
    SELECT own.id AS order_id, own.fencing_token, changed.* FROM own LEFT JOIN changed ON changed.id = own.id
""")  # noqa: S608
# Not a change of the order that its reader sees, so its version stays.
_WANT_SECRET = text(f"""
    WITH locked AS ({sagas.lock("order_id = :id")})
    UPDATE orders o SET secret_wanted = true FROM locked
    WHERE o.id = locked.order_id AND o.state = 'PENDING' AND NOT o.secret_wanted RETURNING o.id
""")  # noqa: S608
_ATTEMPT = """
    payment_attempts = o.payment_attempts + 1, secret_wanted = true, payment_page = NULL,
    payment = o.payment || '{"state": "PROCESSING", "client_secret": "", "failure_reason": "", "authenticating": false}'
"""
_BEGIN_ATTEMPT = text(f"""
    WITH asked AS (
        UPDATE sagas SET payment_method = :method, terms = CAST(:terms AS jsonb), attempts = 0, cause = '',
            progress_time = clock_timestamp(), next_time = clock_timestamp()
        WHERE order_id = :id
    ), changed AS ({orders.update(_ATTEMPT)} WHERE o.id = :id RETURNING {orders.CHANGED}),
        logged AS ({order_log.insert_from("changed", **order_log.INSERT_BY_ACTOR)})
    SELECT * FROM changed
""")  # noqa: S608
_BEGIN_AGAIN = sagas.insert_from(
    "orders WHERE id = :id",
    order_id="id",
    phase="'FORWARD'",
    steps_done="1",
    payment_method=":method",
    terms="CAST(:terms AS jsonb)",
    request_id=":call",
    next_time="clock_timestamp()",
    hold_check_time=sagas.FIRST_CHECK,
)
_REOPENED = f"state = 'PENDING', state_reason = '', reopened = o.reopened + 1, {_ATTEMPT}"
_REOPEN = text(f"""
    WITH begun AS ({_BEGIN_AGAIN}),
        changed AS ({orders.update(_REOPENED)} WHERE o.id = :id RETURNING {orders.CHANGED}),
        logged AS ({order_log.insert_from("changed", **order_log.INSERT_BY_ACTOR)})
    SELECT * FROM changed
""")  # noqa: S608
_QUEUE_SECRETS = text(f"""
    WITH locked AS ({sagas.lock("order_id = ANY(CAST(:ids AS uuid[]))")}), wanted AS (
        UPDATE orders o SET secret_wanted = true FROM locked
        WHERE o.id = locked.order_id AND o.state = 'PENDING' AND NOT o.secret_wanted RETURNING o.id
    )
    {sagas.QUEUE_WANTED}
""")  # noqa: S608
_BEGIN_REFUND_SAGA = sagas.insert_from(
    "orders WHERE id = :id",
    order_id="id",
    kind="'REFUND'",
    phase="'FORWARD'",
    steps_done="0",
    payment_method="''",
    refund="CAST(:refund AS jsonb)",
    actor=":actor",
    note=":note",
    request_id=":call",
    next_time="clock_timestamp()",
)
_REFUNDING = "refunding = true, cancel_requested = :cancels"
_BEGIN_REFUND = text(f"""
    WITH begun AS ({_BEGIN_REFUND_SAGA}),
        changed AS ({orders.update(_REFUNDING)} WHERE o.id = :id RETURNING {orders.CHANGED}),
        logged AS ({order_log.insert_from("changed", **order_log.INSERT_BY_ACTOR)})
    SELECT * FROM changed
""")  # noqa: S608
_TAKE_REFUND = text(f"""
    WITH w AS (SELECT CAST(:id AS uuid) AS id, CAST(:token AS integer) AS fencing_token, '' AS turned_for), {_LOCKED}
    {sagas.DELETE_OWN}
""")
_REFUND_END = """
    state = :state, state_reason = :reason, refunding = false, cancel_requested = false, refunded_minor = :refunded,
    returned = CAST(:returned AS jsonb),
    payment = CASE WHEN :refunded = o.total_minor THEN jsonb_set(o.payment, '{state}', '"REFUNDED"')
        WHEN CAST(:state AS text) = 'CANCELLED' AND o.payment->>'state' = 'AUTHORIZED'
        THEN jsonb_set(o.payment, '{state}', '"CANCELLED"') ELSE o.payment END
"""
_FINISH_REFUND = text(f"""
    WITH changed AS ({orders.update(_REFUND_END)} WHERE o.id = :id RETURNING {orders.CHANGED}),
        logged AS ({order_log.insert_from("changed", **order_log.INSERT_BY_ACTOR)})
    SELECT * FROM changed
""")  # noqa: S608


async def place(db: Database, items: Sequence[tuple[Order, float]], *, holder: str = "") -> list[tuple[Order, bool]]:
    """Writes orders with their sagas, log entries and events. Returns (order, whether it is new) for each.

    Each item is an order and the seconds for which `holder` alone may carry its saga; with 0, any process may. If
    the customer's request id is known, the order that was placed the first time is returned.
    """
    # Two items of one batch may be repeats of one request: the first is the order.
    first = {order.id: order for order, _ in reversed(items)}
    leases = {order.id: lease for order, lease in reversed(items)}
    ranks = _secret_ranks(list(first.values()))
    documents = [_document(order, leases[order.id], ranks[order.id]) for order in first.values()]
    arguments = {
        "orders": orjson.dumps(documents).decode(),
        "unasked_most": plan.SECRETS_UNASKED_MOST,
        "holder": holder,
    }
    rows = await run_autocommit(db, _PLACE, arguments)
    placed = {
        row.id: replace(
            first[row.id], create_time=row.create_time, update_time=row.create_time, secret_wanted=row.secret_wanted
        )
        for row in rows
    }
    repeats = [(order.customer_id, order.request_id) for order, _ in items if order.id not in placed]
    known = dict(zip(repeats, await orders.find_by_requests(db, repeats), strict=True))
    outcomes: list[tuple[Order, bool]] = []
    for order, _ in items:
        found = placed.get(order.id) or known[order.customer_id, order.request_id]
        assert found, "the insert conflicted with an order that does not exist"
        outcomes.append((found, order.id in placed and first[order.id] is order))
    return outcomes


def _secret_ranks(new: Sequence[Order]) -> dict[uuid.UUID, int]:
    """The `secret_rank` of each new order; see `orders.insert_from`."""
    unasked: Counter[uuid.UUID] = Counter()
    ranks = {}
    for order in new:
        if is_unasked := bool(order.total.minor) and not (order.payment_method or order.secret_wanted):
            unasked[order.customer_id] += 1
        ranks[order.id] = unasked[order.customer_id] if is_unasked else 0
    return ranks


async def queue_secrets(db: Database, order_ids: Sequence[uuid.UUID]) -> list[None]:
    """Notes that the secrets of these orders are wanted: any process claims their sagas once it has slots."""
    async with db.begin() as tx:
        await tx.execute(_QUEUE_SECRETS, {"ids": list(order_ids)})
    return [None] * len(order_ids)


async def want_secret(tx: AsyncSession, order_id: uuid.UUID) -> bool:
    """Has the payment of an unpaid order begun, because somebody asks how to pay; whether nobody has before."""
    return bool((await tx.execute(_WANT_SECRET, {"id": order_id})).all())


def _document(order: Order, lease_seconds: float, secret_rank: int) -> dict[str, object]:
    return orders.document(order) | {
        "secret_rank": secret_rank,
        "payment_method": order.payment_method,
        "call_id": order.call_id,
        "lease": lease_seconds,
        "event_id": ids.new(),
        "event": orders.bytea(events.placed_event(order).message.SerializeToString()),
    }


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The progress of a saga, to be saved; by default of one that goes on in this process."""

    saga: Saga
    paused: bool = False
    """Whether an event about its payment shall wake it earlier."""
    seconds: float = sagas.LEASE_SECONDS
    """After these any process may claim it."""


async def save(tx: AsyncSession, checkpoints: Sequence[Checkpoint]) -> list[bool]:
    """Saves the progress of sagas; False for each that another process has taken over."""
    arguments = {
        "ids": [c.saga.order_id for c in checkpoints],
        "tokens": [c.saga.fencing_token for c in checkpoints],
        "phases": [c.saga.progress.phase for c in checkpoints],
        "steps_done": [c.saga.progress.steps_done for c in checkpoints],
        "reasons": [c.saga.progress.reason for c in checkpoints],
        "paused": [c.paused for c in checkpoints],
        "attempts": [c.saga.attempts for c in checkpoints],
        "seconds": [c.seconds for c in checkpoints],
        "cancel_reasons": [c.saga.progress.cancel_reason for c in checkpoints],
        "extended": [c.saga.hold_extended for c in checkpoints],
        "holds": [c.saga.hold_expire_time for c in checkpoints],
        "payments": [orders.payment_to_json(c.saga.payment) for c in checkpoints],
        "causes": [c.saga.cause for c in checkpoints],
        "refunded": [c.saga.refunded_minor for c in checkpoints],
        "waits_for_provider": [c.saga.waits_for_provider for c in checkpoints],
        "pages": [orders.page_to_json(c.saga.payment) for c in checkpoints],
    }
    saved = (await tx.execute(_SAVE, arguments)).all()
    await outbox.publish(tx, [changed_event(row, moved=False) for row in saved if row.id])
    own = {(row.order_id, row.fencing_token) for row in saved}
    return [(c.saga.order_id, c.saga.fencing_token) in own for c in checkpoints]


async def finish(tx: AsyncSession, finished: Sequence[Saga]) -> list[bool]:
    """Moves orders to the ends of their `PURCHASE` sagas, which are over; False for each that was taken over."""
    ends = [plan.purchase_end(saga.progress) for saga in finished]
    arguments = {
        "ids": [saga.order_id for saga in finished],
        "tokens": [saga.fencing_token for saga in finished],
        "states": [state for state, _, _ in ends],
        "reasons": [reason for _, reason, _ in ends],
        "payments": [orders.payment_to_json(saga.payment) for saga in finished],
        "turned_for": [saga.progress.turned_for for saga in finished],
        "causes": [cause for _, _, cause in ends],
        "reversed": [0 if saga.progress.phase is Phase.DONE else saga.refunded_minor for saga in finished],
    }
    changed = (await tx.execute(_FINISH, arguments)).all()
    await outbox.publish(tx, [changed_event(row, moved=True) for row in changed])
    own = {(row.id, row.fencing_token) for row in changed}
    return [(saga.order_id, saga.fencing_token) in own for saga in finished]


async def request_cancel(tx: AsyncSession, order_id: uuid.UUID, reason: str, by: Actor, *, cause: str) -> bool:
    """Has an order's purchase turn back for good, and shows that on the order and in its log.

    Returns False, and changes nothing, if no purchase is running, or if it was requested before.
    """
    requested = await sagas.request_cancel(tx, [order_id], reason, by)
    if requested:
        await orders.note_cancel(tx, order_id, by, cause=cause)
    return bool(requested)


async def begin_attempt(tx: AsyncSession, order: Order, terms: PaymentTerms, payment_method: str, by: Actor) -> None:
    """Writes that a `PENDING` order, whose saga and row are locked, is paid in another way; its saga does that."""
    row = (await tx.execute(_BEGIN_ATTEMPT, _attempt(order, terms, payment_method, by))).one()
    await outbox.publish(tx, [changed_event(row, moved=False)])


async def reopen(tx: AsyncSession, order: Order, terms: PaymentTerms, payment_method: str, by: Actor) -> None:
    """Moves a `FAILED` order, whose row is locked and whose units are held again, back, with a saga that pays it."""
    domain.move(order.state, State.PENDING)
    row = (await tx.execute(_REOPEN, _attempt(order, terms, payment_method, by))).one()
    await outbox.publish(tx, [changed_event(row, moved=True)])


def _attempt(order: Order, terms: PaymentTerms, payment_method: str, by: Actor) -> dict[str, object]:
    values = {"id": order.id, "terms": orjson.dumps(terms).decode(), "method": payment_method}
    return {**values, **order_log.arguments(by, "PayOrder")}


async def begin_refund(tx: AsyncSession, order: Order, refund: Refund, by: Actor) -> None:
    """Writes that `order`, whose row is locked and may be refunded, shall be; its saga makes the refund."""
    arguments = order_log.arguments(by, f"{refund.method} begun")
    arguments |= {"id": order.id, "refund": orjson.dumps(refund).decode()}
    rows = await tx.execute(_BEGIN_REFUND, {**arguments, "cancels": refund.wanted is State.CANCELLED})
    await outbox.publish(tx, [changed_event(row, moved=False) for row in rows])


async def finish_refund(tx: AsyncSession, saga: Saga) -> State | None:
    """Moves an order to the end of its `REFUND` saga, and returns its state; None if the saga was taken over."""
    own = (await tx.execute(_TAKE_REFUND, {"id": saga.order_id, "token": saga.fencing_token})).one_or_none()
    if own is None:
        return None
    order = await orders.read(tx, saga.order_id, lock=True)
    refunded = max(order.refunded_minor, own.refunded_minor, saga.refunded_minor)
    state, cause = plan.refund_end(order, saga, refunded)
    returned = plan.returned_after_refund(order, saga)
    arguments = {
        "id": order.id, "state": state, "reason": "" if state is not order.state else order.state_reason,
        "refunded": refunded, "returned": orjson.dumps(returned, option=orjson.OPT_NON_STR_KEYS).decode(),
        **order_log.arguments(Actor(own.actor, own.request_id, own.note), cause),
    }  # fmt: skip
    row = (await tx.execute(_FINISH_REFUND, arguments)).one()
    await outbox.publish(tx, [changed_event(row, moved=state is not order.state)])
    return state
