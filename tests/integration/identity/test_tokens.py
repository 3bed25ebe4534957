"""Sessions, tokens and the keys that sign them."""

import asyncio
import base64
import hashlib
import hmac
import json
import uuid
from itertools import pairwise
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import REGISTRY
from sqlalchemy import select, text

from services.chassis.data.db import Database
from services.chassis.data.sealing import WrongSecret
from services.chassis.server import access
from services.chassis.server.access import AUDIENCE, ISSUER, Gatekeeper
from services.identity import keys, tokens
from services.identity.sql import sessions
from services.identity.sql.schema import RefreshToken, Session, SigningKey
from services.identity.tokens import Key, Keyring, KeySealer
from stampede.identity.v1 import identity_service_pb2 as pb
from tests.integration.identity.conftest import LIFETIMES, Register, Replica, SignIn, bearer
from tests.support import tokens as foreign
from tests.support.serving import refusal
from tests.support.waiting import until


async def jwks(identity: Any) -> dict[str, dict[str, Any]]:
    body = await identity.GetJwks(pb.GetJwksRequest())
    assert body.content_type == "application/json"
    return {key["kid"]: key for key in json.loads(body.data)["keys"]}


def refresh(identity: Any, token: str) -> Any:
    return identity.Refresh(pb.RefreshRequest(refresh_token=token))


def me(identity: Any, access_token: str) -> Any:
    return identity.GetMe(pb.GetMeRequest(), metadata=bearer(access_token))


async def assert_refused(call: Any) -> None:
    refused = await refusal(call)
    assert (refused.code, refused.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")


def with_shared_secret(claims: dict[str, Any], key: SigningKey) -> str:
    """Return a token signed by HMAC with the public key, which a careless verifier accepts as a shared secret."""
    content = ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "HS256", "typ": "JWT", "kid": key.kid}, claims)
    )
    mac = hmac.digest(json.dumps(key.public_jwk).encode(), content.encode(), hashlib.sha256)
    return f"{content}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


def kid(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


async def test_an_access_token_verifies_with_the_published_keys(
    identity: Any, register: Register, sign_in: SignIn
) -> None:
    user = await register()
    token = (await sign_in()).access_token
    keys = await jwks(identity)
    claims = jwt.decode(token, jwt.PyJWK(keys[kid(token)]), algorithms=["ES256"], audience=AUDIENCE, issuer=ISSUER)
    assert jwt.get_unverified_header(token)["alg"] == "ES256"
    assert (claims["sub"], claims["roles"], claims["exp"] - claims["iat"]) == (user.id, ["customer"], 900)
    assert uuid.UUID(claims["jti"]) != uuid.UUID(claims["sid"])


async def test_the_key_set_has_no_private_part(identity: Any) -> None:
    for key in (await jwks(identity)).values():
        assert set(key) == {"kty", "crv", "x", "y", "kid", "alg", "use"}
        assert (key["kty"], key["crv"], key["alg"], key["use"]) == ("EC", "P-256", "ES256", "sig")


async def test_a_refresh_token_is_exchanged_for_the_next_pair(
    identity: Any, register: Register, sign_in: SignIn
) -> None:
    user = await register()
    first = await sign_in()
    second = await refresh(identity, first.refresh_token)
    third = await refresh(identity, second.refresh_token)
    assert len({first.refresh_token, second.refresh_token, third.refresh_token}) == 3
    assert (await me(identity, third.access_token)).id == user.id
    sessions = {jwt.decode(t.access_token, options={"verify_signature": False})["sid"] for t in (first, second, third)}
    assert len(sessions) == 1


async def test_a_token_used_twice_ends_its_session_and_no_other(
    identity: Any, register: Register, sign_in: SignIn
) -> None:
    await register()
    first, elsewhere = await sign_in(), await sign_in()
    second = await refresh(identity, first.refresh_token)
    await assert_refused(refresh(identity, first.refresh_token))
    await assert_refused(refresh(identity, second.refresh_token))
    await refresh(identity, elsewhere.refresh_token)


@pytest.mark.usefixtures("full_pool")
async def test_one_of_many_refreshes_succeeds_and_the_session_ends(
    identity: Any, register: Register, sign_in: SignIn
) -> None:
    await register()
    first = await sign_in()
    outcomes = await asyncio.gather(
        *(refresh(identity, first.refresh_token) for _ in range(12)), return_exceptions=True
    )
    won = [outcome for outcome in outcomes if isinstance(outcome, pb.Tokens)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert len(won) == 1
    assert {error.code() for error in refused} == {grpc.StatusCode.UNAUTHENTICATED}
    await assert_refused(refresh(identity, won[0].refresh_token))


async def test_a_refresh_token_that_is_unknown_or_expired_is_refused(
    db: Database, identity: Any, register: Register, sign_in: SignIn
) -> None:
    await register()
    first = await sign_in()
    await assert_refused(refresh(identity, "unknown"))
    await assert_refused(refresh(identity, first.access_token[:200]))
    async with db.begin() as tx:
        await tx.execute(text("UPDATE refresh_tokens SET expire_time = now()"))
    await assert_refused(refresh(identity, first.refresh_token))
    async with db() as tx:
        assert (await tx.scalars(select(Session.revoke_time))).all() == [None]


async def test_a_refreshed_session_still_expires(
    db: Database, identity: Any, register: Register, sign_in: SignIn
) -> None:
    await register()
    first = await sign_in()
    async with db.begin() as tx:
        await tx.execute(text("UPDATE sessions SET expire_time = now() + interval '1 day'"))
    second = await refresh(identity, first.refresh_token)
    async with db() as tx:
        latest = select(RefreshToken.expire_time).where(RefreshToken.used_time.is_(None))
        assert await tx.scalar(latest) == await tx.scalar(select(Session.expire_time))
    async with db.begin() as tx:
        await tx.execute(text("UPDATE sessions SET expire_time = now() - interval '1 second'"))
    await assert_refused(refresh(identity, second.refresh_token))


async def test_no_statement_of_a_cleanup_deletes_more_rows_than_its_batch(
    db: Database, identity: Any, register: Register, sign_in: SignIn
) -> None:
    """A session can have thousands of tokens; a statement that deleted all of them would exceed its time limit."""
    await register()
    ended, live = await sign_in(), await sign_in()
    for _ in range(4):
        ended = await refresh(identity, ended.refresh_token)
    async with db.begin() as tx:
        of_ended = select(RefreshToken.session_id).where(RefreshToken.hash == tokens.digest(ended.refresh_token))
        ended_id = await tx.scalar(of_ended)
        await tx.execute(text("UPDATE sessions SET expire_time = now() WHERE id = :id"), {"id": ended_id})
    count = text("SELECT (SELECT count(*) FROM sessions) + (SELECT count(*) FROM refresh_tokens)")
    rows = [7 + 1]
    for job in sessions.CLEANUPS * 3:
        async with db.begin() as tx:
            await tx.execute(text(job.statement), {"most": 2})
            rows.append(await tx.scalar(count) or 0)

    assert max(before - after for before, after in pairwise(rows)) == 2
    assert rows[-1] == 2
    await refresh(identity, live.refresh_token)


async def test_logging_out_ends_the_session_and_can_be_repeated(
    identity: Any, register: Register, sign_in: SignIn
) -> None:
    await register()
    first = await sign_in()
    second = await refresh(identity, first.refresh_token)
    for token in (second.refresh_token, second.refresh_token, "unknown"):
        await identity.Logout(pb.LogoutRequest(refresh_token=token))
    await assert_refused(refresh(identity, second.refresh_token))


async def test_refresh_tokens_are_stored_as_hashes_only(db: Database, register: Register, sign_in: SignIn) -> None:
    await register()
    token = (await sign_in()).refresh_token
    assert len(base64.urlsafe_b64decode(token + "=")) == 32
    async with db() as tx:
        stored = str((await tx.execute(text("SELECT t::text, encode(hash, 'escape') FROM refresh_tokens t"))).all())
    assert token not in stored
    assert token.encode().hex() not in stored


async def test_a_forged_expired_or_foreign_access_token_is_refused(
    identity: Any, replica: Replica, register: Register, sign_in: SignIn
) -> None:
    user = await register()
    good = (await sign_in()).access_token
    header, payload, signature = good.split(".")
    claims = jwt.decode(good, options={"verify_signature": False})
    async with replica.db() as tx:
        row = (await tx.scalars(select(SigningKey))).one()
    ours = replica.sealer.open(row.sealed_private_key)
    anothers = ec.generate_private_key(ec.SECP256R1())

    def signed(key: Any = ours, algorithm: str = "ES256", **changed: Any) -> str:
        return jwt.encode({**claims, **changed}, key, algorithm=algorithm, headers={"kid": row.kid})

    await me(identity, signed())
    flipped = ("A" if signature[0] != "A" else "B") + signature[1:]
    for token in (
        f"{header}.{payload}.{flipped}",
        f"{header}.{payload}.",
        signed(anothers),
        signed(None, "none"),
        with_shared_secret(claims, row),
        signed(exp=claims["iat"] - 60),
        signed(iss="https://elsewhere.example"),
        signed(aud="elsewhere"),
        signed(sub="not an id"),
        foreign.access_token(uuid.UUID(user.id)),
        "",
        "nonsense",
    ):
        await assert_refused(me(identity, token))
    await assert_refused(identity.GetMe(pb.GetMeRequest()))


async def test_a_token_of_a_deleted_account_is_refused(
    db: Database, identity: Any, register: Register, sign_in: SignIn
) -> None:
    await register()
    tokens = await sign_in()
    async with db.begin() as tx:
        await tx.execute(text("DELETE FROM users"))
    await assert_refused(me(identity, tokens.access_token))
    await assert_refused(refresh(identity, tokens.refresh_token))


async def test_a_full_password_queue_refuses_calls_before_a_statement(
    replica: Replica, passwords: Any, register: Register, sign_in: SignIn
) -> None:
    passwords._limiter._mean = 60.0  # nobody waits for that long
    while passwords._limiter.take_free():
        pass
    before = REGISTRY.get_sample_value("stampede_sql_statements_total", {"cause": "call"})
    for call in (register(), sign_in()):
        refused = await refusal(call)
        assert (refused.code, refused.reason, refused.retry_seconds) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED", 1)
    assert REGISTRY.get_sample_value("stampede_sql_statements_total", {"cause": "call"}) == before


@pytest.mark.usefixtures("full_pool")
async def test_concurrent_replicas_create_one_key(db: Database) -> None:
    replicas = [Replica(db, Keyring(LIFETIMES), KeySealer("a secret for keys")) for _ in range(6)]
    await asyncio.gather(*(replica.follow_keys() for replica in replicas))
    assert len({await replica.keyring.jwks() for replica in replicas}) == 1
    async with db() as tx:
        assert len((await tx.scalars(select(SigningKey))).all()) == 1


async def test_a_new_key_is_published_before_it_signs(
    db: Database, identity: Any, replica: Replica, register: Register, sign_in: SignIn
) -> None:
    async def age(interval: str) -> None:
        async with db.begin() as tx:
            await tx.execute(
                text("""
                    UPDATE signing_keys
                    SET sign_from = sign_from - CAST(:by AS interval), retire_time = retire_time - CAST(:by AS interval)
                """),
                {"by": interval},
            )
        await replica.follow_keys()

    await register()
    before = (await sign_in()).access_token
    assert set(await jwks(identity)) == {kid(before)}

    await age("29 days 23 hours 30 minutes")
    during = (await sign_in()).access_token
    published = await jwks(identity)
    assert kid(during) == kid(before)
    assert len(published) == 2

    await age("1 hour")
    after = (await sign_in()).access_token
    assert kid(after) != kid(before)
    assert set(await jwks(identity)) == set(published) == {kid(before), kid(after)}
    for token in (before, during, after):
        await me(identity, token)

    await age("3 hours")  # the last token of the first key has expired
    assert set(await jwks(identity)) == {kid(after)}


@pytest.mark.usefixtures("full_pool")
async def test_concurrent_rotations_create_one_key(db: Database) -> None:
    replicas = [Replica(db, Keyring(LIFETIMES), KeySealer("a secret for keys")) for _ in range(5)]
    await replicas[0].follow_keys()
    async with db.begin() as tx:
        await tx.execute(text("UPDATE signing_keys SET sign_from = sign_from - interval '31 days'"))
    await asyncio.gather(*(replica.follow_keys() for replica in replicas))
    async with db() as tx:
        assert len((await tx.scalars(select(SigningKey))).all()) == 2


async def test_a_private_key_cannot_be_read_from_the_table(db: Database, replica: Replica) -> None:
    async with db() as tx:
        row = (await tx.scalars(select(SigningKey))).one()
    assert b"PRIVATE KEY" not in row.sealed_private_key
    assert "sealed" not in repr(row)
    assert "d" not in row.public_jwk
    with pytest.raises(WrongSecret):
        KeySealer("another secret").open(row.sealed_private_key)


async def test_a_replaced_secret_opens_old_keys_and_seals_new_ones(db: Database) -> None:
    """KEY_SECRET is rotated as `new,old`: no key is lost, and `old` can go once its last key has retired."""
    old, both, new = KeySealer("old secret"), KeySealer("new secret", "old secret"), KeySealer("new secret")
    before, after = Replica(db, Keyring(LIFETIMES), old), Replica(db, Keyring(LIFETIMES), both)
    await before.follow_keys()
    await after.follow_keys()
    assert await after.keyring.jwks() == await before.keyring.jwks()

    async with db.begin() as tx:
        await tx.execute(text("UPDATE signing_keys SET sign_from = sign_from - interval '31 days'"))
    await after.follow_keys()
    async with db() as tx:
        first, second = (await tx.scalars(select(SigningKey).order_by(SigningKey.sign_from))).all()
    for sealer, row in ((old, first), (both, first), (both, second), (new, second)):
        assert sealer.open(row.sealed_private_key)
    for sealer, row in ((new, first), (old, second)):
        with pytest.raises(WrongSecret, match="KEY_SECRET"):
            sealer.open(row.sealed_private_key)


async def test_a_process_with_another_secret_creates_no_key(db: Database, replica: Replica) -> None:
    async with db.begin() as tx:
        await tx.execute(text("UPDATE signing_keys SET sign_from = sign_from - interval '31 days'"))
    with pytest.raises(WrongSecret):
        await keys.rotate_keys(db, KeySealer("another secret"), LIFETIMES)
    async with db() as tx:
        assert len((await tx.scalars(select(SigningKey))).all()) == 1


async def test_a_key_never_shows_its_private_part(replica: Replica) -> None:
    (key,) = replica.keyring._keys.values()
    assert isinstance(key, Key)
    assert "BEGIN" not in repr(key)


async def test_token_of_a_withdrawn_key_is_refused_although_it_was_verified_before(
    db: Database, identity: Any, replica: Replica, gatekeeper: Gatekeeper, register: Register, sign_in: SignIn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Verified tokens are remembered until they expire; a stolen key must be forgotten at once."""
    monkeypatch.setattr(access, "_REFETCH_SECONDS", 0.01)
    await register()
    old = (await sign_in()).access_token
    await me(identity, old)
    following = asyncio.create_task(gatekeeper.follow_keys())
    try:
        kid_, others = await keys.publish_replacement(db, replica.sealer, lead_seconds=0)
        await keys.load_keys(db, replica.sealer, replica.keyring)
        await me(identity, old)  # nobody has withdrawn or rotated the key that signed it
        await keys.withdraw_others(db, kid_)
        await keys.load_keys(db, replica.sealer, replica.keyring)
        new = (await sign_in()).access_token
        assert (kid(new), [kid(old)]) == (kid_, others)

        async def is_refused() -> bool:
            try:
                await me(identity, old)
            except grpc.aio.AioRpcError as error:
                return error.code() is grpc.StatusCode.UNAUTHENTICATED
            return False

        await until(is_refused)
        await me(identity, new)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_key_is_replaced_only_with_the_secret_of_the_replicas(db: Database, replica: Replica) -> None:
    with pytest.raises(WrongSecret):
        await keys.publish_replacement(db, KeySealer("another secret"), lead_seconds=0)
    async with db() as tx:
        assert len((await tx.scalars(select(SigningKey))).all()) == 1
