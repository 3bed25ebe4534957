"""Money of paid orders on its way back, in PostgreSQL: how a refund begins, and how it ends."""

from dataclasses import asdict

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.events import outbox
from services.orders import domain, rows, store
from services.orders.domain import Mover, Order, Refund, State
from services.orders.saga import Phase, Saga

_RETURNING = """
    RETURNING o.id, o.customer_id, o.state, o.state_reason, o.currency, o.total_minor, o.refunded_minor, o.version,
        o.update_time
"""
_LOG = """
    INSERT INTO order_log (order_id, version, state, reason, actor, cause, note, request_id, refunded_minor)
"""
_BEGIN = text(f"""
    WITH begun AS (
        INSERT INTO sagas (order_id, kind, phase, applied, payment_method, refund, actor, note, request_id, next_time)
        VALUES (:id, 'REFUND', 'FORWARD', 0, '', CAST(:refund AS jsonb), :actor, :note, :request, clock_timestamp())
    ), changed AS (
        UPDATE orders o SET refunding = true, version = version + 1, update_time = clock_timestamp() WHERE id = :id
        {_RETURNING}
    ), logged AS (
        {_LOG}
        SELECT id, version, state, state_reason, :actor, :cause, :note, :request, refunded_minor FROM changed
    )
    SELECT * FROM changed
""")  # noqa: S608
_FINISH = text(f"""
    WITH changed AS (
        UPDATE orders o SET state = :state, state_reason = :reason, refunding = false, refunded_minor = :refunded,
            payment = CASE WHEN :refunded = total_minor THEN jsonb_set(payment, '{{state}}', '"REFUNDED"')
                ELSE payment END,
            version = version + 1, update_time = clock_timestamp()
        WHERE id = :id
        {_RETURNING}
    ), logged AS (
        {_LOG}
        SELECT id, version, state, state_reason, :actor, :cause, :note, :request, refunded_minor FROM changed
    )
    SELECT * FROM changed
""")  # noqa: S608


async def begin(tx: AsyncSession, order: Order, refund: Refund, by: Mover) -> None:
    """Writes that money of `order`, whose row is locked and may be refunded, is to go back; its saga carries it out."""
    arguments = {
        "id": order.id, "refund": orjson.dumps(_document(refund)).decode(), "cause": f"{_method(refund)} begun",
        "actor": by.actor, "note": by.note, "request": by.request_id,
    }  # fmt: skip
    await outbox.publish(tx, [rows.updated(row) for row in await tx.execute(_BEGIN, arguments)])


def _document(refund: Refund) -> dict[str, object]:
    return {
        "id": refund.id, "amount": asdict(refund.amount) if refund.amount else None, "wanted": refund.wanted,
        "restock": refund.restock, "lines": refund.lines,
    }  # fmt: skip


async def finish(db: Database, saga: Saga) -> State | None:
    """Moves an order whose refund has come to its end; its state then. None: somebody else had taken the saga over."""
    assert saga.refund
    take = text("""
        DELETE FROM sagas WHERE order_id = :id AND fence = :fence RETURNING refunded_minor, actor, note, request_id
    """)
    async with db.begin() as tx:
        mine = (await tx.execute(take, {"id": saga.order_id, "fence": saga.fence})).one_or_none()
        if mine is None:
            return None
        order = await store.read(tx, saga.order_id, lock=True)
        refunded = max(order.refunded_minor, mine.refunded_minor, saga.refunded_minor)
        state, cause = _end(order, saga, refunded)
        arguments = {
            "id": order.id, "state": state, "reason": "" if state is not order.state else order.state_reason,
            "refunded": refunded, "actor": mine.actor, "cause": cause, "note": mine.note, "request": mine.request_id,
        }  # fmt: skip
        changed = (await tx.execute(_FINISH, arguments)).one()
        await outbox.publish(tx, [rows.updated(changed) if state is order.state else rows.moved(changed)])
    return state


def _end(order: Order, saga: Saga, refunded: int) -> tuple[State, str]:
    """The state that an order's refund brings it to, and what the log says of it."""
    assert saga.refund
    cause = _method(saga.refund)
    if saga.progress.phase is Phase.UNDONE:
        cause = f"{cause} refused: {saga.progress.reason}"
        # Staff may have paid it back at payments meanwhile, which the event has left to this saga.
        if refunded == order.refunded_minor:
            return order.state, cause
        return domain.move(order.state, order.state_after_refund(refunded)), cause
    if saga.progress.reason:
        cause = f"{cause}; units did not come back: {saga.progress.reason}"
    # Another refund, begun at payments, may still be on its way, and may fail: then there is money left to pay back.
    cancelled = saga.refund.wanted is State.CANCELLED and refunded == order.total.minor
    return domain.move(order.state, State.CANCELLED if cancelled else order.state_after_refund(refunded)), cause


def _method(refund: Refund) -> str:
    """The call that began it."""
    return "CancelOrder" if refund.wanted is State.CANCELLED else "RefundOrder"
