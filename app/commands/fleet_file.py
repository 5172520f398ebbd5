"""The fleet file: groups, agents' own settings and webhooks as YAML, read strictly, with the line of everything that it refuses.

A file holds one or several documents; several files add up. What a list does not name is not touched, unless ``apply --prune`` says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, Field, JsonValue, ValidationError, field_validator, model_validator

from app.commands.output import CommandError
from app.errors import InvalidRequestError
from app.groups.selectors import Selector, check_labels, parse
from app.webhooks.guard import check_url

API_VERSION = "incident-rca/v1"
SEVERITIES: Mapping[str, int] = {"info": 9, "warn": 13, "error": 17, "fatal": 21}
_DEEPEST = 40
_MOST_NODES = 200_000

Path_ = tuple[int | str, ...]
Read = Callable[["Reference", Path], str | None]
_T = TypeVar("_T")


class _Strict(BaseModel):
    model_config = {"extra": "forbid", "strict": True, "frozen": True, "populate_by_name": True}


def _selector(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except InvalidRequestError as exc:
        raise ValueError(exc.errors[0].message) from exc


def _severity(value: object) -> object:
    if isinstance(value, str) and value not in SEVERITIES:
        raise ValueError(f"must be one of {', '.join(SEVERITIES)}, or OTel's number")
    return SEVERITIES[value] if isinstance(value, str) else value


Config = dict[str, JsonValue]
SelectorField = Annotated[Selector, BeforeValidator(_selector, json_schema_input_type=str | Selector)]
Severity = Annotated[
    int,
    Field(ge=1, le=24),
    BeforeValidator(
        _severity,
        json_schema_input_type=Literal["info", "warn", "error", "fatal"] | Annotated[int, Field(ge=1, le=24)],
    ),
]
_Pattern = Annotated[str, Field(min_length=1, max_length=200)]
_Patterns = Annotated[list[_Pattern], Field(max_length=100)]


class Reference(_Strict):
    """Where a text is that must not stand in the file: an environment variable, or a file (all of it but its last line end)."""

    env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    file: Annotated[str, Field(min_length=1)] | None = Field(None, description="Relative to the fleet file.")

    @model_validator(mode="after")
    def _names_one_place(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("must name either env or file")
        return self

    def __str__(self) -> str:
        """As it is shown in place of the text."""
        return f"${self.env}" if self.env else f"file {self.file}"


class GroupEntry(_Strict):
    """A group of instances."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")]
    description: Annotated[str, Field(max_length=1000)] = ""
    selector: SelectorField = Field(
        description="Whom it selects: text as kubectl --selector takes it, or matchLabels and matchExpressions; empty for everybody."
    )
    priority: Annotated[int, Field(ge=-1000, le=1000)] = Field(0, description="Where several groups set an option, the highest wins.")
    config: Config | None = Field(None, description="Its whole configuration. Left out, the configuration stays what it is.")

    @field_validator("name", "description")
    @classmethod
    def _trimmed(cls, text: str) -> str:
        return text.strip()


class AgentEntry(_Strict):
    """An agent that is provisioned already, by its environment (and its type, where the environment has several) or by its id."""

    environment: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    type: Annotated[str, Field(min_length=1, max_length=32)] | None = Field(None, description="Agent type, beside environment.")
    id: Annotated[str, Field(min_length=1, max_length=36)] | None = None
    labels: dict[str, str | None] | None = Field(None, description="Labels to set; null removes one. Others stay.")
    config: Config | None = Field(None, description="Its whole own configuration. Left out, that stays what it is.")

    @field_validator("labels")
    @classmethod
    def _usable(cls, labels: dict[str, str | None] | None) -> dict[str, str | None] | None:
        try:
            check_labels({key: value or "" for key, value in (labels or {}).items()})
        except InvalidRequestError as exc:
            raise ValueError("; ".join(f"{e.field.removeprefix('labels.')} {e.message}" for e in exc.errors)) from exc
        return labels

    @model_validator(mode="after")
    def _is_one_agent(self) -> Self:
        if (self.environment is None) == (self.id is None):
            raise ValueError("must name either environment (and type) or id")
        if self.id is not None and self.type is not None:
            raise ValueError("type belongs to environment, not to id")
        return self

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.id or (f"{self.environment} ({self.type})" if self.type else str(self.environment))


class FiltersEntry(_Strict):
    """Which events a webhook is told: those that pass each of these; an empty list lets everything pass."""

    event_types: _Patterns = Field([], description="Names of event types; * stands for any characters: irca.instance.*")
    environments: _Patterns = Field([], description="Names of environments, with * as above.")
    groups: _Patterns = Field([], description="Names of groups (or ids, of groups that are gone).")
    min_severity: Severity = Field(9, description="Least severity: info, warn, error, fatal, or OTel's number.")


class WebhookEntry(_Strict):
    """Where events are sent. Its secret is made by the platform and shown once, when the webhook is created."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    url: Annotated[str, Field(min_length=1, max_length=2000)] | None = Field(None, description="Where to POST, http or https.")
    url_from: Reference | None = Field(None, description="Where the URL is, for one that is a secret (Slack's are).")
    template: Literal["standard", "slack", "pagerduty"] = "standard"
    filters: FiltersEntry = Field(default_factory=lambda: FiltersEntry())  # noqa: PLW0108 - mypy cannot see the class as a factory
    enabled: bool = True
    routing_key_from: Reference | None = Field(None, description="Where PagerDuty's integration key is; for its template alone.")

    @field_validator("name")
    @classmethod
    def _trimmed(cls, text: str) -> str:
        return text.strip()

    @field_validator("url")
    @classmethod
    def _usable(cls, url: str | None) -> str | None:
        return None if url is None else usable_url(url)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.url is None) == (self.url_from is None):
            raise ValueError("must have either url or url_from")
        if (self.template == "pagerduty") != (self.routing_key_from is not None):
            raise ValueError("routing_key_from is needed by the pagerduty template, and belongs to it alone")
        return self


class FleetDocument(_Strict):
    """One document of a fleet file."""

    api_version: Literal["incident-rca/v1"] = Field(alias="apiVersion")
    groups: list[GroupEntry] | None = None
    agents: list[AgentEntry] | None = None
    webhooks: list[WebhookEntry] | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A document's place: the file's name, and the line of each value by its path."""

    file: str
    lines: Mapping[Path_, int]
    directory: Path = field(default_factory=Path)

    def at(self, *path: int | str) -> str:
        """``file:line`` of a value, or of the nearest thing around it that has a line."""
        known = next((path[:n] for n in range(len(path), -1, -1) if path[:n] in self.lines), ())
        return f"{self.file}:{self.lines.get(known, 1)}"


@dataclass(frozen=True, slots=True)
class Placed(Generic[_T]):
    """An entry and where it stands."""

    value: _T
    source: Source
    path: Path_

    def at(self, *path: int | str) -> str:
        """``file:line`` of the entry, or of a value in it."""
        return self.source.at(*self.path, *path)


@dataclass(frozen=True, slots=True)
class FleetFile:
    """What one or several files want; a list that none of them has is None. ``secrets``: texts of references by webhook and field."""

    groups: tuple[Placed[GroupEntry], ...] | None = None
    agents: tuple[Placed[AgentEntry], ...] | None = None
    webhooks: tuple[Placed[WebhookEntry], ...] | None = None
    secrets: Mapping[tuple[str, str], str | None] = field(default_factory=dict, repr=False)


def usable_url(url: str) -> str:
    """``url`` without spaces around it.

    Raises:
        ValueError: webhooks cannot be sent there.
    """
    try:
        check_url(url.strip())
    except InvalidRequestError as exc:
        raise ValueError(exc.errors[0].message) from exc
    return url.strip()


def schema() -> dict[str, Any]:
    """JSON Schema of a document."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **FleetDocument.model_json_schema(mode="validation"),
        "title": "incident-rca fleet file",
    }


def load(texts: Sequence[tuple[str, str, Path]], read: Read) -> FleetFile:
    """What files say together.

    Args:
        texts: of each file its name, its content and the directory that its references are relative to.
        read: gives the text that a reference names, None where there is none.

    Raises:
        CommandError: a file is not valid; each refused value with file, line and field.
    """
    problems: list[str] = []
    documents: list[tuple[FleetDocument, Source]] = []
    for name, text, directory in texts:
        for content, source in _documents(name, text, directory):
            try:
                documents.append((FleetDocument.model_validate(content), source))
            except ValidationError as exc:
                problems += [_problem(source, error["loc"], error["msg"], error["type"]) for error in exc.errors(include_url=False)]
    if problems:
        raise invalid(problems)
    if not documents:
        raise CommandError("there is nothing in what was given", hint=f"A fleet file begins with apiVersion: {API_VERSION}.")
    groups = _gather(documents, "groups", lambda one: one.groups)
    agents = _gather(documents, "agents", lambda one: one.agents)
    webhooks = _gather(documents, "webhooks", lambda one: one.webhooks)
    problems = [*_doubles("group", groups or ()), *_doubles("agent", agents or ()), *_doubles("webhook", webhooks or ())]
    secrets: dict[tuple[str, str], str | None] = {}
    for placed in webhooks or ():
        problems += _read_references(placed, read, secrets)
    if problems:
        raise invalid(problems)
    return FleetFile(groups, agents, webhooks, secrets)


def invalid(problems: Sequence[str]) -> CommandError:
    """The refusal of files, with a line for each problem."""
    return CommandError("the fleet file is not valid", hint="\n".join(problems))


def field_name(path: Iterable[int | str]) -> str:
    """A path as text: ``groups[0].config.log_level``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _documents(name: str, text: str, directory: Path) -> list[tuple[object, Source]]:
    found: list[tuple[object, Source]] = []
    try:
        loader = yaml.SafeLoader(text)
        while loader.check_node():
            if (node := loader.get_node()) is None:
                break
            lines: dict[Path_, int] = {}
            _index(node, (), lines)
            content = loader.construct_document(node)
            if content is not None:  # between two marks there may be nothing
                found.append((content, Source(name, lines, directory)))
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise invalid([f"{name}:{line}: {exc.problem or exc.context}"]) from exc
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise invalid([f"{name}: {str(exc).splitlines()[0]}"]) from exc
    return found


def _index(node: yaml.Node, path: Path_, lines: dict[Path_, int]) -> None:
    """Note the line of every value below ``node``; what YAML would take without a word and nobody means is refused."""
    mark = node.start_mark
    if len(path) > _DEEPEST or len(lines) > _MOST_NODES:
        raise yaml.MarkedYAMLError(problem="nested too deeply, or too large", problem_mark=mark)
    lines.setdefault(path, mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _index(item, (*path, number), lines)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is not text: put it in quotes", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands here a second time", problem_mark=key.start_mark)
            seen.add(key.value)
            lines[*path, key.value] = key.start_mark.line + 1
            _index(value, (*path, key.value), lines)


def _problem(source: Source, path: Path_, message: str, kind: str) -> str:
    text = {"missing": "is missing", "extra_forbidden": "is not a field of a fleet file"}.get(kind, message.removeprefix("Value error, "))
    return f"{source.at(*path)}: {field_name(path) or 'the document'}: {text}"


def _gather(
    documents: Sequence[tuple[FleetDocument, Source]], name: str, of: Callable[[FleetDocument], Sequence[_T] | None]
) -> tuple[Placed[_T], ...] | None:
    lists = [(source, listed) for document, source in documents if (listed := of(document)) is not None]
    if not lists:
        return None
    return tuple(Placed(entry, source, (name, number)) for source, listed in lists for number, entry in enumerate(listed))


def _doubles(kind: str, placed: Sequence[Placed[GroupEntry]] | Sequence[Placed[AgentEntry]] | Sequence[Placed[WebhookEntry]]) -> list[str]:
    first: dict[str, str] = {}
    problems = []
    for one in placed:
        name = one.value.name
        if name in first:
            problems.append(f"{one.at()}: {field_name(one.path)}: the {kind} {name} stands at {first[name]} already")
        first.setdefault(name, one.at())
    return problems


def _read_references(placed: Placed[WebhookEntry], read: Read, secrets: dict[tuple[str, str], str | None]) -> list[str]:
    problems = []
    for name in ("url", "routing_key"):
        reference: Reference | None = getattr(placed.value, f"{name}_from")
        if reference is None:
            continue
        where = f"{placed.at(f'{name}_from')}: {field_name((*placed.path, f'{name}_from'))}"
        try:
            text = read(reference, placed.source.directory)
        except OSError as exc:
            problems.append(f"{where}: {reference} cannot be read: {exc.strerror}")
            continue
        secrets[placed.value.name, name] = text
        try:
            if text is not None and name == "url":
                secrets[placed.value.name, name] = usable_url(text)
        except ValueError as exc:
            problems.append(f"{where}: the URL in {reference} {exc}")
    return problems


def read_reference(reference: Reference, directory: Path, environ: Mapping[str, str]) -> str | None:
    """The text that a reference names; None for a variable that is not set, or empty.

    Raises:
        OSError: the file cannot be read.
    """
    if reference.env is not None:
        return environ.get(reference.env, "").strip() or None
    text = (directory / Path(str(reference.file)).expanduser()).read_text(encoding="utf-8")
    return re.sub(r"\r?\n\Z", "", text) or None
