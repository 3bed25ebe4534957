"""Checks of the database of payments: each is one statement."""

from deploy.audit import repairs
from deploy.audit.findings import Check, Invariant

_EVENT_SECONDS = 3_600
"""A provider event is applied or parked within this time."""
_ASLEEP_SECONDS = 7_200
_DUE_SECONDS = 600


def _check(
    invariant: Invariant, name: str, means: str, query: str, repair: str = repairs.LOOK, mend: str = ""
) -> Check:
    return Check(name, invariant, means, repair, "payments", query, mend)


CHECKS = (
    _check(
        Invariant.MONEY, "payment-state", "the columns of a payment fit its state",
        """
        SELECT order_id, format('payment %s is %s with reference %s, attempt %s, %s + %s of %s refunded', id, state,
            coalesce(provider_reference, 'none'), attempt, refunded_minor, refunding_minor, amount_minor)
        FROM payments WHERE NOT coalesce(amount_minor >= 0 AND refunded_minor >= 0 AND refunding_minor >= 0
            AND refunded_minor + refunding_minor <= amount_minor AND attempt > 0 AND version > 0
            AND currency ~ '^[A-Z]{3}$' AND create_time <= update_time AND CASE
                WHEN state IN ('AWAITING_CUSTOMER', 'PROCESSING') THEN refunded_minor = 0 AND refunding_minor = 0
                ELSE client_secret IS NULL AND payment_method IS NULL AND NOT authenticating
                    AND (next_check_time IS NULL OR state = 'AUTHORIZED') END
            -- Only money that is not captured at once is ever set aside, and its time says for how long.
            AND (state <> 'AUTHORIZED' OR (capture <> 'AUTOMATIC' AND authorize_time IS NOT NULL
                AND provider_reference IS NOT NULL AND refunding_minor = 0))
            -- An attempt waits only for the charge before it, and a page is open only for its customer.
            AND (next_terms IS NULL OR state = 'PROCESSING')
            AND (checkout_url IS NULL OR (state = 'AWAITING_CUSTOMER' AND checkout_reference IS NOT NULL))
            AND order_attempt <= latest_order_attempt
            AND CASE state WHEN 'REFUNDED' THEN refunded_minor = amount_minor
                WHEN 'SUCCEEDED' THEN refunded_minor < amount_minor OR amount_minor = 0
                ELSE refunded_minor = 0 END
            AND (state NOT IN ('SUCCEEDED', 'REFUNDED') OR provider_reference IS NOT NULL OR amount_minor = 0), false)
        """,
        repairs.MEND,
        """
        UPDATE payments SET client_secret = NULL, payment_method = NULL, authenticating = false,
            next_check_time = CASE state WHEN 'AUTHORIZED' THEN next_check_time END
        WHERE order_id = CAST(:id AS uuid) AND state NOT IN ('AWAITING_CUSTOMER', 'PROCESSING');
        UPDATE payments SET next_terms = NULL WHERE order_id = CAST(:id AS uuid) AND state <> 'PROCESSING';
        UPDATE payments SET checkout_url = NULL WHERE order_id = CAST(:id AS uuid)
            AND (state <> 'AWAITING_CUSTOMER' OR checkout_reference IS NULL);
        UPDATE payments SET capture = CASE capture WHEN 'AUTOMATIC' THEN 'MANUAL' ELSE capture END,
            authorize_time = coalesce(authorize_time, update_time)
        WHERE order_id = CAST(:id AS uuid) AND state = 'AUTHORIZED';
        UPDATE payments SET latest_order_attempt = greatest(latest_order_attempt, order_attempt)
        WHERE order_id = CAST(:id AS uuid);
        UPDATE payments SET state = CASE WHEN refunded_minor = amount_minor THEN 'REFUNDED' ELSE 'SUCCEEDED' END
        WHERE order_id = CAST(:id AS uuid) AND state IN ('SUCCEEDED', 'REFUNDED')
        """,
    ),
    _check(
        Invariant.MONEY, "payment-unattended", "somebody asks the provider about each payment and refund that is open",
        f"""
        SELECT order_id, format('payment %s is %s, next check at %s', id, state,
            coalesce(next_check_time::text, 'never'))
        FROM payments WHERE state IN ('AWAITING_CUSTOMER', 'PROCESSING', 'AUTHORIZED') AND problem = ''
            AND NOT coalesce(next_check_time BETWEEN clock_timestamp() - interval '{_DUE_SECONDS} seconds'
            AND clock_timestamp() + interval '{_ASLEEP_SECONDS} seconds', false)
        UNION ALL
        SELECT p.order_id, format('refund %s is %s, next check at %s', r.id, r.state,
            coalesce(r.next_check_time::text, 'never'))
        FROM refunds r JOIN payments p ON p.id = r.payment_id
        WHERE r.state = 'PENDING' AND r.problem = '' AND NOT coalesce(r.next_check_time
            BETWEEN clock_timestamp() - interval '{_DUE_SECONDS} seconds'
            AND clock_timestamp() + interval '{_ASLEEP_SECONDS} seconds', false)
        """,
        repairs.MEND,
        """
        UPDATE payments SET next_check_time = now()
        WHERE order_id = CAST(:id AS uuid) AND state IN ('AWAITING_CUSTOMER', 'PROCESSING', 'AUTHORIZED');
        UPDATE refunds r SET next_check_time = now() FROM payments p
        WHERE p.id = r.payment_id AND p.order_id = CAST(:id AS uuid) AND r.state = 'PENDING'
        """,
    ),
    _check(
        Invariant.REFUNDS, "payment-refunds", "a payment counts each of its refunds once",
        """
        SELECT p.order_id, format('payment %s has %s refunded and %s refunding, its refunds are %s and %s', p.id,
            p.refunded_minor, p.refunding_minor, coalesce(r.done, 0), coalesce(r.pending, 0))
        FROM payments p LEFT JOIN (
            SELECT payment_id, sum(amount_minor) FILTER (WHERE state = 'SUCCEEDED') AS done,
                sum(amount_minor) FILTER (WHERE state = 'PENDING') AS pending
            FROM refunds WHERE NOT stray GROUP BY 1
        ) r ON r.payment_id = p.id
        -- A refund from the provider's dashboard may be counted before it has a row.
        WHERE p.refunding_minor <> coalesce(r.pending, 0)
            OR p.refunded_minor < least(coalesce(r.done, 0), p.amount_minor)
        """,
        repairs.MEND,
        """
        UPDATE payments p SET refunding_minor = coalesce(r.pending, 0),
            refunded_minor = greatest(p.refunded_minor, least(coalesce(r.done, 0), p.amount_minor)),
            version = p.version + 1
        FROM payments q LEFT JOIN (
            SELECT payment_id, sum(amount_minor) FILTER (WHERE state = 'SUCCEEDED') AS done,
                sum(amount_minor) FILTER (WHERE state = 'PENDING') AS pending
            FROM refunds WHERE NOT stray GROUP BY 1
        ) r ON r.payment_id = q.id WHERE q.id = p.id AND p.order_id = CAST(:id AS uuid)
        """,
    ),
    _check(
        Invariant.REFUNDS, "refund-row", "the columns of a refund fit its state and its payment",
        """
        SELECT coalesce(p.order_id, r.payment_id), format('refund %s of payment %s is %s, charge %s, reference %s',
            r.id, r.payment_id, r.state, r.charge_reference, coalesce(r.provider_reference, 'none'))
        FROM refunds r LEFT JOIN payments p ON p.id = r.payment_id
        WHERE NOT coalesce(p.id IS NOT NULL AND r.amount_minor > 0
            -- A stray charge may be at the provider of an earlier attempt.
            AND (r.provider = p.provider OR r.stray) AND (r.stray OR r.amount_minor <= p.amount_minor)
            AND r.create_time <= r.update_time
            AND (r.charge_reference = coalesce(p.capture_reference, p.provider_reference) OR r.stray)
            -- A stray charge is one that its payment did not count.
            AND NOT (r.stray AND r.charge_reference = coalesce(p.capture_reference, p.provider_reference)
                AND p.state IN ('SUCCEEDED', 'REFUNDED'))
            AND (r.state = 'PENDING' OR r.next_check_time IS NULL)
            AND (r.state <> 'SUCCEEDED' OR r.provider_reference IS NOT NULL OR r.settlement <> 'PROVIDER'), false)
        UNION ALL
        SELECT min(p.order_id::text)::uuid, format('%s refunds have the reference %s', count(*), r.provider_reference)
        FROM refunds r JOIN payments p ON p.id = r.payment_id WHERE r.provider_reference IS NOT NULL
        GROUP BY r.provider_reference HAVING count(*) > 1
        """,
    ),
    _check(
        Invariant.MONEY, "money-problem", "no payment and no refund waits for an operator",
        """
        SELECT id, format('of order %s: %s', order_id, problem) FROM payments WHERE problem <> ''
        UNION ALL
        SELECT r.id, format('refund of %s of order %s: %s', r.amount_minor, p.order_id, r.problem)
        FROM refunds r JOIN payments p ON p.id = r.payment_id WHERE r.problem <> ''
        """,
        repairs.PARKED,
    ),
    _check(
        Invariant.MONEY, "dispute-row", "a dispute is about a payment, in its currency",
        """
        SELECT coalesce(p.order_id, d.payment_id), format('dispute %s of %s %s, %s of them taken, is %s and names'
            ' payment %s', d.reference, d.currency, d.amount_minor, d.withdrawn_minor, d.state, d.payment_id)
        FROM disputes d LEFT JOIN payments p ON p.id = d.payment_id
        WHERE NOT coalesce(d.currency = p.currency AND d.provider = p.provider AND d.amount_minor >= 0
            AND d.withdrawn_minor BETWEEN 0 AND d.amount_minor AND d.fee_minor >= 0
            AND (d.state NOT IN ('INQUIRY', 'WON', 'CLOSED') OR d.withdrawn_minor = 0), false)
        """,
    ),
    _check(
        Invariant.EVENTS, "dispute-unread", "the provider's record of a dispute is read within the hour",
        f"""
        SELECT reference, format('of payment %s is not read after %s attempts', payment_id, attempts)
        FROM dispute_checks WHERE NOT coalesce(due_time BETWEEN clock_timestamp() - interval '{_DUE_SECONDS} seconds'
            AND clock_timestamp() + interval '{_ASLEEP_SECONDS} seconds', false) OR attempts > 20
        """,
        "payments reads it, later each time: see its log for 'the provider has no such dispute'",
    ),
    _check(
        Invariant.EVENTS, "provider-events-read", "the provider's own list of events was read within the hour",
        f"""
        SELECT provider, format('its events were read until %s', done_time)
        FROM event_walks WHERE done_time < clock_timestamp() - interval '{_EVENT_SECONDS} seconds'
        """,
        "payments reads it every ten seconds: see its log for 'the events of a span are too many'",
    ),
    _check(
        Invariant.EVENTS, "provider-event-waits", "a provider event is applied within an hour",
        f"""
        SELECT event_id, format('%s of %s waits for %s s after %s attempts: %s', payload->>'type', provider,
            extract(epoch FROM clock_timestamp() - received_time)::integer, attempts, coalesce(error, 'no error'))
        FROM provider_events WHERE processed_time IS NULL
            AND received_time < clock_timestamp() - interval '{_EVENT_SECONDS} seconds'
        """,
    ),
    _check(
        Invariant.EVENTS, "provider-event-parked", "no provider event is parked",
        """
        SELECT event_id, format('%s of %s is parked after %s attempts: %s', payload->>'type', provider, attempts, error)
        FROM provider_events WHERE processed_time IS NOT NULL AND error <> 'OTHER_AMOUNT'
        """,
        repairs.RETRY_EVENT,
    ),
    _check(
        Invariant.EVENTS, "provider-event-amount", "no provider event reports another amount than its payment's",
        """
        SELECT event_id, format('%s of %s reports %s %s of payment %s', payload->>'type', provider,
            payload->>'currency', payload->>'amount_minor', payload->>'payment_id')
        FROM provider_events WHERE processed_time IS NOT NULL AND error = 'OTHER_AMOUNT'
        """,
        repairs.DROP_EVENT,
    ),
    _check(
        Invariant.EVENTS, "provider-event-effect", "a payment whose success was reported has succeeded",
        """
        SELECT p.order_id, format('event %s reported the success of %s, but payment %s is %s', e.event_id,
            e.payload->>'reference', p.id, p.state)
        FROM provider_events e JOIN payments p ON p.id::text = e.payload->>'payment_id'
        WHERE e.processed_time IS NOT NULL AND e.error IS NULL AND e.payload->>'charge_status' = 'SUCCEEDED'
            AND NOT (p.state IN ('SUCCEEDED', 'REFUNDED')
                AND e.payload->>'reference' IN (p.provider_reference, p.checkout_reference))
            AND NOT EXISTS (SELECT FROM refunds r WHERE r.payment_id = p.id AND r.stray
                AND r.charge_reference = e.payload->>'reference')
        """,
    ),
)  # fmt: skip
