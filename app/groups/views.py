"""What the API and the pages show of groups and configurations."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.groups.precedence import Change, Explained, GivenValue, Source, plain
from app.groups.selectors import Selector
from app.groups.standing import ConfigStatus

ScopeKind = Literal["group", "agent"]


class GroupView(BaseModel):
    """A group."""

    id: str
    name: str
    description: str
    selector: Selector
    selector_text: str = Field(description="The selector as kubectl --selector takes it.")
    priority: int = Field(description="Where several groups set an option, the one of the highest priority wins.")
    version: int = Field(description="Goes up with each change of the group itself; the ETag.")
    revision: int = Field(description="Revision of its configuration; 0 before the first.")
    options: list[str] = Field(description="Options that its configuration sets.")
    instances: int = Field(description="Instances that it selects now, archived ones not counted.")
    created_at: datetime
    updated_at: datetime


class MemberView(BaseModel):
    """An instance, and how the configuration that is meant for it fares there."""

    instance_id: str
    name: str
    agent_id: str
    agent_type: str
    environment_name: str
    status: ConfigStatus = Field(
        description="none: nothing is meant for it; unsupported: it cannot be configured remotely; pending; offered; applying; applied: it "
        "runs with it and has collected with it; failed: it went back to its last good configuration; drifted: it reports other values."
    )
    reason: str = Field(description="Why it fares like that; empty where there is nothing to say.")


class PreviewView(BaseModel):
    """Whom a selector selects."""

    selector: Selector
    selector_text: str = Field(description="The selector as kubectl --selector takes it.")
    instances: int = Field(description="Instances that it selects now, archived ones not counted.")
    members: list[MemberView] = Field(description="The first of them, by environment and name.")


class RevisionView(BaseModel):
    """One state of the configuration of a group or of an agent."""

    revision: int
    config: dict[str, Any] = Field(description="Options and their values as they were with this revision.")
    comment: str = Field(description="Why, as whoever made it wrote.")
    actor: str = Field(description="Name of whoever made the change.")
    created_at: datetime


class ConfigurationView(BaseModel):
    """The current configuration of a group or of an agent."""

    scope_kind: ScopeKind
    scope_id: str
    name: str = Field(description="Name of the group, or of the agent's environment.")
    agent_types: list[str] = Field(description="Types whose options it may set.")
    revision: int = Field(description="Goes up with each change; the ETag. 0 before the first.")
    config: dict[str, Any] = Field(description="Options that it sets, and their values.")


class ChangeView(BaseModel):
    """An option whose value changes."""

    key: str = Field(description="Name of the option.")
    kind: Literal["added", "removed", "changed"]
    before: Any = None
    after: Any = None

    @classmethod
    def of(cls, change: Change) -> ChangeView:
        """The view of a change."""
        return cls(key=change.key, kind=change.kind, before=plain(change.before), after=plain(change.after))


class ConfigurationChangeView(ConfigurationView):
    """What a change of a configuration did, or with ``dry_run`` would do."""

    dry_run: bool = Field(description="Whether nothing was changed and this is what would be.")
    changes: list[ChangeView]
    instances: int = Field(description="Instances that it reaches, archived ones not counted.")


class SourceView(BaseModel):
    """Who gives a value: the default, provisioning, the host itself, a group, or the agent's own; earlier: what was applied before."""

    kind: Literal["default", "provisioned", "local", "earlier", "group", "agent"]
    name: str = ""
    id: str = ""
    revision: int | None = None

    @classmethod
    def of(cls, source: Source) -> SourceView:
        """The view of a source."""
        return cls(kind=source.kind, name=source.name, id=source.id, revision=source.revision)


class GivenView(BaseModel):
    """A value and who gives it."""

    value: Any
    source: SourceView

    @classmethod
    def of(cls, given: GivenValue) -> GivenView:
        """The view of a given value."""
        return cls(value=given.value, source=SourceView.of(given.source))


class OptionView(BaseModel):
    """One option of an instance: what it is, who says so, and what that overrides."""

    key: str = Field(description="Name of the option.")
    description: str
    unit: str = Field(description="Unit of the value, such as s for seconds; empty where it has none.")
    remote: bool = Field(description="Whether remote configuration can set it.")
    value: Any = Field(description="What the instance reports; before its first report, what it should be.")
    source: SourceView = Field(description="Who gives the value.")
    overrides: list[GivenView] = Field(description="Values that this one won over, the nearest first.")
    wanted: GivenView | None = Field(description="What it should be, where it is something else.")
    note: str = Field(description="Why it is something else.")

    @classmethod
    def of(cls, one: Explained) -> OptionView:
        """The view of an explained option."""
        return cls(
            key=one.option.name,
            description=one.option.description,
            unit=one.option.unit,
            remote=one.option.remote,
            value=one.value,
            source=SourceView.of(one.source),
            overrides=[GivenView.of(given) for given in one.overridden],
            wanted=GivenView.of(one.wanted) if one.wanted else None,
            note=one.note,
        )


class InstanceConfigurationView(MemberView):
    """Why an instance has the values that it has."""

    config: dict[str, Any] = Field(description="What groups and the agent's own configuration mean for it.")
    config_hash: str = Field(description="SHA-256 of that, in hexadecimal.")
    offered_at: datetime | None = Field(description="When the configuration was last offered to it; null before the first time.")
    reported_at: datetime | None = Field(description="When it last said how that fares; null before the first time.")
    groups: list[SourceView] = Field(description="Groups that it is in, the strongest first.")
    options: list[OptionView]


class BulkView(BaseModel):
    """What an act on several agents did."""

    agents: int = Field(description="Agents that were changed.")
    instances: int = Field(description="Instances that were changed.")
