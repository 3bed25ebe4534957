"""Handlers of identity: parse the request, call one action, build the response."""

import dataclasses
import hashlib
import hmac
from typing import Any

import grpc
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.empty_pb2 import Empty

from services.chassis import request_context
from services.chassis.data.db import Database
from services.chassis.request_context import RequestKey
from services.chassis.server import wire
from services.identity import actions
from services.identity.actions import TokenPair
from services.identity.passwords import Passwords
from services.identity.sql.schema import User
from services.identity.tokens import Keyring
from stampede.identity.v1 import identity_service_pb2 as pb
from stampede.identity.v1 import identity_service_pb2_grpc as pb_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class IdentityService(pb_grpc.IdentityServiceServicer):
    def __init__(self, db: Database, passwords: Passwords, keyring: Keyring, *, pepper: bytes) -> None:
        self._db, self._passwords, self._keyring, self._pepper = db, passwords, keyring, pepper

    async def Register(self, request: pb.RegisterRequest, context: Context) -> pb.RegisterResponse:
        user = await actions.register(
            self._db, self._passwords, email=request.email, password=request.password,
            display_name=request.display_name, key=self._request_key(request),
        )  # fmt: skip
        return pb.RegisterResponse(user=to_proto(user))

    async def Login(self, request: pb.LoginRequest, context: Context) -> pb.Tokens:
        pair = await actions.login(
            self._db, self._passwords, self._keyring, email=request.email, password=request.password
        )
        return self._tokens(pair)

    async def Refresh(self, request: pb.RefreshRequest, context: Context) -> pb.Tokens:
        return self._tokens(await actions.refresh(self._db, self._keyring, refresh_token=request.refresh_token))

    async def Logout(self, request: pb.LogoutRequest, context: Context) -> Empty:
        await actions.logout(self._db, refresh_token=request.refresh_token)
        return Empty()

    async def GetMe(self, request: pb.GetMeRequest, context: Context) -> pb.User:
        return to_proto(await actions.get_user(self._db, request_context.user_id()))

    async def GetJwks(self, request: pb.GetJwksRequest, context: Context) -> HttpBody:
        return HttpBody(content_type="application/json", data=await self._keyring.jwks())

    def _tokens(self, pair: TokenPair) -> pb.Tokens:
        return pb.Tokens(
            access_token=pair.access_token,
            refresh_token=pair.refresh_token,
            token_type="Bearer",  # noqa: S106  # the name of a scheme, not a secret
            expires_in=self._keyring.lifetimes.access_seconds,
        )

    def _request_key(self, request: pb.RegisterRequest) -> RequestKey | None:
        """Key the stored digest: it covers the password, and a plain hash could be searched far faster than bcrypt."""
        key = request_context.request_key(request)
        return key and dataclasses.replace(key, digest=hmac.digest(self._pepper, key.digest, hashlib.sha256))


def to_proto(user: User) -> pb.User:
    return pb.User(
        id=str(user.id),
        email=user.email,
        display_name=user.display_name,
        roles=user.roles,
        email_verified=user.email_verified,
        create_time=wire.timestamp(user.create_time),
    )
