"""Registration, sign-in, and the signed-in user."""

import asyncio
import contextlib
import hashlib
import uuid
from typing import Any

import bcrypt
import grpc
import pytest
from google.protobuf.json_format import MessageToJson
from sqlalchemy import func, select, text
from structlog.testing import capture_logs

from services.chassis import request_context
from services.chassis.data.db import Database
from services.chassis.request_context import Call
from services.identity import actions
from services.identity.domain import FIRST_ADMIN, EmailTaken
from services.identity.passwords import Passwords
from services.identity.sql.schema import User
from stampede.identity.v1 import identity_service_pb2 as pb
from tests.integration.identity.conftest import PASSWORD, Register, SignIn, bearer
from tests.support.serving import refusal


async def test_a_registered_user_can_sign_in_and_get_themself(
    identity: Any, register: Register, sign_in: SignIn
) -> None:
    user = await register("Ada@Example.com", display_name="Ada")
    assert uuid.UUID(user.id).version == 7
    assert (user.email, user.display_name, list(user.roles), user.email_verified) == (
        "ada@example.com", "Ada", ["customer"], False,
    )  # fmt: skip
    assert user.HasField("create_time")
    tokens = await sign_in("ADA@example.COM")
    assert (tokens.token_type, tokens.expires_in) == ("Bearer", 900)
    assert await identity.GetMe(pb.GetMeRequest(), metadata=bearer(tokens.access_token)) == user


async def test_an_address_is_taken_in_upper_and_lower_case(identity: Any, register: Register) -> None:
    await register("ada@example.com")
    refused = await refusal(register("ADA@Example.com"))
    assert (refused.code, refused.reason, refused.domain) == ("ALREADY_EXISTS", "EMAIL_TAKEN", "identity.stampede")


async def test_refused_registration_makes_nobody_familiar(db: Database, passwords: Passwords) -> None:
    """Else whoever registers the address of somebody else would pass others with guesses of its password."""

    async def is_familiar_after_registering(address: str) -> bool:
        request_context.enter(Call("/m", "r", metadata={"x-envoy-external-address": address}))
        with contextlib.suppress(EmailTaken):
            await actions.register(db, passwords, email="ada@example.com", password=PASSWORD, display_name="", key=None)
        return passwords._familiar.pair("ada@example.com") in passwords._familiar

    assert await asyncio.create_task(is_familiar_after_registering("192.0.2.1"))
    assert not await asyncio.create_task(is_familiar_after_registering("192.0.2.2"))


async def test_sign_in_makes_its_network_address_familiar(
    identity: Any, passwords: Passwords, register: Register
) -> None:
    await register("ada@example.com")
    for password, familiar in (("a wrong password", 0), (PASSWORD, 1)):
        request = pb.LoginRequest(email="ada@example.com", password=password)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await identity.Login(request, metadata=(("x-envoy-external-address", "192.0.2.1"),))
        assert len(passwords._familiar._pairs) == familiar


@pytest.mark.usefixtures("full_pool")
async def test_exactly_one_of_many_registrations_of_an_address_succeeds(db: Database, register: Register) -> None:
    spellings = ["ada@example.com", "Ada@example.com", "ADA@EXAMPLE.COM", "ada@Example.com"] * 3
    outcomes = await asyncio.gather(*(register(email) for email in spellings), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert [error.code() for error in refused] == [grpc.StatusCode.ALREADY_EXISTS] * 11
    async with db() as tx:
        assert await tx.scalar(select(func.count()).select_from(User)) == 1


@pytest.mark.usefixtures("full_pool")
async def test_a_repeated_registration_returns_the_first_user(db: Database, register: Register) -> None:
    request_id = str(uuid.uuid4())
    users = await asyncio.gather(*(register(request_id=request_id) for _ in range(5)))
    assert len({user.id for user in users}) == 1
    for other in ({"email": "eve@example.com"}, {"password": "another password"}, {"display_name": "Eve"}):
        refused = await refusal(register(**other, request_id=request_id))
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")


async def test_the_stored_digest_of_a_registration_is_keyed(db: Database, register: Register) -> None:
    """The digest covers the password. With a plain hash, a reader of the table could try passwords."""
    await register(request_id=str(uuid.uuid4()))
    content = pb.RegisterRequest(email="ada@example.com", password=PASSWORD).SerializeToString(deterministic=True)
    async with db() as tx:
        assert await tx.scalar(text("SELECT digest FROM requests")) != hashlib.sha256(content).digest()


async def test_a_wrong_password_and_an_unknown_address_get_the_same_answer(register: Register, sign_in: SignIn) -> None:
    await register()
    wrong = await refusal(sign_in(password="wrong horse"))
    unknown = await refusal(sign_in("nobody@example.com"))
    for refused in (wrong, unknown):
        assert (refused.code, refused.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
        assert refused.message == "The e-mail address or the password is wrong."
        assert not refused.metadata


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"email": "not an address"}, "email"),
        ({"email": "a" * 250 + "@example.com"}, "email"),
        ({"email": ""}, "email"),
        ({"password": "short"}, "password"),
        ({"password": "ä" * 37}, "password"),
        ({"display_name": "x" * 101}, "displayName"),
        ({"display_name": "nul\0"}, "displayName"),
        ({"request_id": "x"}, "requestId"),
    ],
)
async def test_an_invalid_registration_names_its_field(register: Register, fields: dict[str, Any], named: str) -> None:
    refused = await refusal(register(**fields))
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")
    assert set(refused.fields) == {named}


async def test_a_malformed_sign_in_is_refused(sign_in: SignIn) -> None:
    assert (await refusal(sign_in("nul\0@example.com"))).fields == ["email"]
    assert (await refusal(sign_in(password="ä" * 37))).fields == ["password"]
    assert (await refusal(sign_in("not an address"))).code == "UNAUTHENTICATED"
    assert (await refusal(sign_in(password="nul\0 in it"))).fields == ["password"]


async def test_passwords_are_in_no_answer_no_log_and_no_table(
    db: Database, register: Register, sign_in: SignIn, capsys: pytest.CaptureFixture[str]
) -> None:
    with capture_logs() as logs:
        answers = [MessageToJson(await register()), MessageToJson(await sign_in())]
        for failing in (register(), sign_in(password=PASSWORD + "!")):
            answers.append(str(vars(await refusal(failing))))
    out = capsys.readouterr()
    async with db() as tx:
        stored = str((await tx.execute(text("SELECT users::text FROM users"))).all())
        user = (await tx.scalars(select(User))).one()
    assert "ada@example.com" in stored
    for place in (*answers, str(logs), out.out, out.err, stored, repr(user)):
        assert PASSWORD not in place
    for place in (*answers, str(logs), repr(user)):
        assert user.password_hash not in place


async def test_a_sign_in_replaces_a_hash_of_other_rounds(db: Database, register: Register, sign_in: SignIn) -> None:
    await register()
    old = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(5)).decode()
    async with db.begin() as tx:
        await tx.execute(text("UPDATE users SET password_hash = :old"), {"old": old})
    await sign_in()
    async with db() as tx:
        assert (await tx.scalars(select(User.password_hash))).one().startswith("$2b$04$")
    await sign_in()


@pytest.mark.usefixtures("full_pool")
async def test_concurrent_replicas_create_one_first_administrator(
    db: Database, passwords: Passwords, sign_in: SignIn
) -> None:
    await asyncio.gather(*(actions.ensure_first_admin(db, passwords, PASSWORD) for _ in range(8)))
    await actions.ensure_first_admin(db, passwords, "a password set later")
    async with db() as tx:
        admin = (await tx.scalars(select(User))).one()
    assert (admin.email, admin.roles) == (FIRST_ADMIN, ["admin"])
    await sign_in(FIRST_ADMIN, PASSWORD)
    assert (await refusal(sign_in(FIRST_ADMIN, "a password set later"))).code == "UNAUTHENTICATED"


async def test_a_missing_first_administrator_is_logged_as_a_warning(db: Database, passwords: Passwords) -> None:
    with capture_logs() as logs:
        await actions.ensure_first_admin(db, passwords, None)
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert "ADMIN_PASSWORD" in logs[0]["event"]
    async with db() as tx:
        assert (await tx.scalars(select(User))).all() == []
