"""Checks of the databases of catalog and identity: each is one statement."""

from deploy.audit import repairs
from deploy.audit.findings import Check, Invariant

CHECKS = (
    Check(
        "product-terms", Invariant.PRODUCTS, "a product's price, names and times are possible", repairs.LOOK, "catalog",
        """
        SELECT id, format('%s costs %s %s, before %s, as %s', sku, currency, price_minor,
            coalesce(original_price_minor::text, 'nothing'), slug)
        FROM products WHERE NOT coalesce(price_minor BETWEEN 0 AND 99999999 AND currency ~ '^[A-Z]{3}$'
            AND (original_price_minor IS NULL OR original_price_minor > price_minor)
            AND slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$' AND sku <> '' AND jsonb_typeof(attributes) = 'object' AND version > 0
            AND create_time <= update_time AND (deleted_time IS NULL OR deleted_time >= create_time), false)
        """,
    ),
    Check(
        "product-once", Invariant.PRODUCTS, "no two products have one sku or one slug", repairs.LOOK, "catalog",
        """
        SELECT min(id::text), format('%s products have the sku %s', count(*), sku) FROM products GROUP BY sku
        HAVING count(*) > 1
        UNION ALL
        SELECT min(id::text), format('%s products have the slug %s', count(*), slug) FROM products GROUP BY slug
        HAVING count(*) > 1
        """,
    ),
    Check(
        "user-account", Invariant.ACCOUNTS, "an account has a password and known roles, and an address of its own",
        repairs.LOOK, "identity",
        """
        SELECT id::text, format('roles %s, a password %s, address in lower case: %s', roles, password_hash <> '',
            email = lower(email))
        FROM users WHERE NOT coalesce(email = lower(email) AND email LIKE '%@%' AND password_hash <> ''
            AND roles <@ ARRAY['customer', 'staff', 'admin'] AND cardinality(roles) > 0, false)
        UNION ALL
        SELECT min(id::text), format('%s accounts have one address', count(*)) FROM users GROUP BY lower(email)
        HAVING count(*) > 1
        """,
    ),
    Check(
        "user-session", Invariant.ACCOUNTS, "a session has a user, and one refresh token that can be used",
        repairs.MEND, "identity",
        """
        SELECT s.id, format('of user %s, from %s to %s, with %s unused tokens', s.user_id, s.create_time, s.expire_time,
            coalesce(t.unused, 0))
        FROM sessions s LEFT JOIN users u ON u.id = s.user_id LEFT JOIN (
            SELECT session_id, count(*) FILTER (WHERE used_time IS NULL) AS unused,
                bool_and(used_time IS NULL OR used_time >= create_time) AS possible
            FROM refresh_tokens GROUP BY 1
        ) t ON t.session_id = s.id
        WHERE NOT coalesce(u.id IS NOT NULL AND s.expire_time > s.create_time
            AND (s.revoke_time IS NULL OR s.revoke_time >= s.create_time)
            AND coalesce(t.unused, 0) <= 1 AND coalesce(t.possible, true), false)
        UNION ALL
        SELECT t.session_id, 'a refresh token has no session'
        FROM refresh_tokens t LEFT JOIN sessions s ON s.id = t.session_id WHERE s.id IS NULL
        """,
        """
        DELETE FROM refresh_tokens WHERE session_id = CAST(:id AS uuid);
        DELETE FROM sessions WHERE id = CAST(:id AS uuid)
        """,
    ),
    Check(
        "signing-keys", Invariant.ACCOUNTS, "a key signs now, and each key is published under its own name",
        repairs.REPLACE_KEY, "identity",
        """
        SELECT kid, format('published as %s, signs from %s to %s', public_jwk->>'kid', sign_from,
            coalesce(retire_time::text, 'its successor'))
        FROM signing_keys WHERE NOT coalesce(public_jwk->>'kid' = kid AND NOT public_jwk ? 'd'
            AND length(sealed_private_key) > 0 AND (retire_time IS NULL OR retire_time > sign_from), false)
        UNION ALL
        SELECT 'identity', 'no key signs now' WHERE EXISTS (SELECT FROM users) AND NOT EXISTS (
            SELECT FROM signing_keys WHERE sign_from <= clock_timestamp()
                AND (retire_time IS NULL OR retire_time > clock_timestamp()))
        """,
    ),
)  # fmt: skip
