"""The mapped classes of identity's tables. `migrations/` creates the tables; a test compares the two."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, LargeBinary, Text, UniqueConstraint, func
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from services.chassis.data.db import Base

EMAIL_KEY = "users_email_key"


class User(Base):
    """An account."""

    __tablename__ = "users"
    __table_args__ = (
        UniqueConstraint("email", name=EMAIL_KEY),
        CheckConstraint("email = lower(email)", name="users_email_lower"),
        CheckConstraint("roles <@ ARRAY['customer', 'staff', 'admin']", name="users_roles"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    email: Mapped[str]
    password_hash: Mapped[str] = mapped_column(repr=False)
    display_name: Mapped[str]
    roles: Mapped[list[str]] = mapped_column(ARRAY(Text))
    email_verified: Mapped[bool]
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)


class Session(Base):
    """One sign-in and all refresh tokens that follow from it. A revoked session issues no more tokens."""

    __tablename__ = "sessions"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    expire_time: Mapped[datetime]
    revoke_time: Mapped[datetime | None] = mapped_column(init=False)


class RefreshToken(Base):
    """A refresh token, stored as its SHA-256 only: a reader of the table cannot use it."""

    __tablename__ = "refresh_tokens"

    hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    session_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    expire_time: Mapped[datetime]
    used_time: Mapped[datetime | None] = mapped_column(init=False)


class SigningKey(Base):
    """A key that signs tokens from `sign_from` until its successor does, and is published until `retire_time`."""

    __tablename__ = "signing_keys"

    kid: Mapped[str] = mapped_column(primary_key=True)
    public_jwk: Mapped[dict[str, Any]] = mapped_column(JSONB)
    sealed_private_key: Mapped[bytes] = mapped_column(LargeBinary, repr=False)
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    sign_from: Mapped[datetime]
    retire_time: Mapped[datetime | None] = mapped_column(default=None)
