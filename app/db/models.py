"""Every table of the state database.

They stand together because the migrations need all of them; each domain's repository is the only code that touches its own.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, JsonObject, UtcDateTime


class ApiKeyRow(Base):
    """An API key; its text is kept only as a SHA-256 digest."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    role: Mapped[str] = mapped_column(String(16))
    environments: Mapped[list[str]] = mapped_column(JsonObject, default=lambda: ["*"])
    prefix: Mapped[str] = mapped_column(String(16))
    key_hash: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class BrowserSessionRow(Base):
    """A browser's session: of an API key, and no stronger or longer-lived than it, or of a user of the OIDC provider."""

    __tablename__ = "browser_sessions"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    api_key_id: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"), index=True)
    subject: Mapped[str | None] = mapped_column(String(255))
    name: Mapped[str | None] = mapped_column(String(255))
    role: Mapped[str | None] = mapped_column(String(16))
    environments: Mapped[list[str] | None] = mapped_column(JsonObject)
    kind: Mapped[str] = mapped_column(String(8), default="key")
    client_address: Mapped[str] = mapped_column(String(64), default="")
    user_agent: Mapped[str] = mapped_column(String(255), default="")
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
    quiet_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revived_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    token_id: Mapped[str | None] = mapped_column(String(36), index=True)


class EventRow(Base):
    """One event of the timeline. No foreign keys: evidence outlives what it speaks of."""

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_time", "time_unix_nano", "id"),
        Index("ix_events_instance_time", "instance_id", "time_unix_nano"),
        Index("ix_events_agent_time", "agent_id", "time_unix_nano"),
        Index("ix_events_name_time", "name", "time_unix_nano"),
        Index("ix_events_environment_time", "environment_name", "time_unix_nano"),
        Index("ix_events_errors", "time_unix_nano", "id", sqlite_where=text("severity >= 17"), postgresql_where=text("severity >= 17")),
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


class DeploymentStepRow(Base):
    """A step that a deployment of an agent has reached on some host: downloaded, installed, enrolled, first metric; or why it failed."""

    __tablename__ = "deployment_steps"
    __table_args__ = (Index("ix_deployment_steps_agent_time", "agent_id", "time"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    agent_id: Mapped[str] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"))
    step: Mapped[str] = mapped_column(String(32))
    host: Mapped[str] = mapped_column(String(255))
    check: Mapped[str] = mapped_column(String(100))
    reason: Mapped[str] = mapped_column(Text)
    client_address: Mapped[str] = mapped_column(String(64))
    time: Mapped[datetime] = mapped_column(UtcDateTime)


class SignInLinkRow(Base):
    """A link that signs a browser in once, with no more than the rights of the key that made it."""

    __tablename__ = "sign_in_links"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class AuditRow(Base):
    """One act that changed something, or was refused. Rows are only ever added. No foreign keys: evidence outlives what it speaks of."""

    __tablename__ = "audit_log"
    __table_args__ = (
        Index("ix_audit_log_time", "time", "id"),
        Index("ix_audit_log_actor_time", "actor_id", "time"),
        Index("ix_audit_log_action_time", "action", "time"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    time: Mapped[datetime] = mapped_column(UtcDateTime)
    actor_kind: Mapped[str] = mapped_column(String(16))
    actor_id: Mapped[str] = mapped_column(String(255))
    actor_name: Mapped[str] = mapped_column(String(255))
    action: Mapped[str] = mapped_column(String(64))
    target_kind: Mapped[str] = mapped_column(String(32))
    target_id: Mapped[str] = mapped_column(String(255))
    target_name: Mapped[str] = mapped_column(String(255))
    environment_name: Mapped[str | None] = mapped_column(String(63))
    before: Mapped[dict[str, Any] | None] = mapped_column(JsonObject)
    after: Mapped[dict[str, Any] | None] = mapped_column(JsonObject)
    outcome: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text)
    client_address: Mapped[str] = mapped_column(String(64))
    user_agent: Mapped[str] = mapped_column(String(255))


class IdempotencyRow(Base):
    """The answer to a request that carried an idempotency key, given again when the request is repeated."""

    __tablename__ = "idempotency_keys"

    actor_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    route: Mapped[str] = mapped_column(String(255))
    request_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    status_code: Mapped[int | None] = mapped_column()
    response: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class MaintenanceWindowRow(Base):
    """A time in which the events of some instances are muted."""

    __tablename__ = "maintenance_windows"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    selector: Mapped[dict[str, Any]] = mapped_column(JsonObject)
    starts_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ends_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    created_by: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class SavedViewRow(Base):
    """A page's filters under a name, for everybody."""

    __tablename__ = "saved_views"
    __table_args__ = (UniqueConstraint("page", "name"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    page: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(100))
    query: Mapped[dict[str, Any]] = mapped_column(JsonObject)
    created_by: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class GroupRow(Base):
    """A label selector with a configuration; where several groups give a key, the one of the highest priority wins."""

    __tablename__ = "groups"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    description: Mapped[str] = mapped_column(Text)
    selector: Mapped[dict[str, Any]] = mapped_column(JsonObject)
    priority: Mapped[int] = mapped_column()
    version: Mapped[int] = mapped_column()
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ConfigRevisionRow(Base):
    """One state of the configuration of a group or of one agent; the highest revision is the current one."""

    __tablename__ = "config_revisions"

    scope_kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    scope_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    config: Mapped[dict[str, Any]] = mapped_column(JsonObject)
    comment: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class InstanceConfigRow(Base):
    """How the configuration that is meant for an instance fares there."""

    __tablename__ = "instance_configs"

    instance_id: Mapped[str] = mapped_column(ForeignKey("instances.id", ondelete="CASCADE"), primary_key=True)
    config_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    config: Mapped[dict[str, Any]] = mapped_column(JsonObject)
    applied_config: Mapped[dict[str, Any]] = mapped_column(JsonObject)
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text)
    offered_at: Mapped[datetime] = mapped_column(UtcDateTime)
    reported_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class WebhookEndpointRow(Base):
    """Where events are delivered to, which ones, and under which secrets (encrypted with the platform's key)."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    url: Mapped[str] = mapped_column(Text)
    template: Mapped[str] = mapped_column(String(16))
    filters: Mapped[dict[str, Any]] = mapped_column(JsonObject)
    secret: Mapped[bytes] = mapped_column(LargeBinary)
    previous_secret: Mapped[bytes | None] = mapped_column(LargeBinary)
    previous_secret_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    enabled: Mapped[bool] = mapped_column()
    failures: Mapped[int] = mapped_column()
    open_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    version: Mapped[int] = mapped_column()
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class WebhookDeliveryRow(Base):
    """The outbox: an event that an endpoint is to be told, written in the event's own transaction."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        UniqueConstraint("endpoint_id", "event_id", "replay"),
        Index("ix_webhook_deliveries_due", "status", "next_attempt_at"),
        Index("ix_webhook_deliveries_order", "endpoint_id", "ordering_key", "sequence"),
        Index("ix_webhook_deliveries_log", "endpoint_id", "sequence", "id"),
        Index("ix_webhook_deliveries_log_by_status", "status", "endpoint_id", "sequence", "id"),
        Index("ix_webhook_deliveries_sequence", "sequence", "id"),
        Index("ix_webhook_deliveries_event", "event_id"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    event_id: Mapped[str] = mapped_column(String(64))
    replay: Mapped[int] = mapped_column()
    ordering_key: Mapped[str] = mapped_column(String(64))
    sequence: Mapped[int] = mapped_column(BigInteger)
    message: Mapped[dict[str, Any]] = mapped_column(JsonObject)
    status: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column()
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    next_attempt_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class WebhookAttemptRow(Base):
    """One try of a delivery: what was sent, what came back, how long it took."""

    __tablename__ = "webhook_attempts"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    delivery_id: Mapped[str] = mapped_column(ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), index=True)
    time: Mapped[datetime] = mapped_column(UtcDateTime)
    latency_ms: Mapped[float] = mapped_column()
    status_code: Mapped[int | None] = mapped_column()
    error: Mapped[str] = mapped_column(Text)
    request_headers: Mapped[dict[str, Any]] = mapped_column(JsonObject)
    response_body: Mapped[str] = mapped_column(Text)
