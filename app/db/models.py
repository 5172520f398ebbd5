"""Every table of the state database.

They stand together because the migrations need all of them; each domain's repository is the only code that touches its own.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, JsonObject, UtcDateTime


class ApiKeyRow(Base):
    """An API key; its text is kept only as a SHA-256 digest."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    role: Mapped[str] = mapped_column(String(16))
    prefix: Mapped[str] = mapped_column(String(16))
    key_hash: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class BrowserSessionRow(Base):
    """A browser's session, opened with an API key and no stronger or longer-lived than it."""

    __tablename__ = "browser_sessions"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)


class AgentRow(Base):
    """What one provisioning created."""

    __tablename__ = "agents"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    agent_type: Mapped[str] = mapped_column(String(32))
    environment_name: Mapped[str] = mapped_column(String(63), index=True)
    config: Mapped[dict[str, Any]] = mapped_column(JsonObject)
    labels: Mapped[dict[str, str]] = mapped_column(JsonObject)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class EnrolmentTokenRow(Base):
    """A token that enrols instances of one agent; kept as a digest, recognised in lists by its prefix."""

    __tablename__ = "enrolment_tokens"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    agent_id: Mapped[str] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"), index=True)
    prefix: Mapped[str] = mapped_column(String(96))
    token_hash: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    max_uses: Mapped[int] = mapped_column()
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class TokenUseRow(Base):
    """A machine (or a cluster) that a token has enrolled. The same one again is free."""

    __tablename__ = "token_uses"

    token_id: Mapped[str] = mapped_column(ForeignKey("enrolment_tokens.id", ondelete="CASCADE"), primary_key=True)
    machine: Mapped[str] = mapped_column(String(200), primary_key=True)
    used_at: Mapped[datetime] = mapped_column(UtcDateTime)


class InstanceRow(Base):
    """One running process of an agent, as last told and last judged."""

    __tablename__ = "instances"
    __table_args__ = (UniqueConstraint("credential_hash"), UniqueConstraint("candidate_hash"))

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    agent_id: Mapped[str] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"), index=True)
    fingerprint: Mapped[str] = mapped_column(String(200), index=True)
    name: Mapped[str] = mapped_column(String(255))
    version: Mapped[str] = mapped_column(String(64))
    resource: Mapped[dict[str, Any]] = mapped_column(JsonObject)
    effective_config: Mapped[dict[str, Any]] = mapped_column(JsonObject)
    components: Mapped[list[dict[str, Any]]] = mapped_column(JsonObject)
    healthy: Mapped[bool | None] = mapped_column()
    last_error: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16))
    status_reason: Mapped[str] = mapped_column(Text)
    status_since: Mapped[datetime] = mapped_column(UtcDateTime)
    first_seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_seen_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    good_beats: Mapped[int] = mapped_column()
    said_goodbye: Mapped[bool] = mapped_column()
    credential_hash: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    candidate_hash: Mapped[bytes | None] = mapped_column(LargeBinary(32))


class EventRow(Base):
    """One event of the timeline. No foreign keys: evidence outlives what it speaks of."""

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_time", "time_unix_nano", "id"),
        Index("ix_events_instance_time", "instance_id", "time_unix_nano"),
        Index("ix_events_agent_time", "agent_id", "time_unix_nano"),
        Index("ix_events_name_time", "name", "time_unix_nano"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    time_unix_nano: Mapped[int] = mapped_column(BigInteger)
    observed_time_unix_nano: Mapped[int] = mapped_column(BigInteger)
    severity: Mapped[int] = mapped_column()
    body: Mapped[str] = mapped_column(Text)
    attributes: Mapped[dict[str, Any]] = mapped_column(JsonObject)
    resource: Mapped[dict[str, Any]] = mapped_column(JsonObject)
    agent_id: Mapped[str | None] = mapped_column(String(36))
    instance_id: Mapped[str | None] = mapped_column(String(36))
    agent_type: Mapped[str | None] = mapped_column(String(32))
    environment_name: Mapped[str | None] = mapped_column(String(63))
