"""Identity behind the real guard, which accepts identity's own tokens."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from services.chassis.data.db import Database
from services.chassis.server.access import Gatekeeper, MeshIdentity
from services.chassis.server.guard import Guard
from services.chassis.server.registry import Registry
from services.identity import keys
from services.identity.domain import Lifetimes
from services.identity.passwords import Passwords
from services.identity.rpc import IdentityService
from services.identity.tokens import Keyring, KeySealer
from stampede.identity.v1 import identity_service_pb2 as pb
from stampede.identity.v1.identity_service_pb2_grpc import IdentityServiceStub, add_IdentityServiceServicer_to_server
from tests.support.databases import fill_pool
from tests.support.tokens import MESH_SECRET

PASSWORD = "correct horse battery"
LIFETIMES = Lifetimes()


@dataclass
class Replica:
    """The parts of one process of identity."""

    db: Database
    keyring: Keyring
    sealer: KeySealer

    async def follow_keys(self) -> None:
        await keys.rotate_keys(self.db, self.sealer, LIFETIMES)
        await keys.load_keys(self.db, self.sealer, self.keyring)


@pytest.fixture
async def db(database: Callable[[str], Awaitable[Database]]) -> Database:
    return await database("identity")


@pytest.fixture
async def full_pool(db: Database) -> None:
    await fill_pool(db)


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    passwords = Passwords(rounds=4)
    yield passwords
    passwords.close()


@pytest.fixture
async def replica(db: Database) -> Replica:
    replica = Replica(db, Keyring(LIFETIMES), KeySealer("a secret for keys"))
    await replica.follow_keys()
    return replica


@pytest.fixture
def gatekeeper(replica: Replica) -> Gatekeeper:
    return Gatekeeper(MeshIdentity("identity", MESH_SECRET), replica.keyring.jwks)


@pytest.fixture
async def channel(
    db: Database, passwords: Passwords, replica: Replica, gatekeeper: Gatekeeper
) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    service = IdentityService(db, passwords, replica.keyring, pepper=b"a pepper of 32 bytes for digests")
    add_IdentityServiceServicer_to_server(service, Registry(Guard("identity", gatekeeper), server))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(grace=None)


@pytest.fixture
def identity(channel: grpc.aio.Channel) -> Any:
    return IdentityServiceStub(channel)


Register = Callable[..., Awaitable[pb.User]]
SignIn = Callable[..., Awaitable[pb.Tokens]]


@pytest.fixture
def register(identity: Any) -> Register:
    async def register(email: str = "ada@example.com", password: str = PASSWORD, **fields: Any) -> pb.User:
        response = await identity.Register(pb.RegisterRequest(email=email, password=password, **fields))
        user: pb.User = response.user
        return user

    return register


@pytest.fixture
def sign_in(identity: Any) -> SignIn:
    async def sign_in(email: str = "ada@example.com", password: str = PASSWORD) -> pb.Tokens:
        tokens: pb.Tokens = await identity.Login(pb.LoginRequest(email=email, password=password))
        return tokens

    return sign_in


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)
