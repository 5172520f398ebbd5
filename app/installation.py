"""What an installation of the platform is set to, keeps and does: its settings, storage, retention and background jobs."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field, SecretStr
from pydantic.fields import FieldInfo
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from app.background import Job
from app.platform import Platform
from app.settings import Settings
from connectors._version import __version__

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Address": ("host", "port", "public_url", "tls_", "trusted_proxies"),
    "Storage": ("data_dir", "database_url"),
    "Access": ("admin_api_key", "oidc_"),
    "Fleet": ("enrolment_", "heartbeat_", "archive_", "status_"),
    "Retention and space": ("metrics_", "events_", "audit_", "webhook_log_"),
    "Limits": ("max_", "query_"),
    "Webhooks": ("webhook_",),
    "Packages": ("package",),
    "Log": ("log_",),
}
"""Headings, each with the beginnings of the names that stand under it; the first that fits has a setting."""
OTHERS = "Other"

Kind = Literal["text", "number", "seconds", "bytes", "switch", "secret"]


class SettingView(BaseModel):
    """One setting in effect."""

    variable: str = Field(description="The environment variable that sets it.")
    value: str = Field(description="As it would be set; of a secret only whether it is: set, or not set.")
    kind: Kind
    source: Literal["default", "set"] = Field(description="Whether it was set, or is the default.")
    description: str


class SettingGroup(BaseModel):
    """Settings that belong together."""

    title: str
    settings: list[SettingView]


class StorageView(BaseModel):
    """What is kept, and how much room it takes. Sizes are bytes."""

    database: str = Field(description="sqlite or postgresql.")
    database_bytes: int
    metric_store_bytes: int
    metric_store_budget: int = Field(description="Bytes that the metric store may take; the oldest samples go when it takes more.")
    metric_series: int = Field(description="Series that the metric store holds.")
    metric_samples: int = Field(description="Samples that the metric store holds.")
    oldest_sample_at: datetime | None = Field(description="Null while there are none.")
    events: int = Field(description="Events on record.")
    oldest_event_at: datetime | None = Field(description="Null while there are none.")
    audit_entries: int
    oldest_audit_entry_at: datetime | None = Field(description="Null while there are none.")


class JobView(BaseModel):
    """A background job."""

    name: str
    interval: float = Field(description="Seconds between two runs.")
    runs: int = Field(description="Runs since the platform started.")
    last_run_at: datetime | None = Field(description="Null before its first run since the platform started.")
    next_run_at: datetime | None = Field(description="About when it runs again; null while it is under way for longer than its interval.")
    last_failure_at: datetime | None = Field(description="Null when it has not failed since the platform started.")
    failure: str = Field(description="Why the last run failed; empty when it did not.")


class InstallationView(BaseModel):
    """The platform's settings, storage and jobs."""

    version: str
    schema_revision: str = Field(description="The migration that the state database is at.")
    settings: list[SettingGroup]
    storage: StorageView
    jobs: list[JobView]


async def installation(platform: Platform, now: float) -> InstallationView:
    """The installation as it is at ``now``, seconds since the epoch.

    Raises:
        StorageError: the database or the metric store failed.
    """
    metrics = await platform.metrics.statistics()
    events, oldest_event = await platform.events.extent()
    entries, oldest_entry = await platform.audit.extent()
    storage = StorageView(
        database="sqlite" if platform.database.is_sqlite else "postgresql",
        database_bytes=await platform.database.size(),
        metric_store_bytes=metrics.disk_bytes,
        metric_store_budget=platform.settings.metrics_disk_budget,
        metric_series=metrics.series,
        metric_samples=metrics.samples,
        oldest_sample_at=None if metrics.oldest_ms is None else datetime.fromtimestamp(metrics.oldest_ms / 1000, UTC),
        events=events,
        oldest_event_at=oldest_event,
        audit_entries=entries,
        oldest_audit_entry_at=oldest_entry,
    )
    return InstallationView(
        version=__version__,
        schema_revision=await platform.database.revision(),
        settings=effective_settings(platform.settings),
        storage=storage,
        jobs=[_job(job, now) for job in platform.jobs.all()],
    )


def effective_settings(settings: Settings) -> list[SettingGroup]:
    """Every setting as it is in effect, under the headings of :data:`GROUPS`; those that are under none come last."""
    groups: dict[str, list[SettingView]] = {title: [] for title in (*GROUPS, OTHERS)}
    for name, field in Settings.model_fields.items():
        title = next((t for t, beginnings in GROUPS.items() if name.startswith(beginnings)), OTHERS)
        groups[title].append(
            SettingView(
                variable=f"{Settings.model_config.get('env_prefix', '')}{name.upper()}",
                value=_text(name, getattr(settings, name)),
                kind=_kind(name, field),
                source="set" if name in settings.model_fields_set else "default",
                description=field.description or "",
            )
        )
    return [SettingGroup(title=title, settings=found) for title, found in groups.items() if found]


def _text(name: str, value: Any) -> str:
    if isinstance(value, SecretStr):
        return "set" if value.get_secret_value() else "not set"
    if value is None:
        return ""
    if name == "database_url" and value:
        return _without_password(str(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        plain = {key: one.model_dump() if isinstance(one, BaseModel) else one for key, one in value.items()}
        return json.dumps(plain, ensure_ascii=False) if plain else ""
    return f"{value:g}" if isinstance(value, float) and value < 1e6 else f"{value:.0f}" if isinstance(value, float) else str(value)  # noqa: PLR2004 - from there on %g writes exponents


def _without_password(url: str) -> str:
    try:
        parts = make_url(url)
    except ArgumentError:
        return "set"
    shown = parts.set(query={}) if parts.query else parts  # a password may stand there, too
    return shown.render_as_string(hide_password=True)


def _kind(name: str, field: FieldInfo) -> Kind:
    annotation = field.annotation
    plain = {one for one in typing.get_args(annotation) if one is not types.NoneType} or {annotation}
    if SecretStr in plain:
        return "secret"
    if bool in plain:
        return "switch"
    if float in plain:
        return "seconds"
    if int in plain:
        return "bytes" if "bytes" in name or "disk_budget" in name else "number"
    return "text"


def _job(job: Job, now: float) -> JobView:
    following = (job.last_run if job.last_run is not None else job.started) + job.interval
    return JobView(
        name=job.name,
        interval=job.interval,
        runs=job.runs,
        last_run_at=_moment(job.last_run),
        next_run_at=_moment(max(following, now)) if following > now - job.interval else None,
        last_failure_at=_moment(job.last_failure),
        failure=job.failure,
    )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
