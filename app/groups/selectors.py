"""Label selectors: which instances a group is. Pure functions of labels; the form and meaning are those of Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from app.errors import FieldError, InvalidRequestError

BUILT_IN = (
    "environment",
    "agent_type",
    "host.name",
    "host.arch",
    "os.type",
    "cloud.region",
    "k8s.cluster.name",
    "k8s.cluster.uid",
    "k8s.node.name",
    "service.version",
)
"""Labels that every instance has of itself, where it tells them; an agent's own labels cannot take these names."""

_KEY = r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,126}[A-Za-z0-9])?"
LABEL_KEY = re.compile(_KEY)
MAX_LABELS = 64
MAX_VALUE = 256

Operator = Literal["In", "NotIn", "Exists", "DoesNotExist"]
_Key = Annotated[str, Field(pattern=f"^{_KEY}$")]
_Value = Annotated[str, Field(max_length=MAX_VALUE)]


class Requirement(BaseModel):
    """One condition on a label. ``NotIn`` holds, too, where the label is missing."""

    model_config = {"extra": "forbid", "frozen": True}

    key: _Key
    operator: Operator
    values: Annotated[list[_Value], Field(max_length=100)] = []

    @model_validator(mode="after")
    def _has_its_values(self) -> Self:
        if (self.operator in ("In", "NotIn")) != bool(self.values):
            raise ValueError("In and NotIn need values; Exists and DoesNotExist take none")
        return self

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether these labels meet it."""
        value = labels.get(self.key)
        if self.operator == "In":
            return value in self.values
        if self.operator == "NotIn":
            return value not in self.values
        return (value is not None) == (self.operator == "Exists")


class Selector(BaseModel):
    """All of its conditions must hold; one without any selects every instance."""

    model_config = {"extra": "forbid", "frozen": True, "populate_by_name": True}

    match_labels: Annotated[dict[_Key, _Value], Field(max_length=MAX_LABELS)] = Field(
        {}, alias="matchLabels", description="Labels and the value that each must have."
    )
    match_expressions: Annotated[list[Requirement], Field(max_length=MAX_LABELS)] = Field([], alias="matchExpressions")

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether an instance with these labels is selected."""
        return all(labels.get(key) == value for key, value in self.match_labels.items()) and all(
            requirement.holds(labels) for requirement in self.match_expressions
        )

    def document(self) -> dict[str, Any]:
        """As JSON, in Kubernetes' words."""
        return self.model_dump(by_alias=True)

    def __str__(self) -> str:
        """As ``kubectl --selector`` takes it; :func:`parse` reads it back."""
        parts = [f"{key}={value}" for key, value in self.match_labels.items()]
        for one in self.match_expressions:
            listed = ",".join(one.values)
            parts.append(
                {
                    "In": f"{one.key} in ({listed})",
                    "NotIn": f"{one.key} notin ({listed})",
                    "Exists": one.key,
                    "DoesNotExist": f"!{one.key}",
                }[one.operator]
            )
        return ", ".join(parts)


def labels_of(environment_name: str, agent_type: str, labels: Mapping[str, str], resource: Mapping[str, Any]) -> dict[str, str]:
    """What selectors see of an instance: its agent's labels and what it is (:data:`BUILT_IN`)."""
    own = {key: str(resource[key]) for key in BUILT_IN if resource.get(key) not in (None, "")}
    return {**labels, **own, "environment": environment_name, "agent_type": agent_type}


def parse(text: str) -> Selector:
    """The selector that ``text`` writes as ``kubectl --selector`` does: ``a=b, c!=d, e in (f,g), h, !i``; empty selects all.

    Raises:
        InvalidRequestError: a part is none of these; it is named.
    """
    match_labels: dict[str, str] = {}
    expressions: list[Requirement] = []
    for part in filter(None, (piece.strip() for piece in re.split(r",(?![^(]*\))", text.replace("\n", ",")))):
        try:
            label, requirement = _part(part)
        except ValueError as exc:
            raise _unreadable(part) from exc
        if requirement is not None:
            expressions.append(requirement)
        elif match_labels.setdefault(label[0], label[1]) != label[1]:
            raise InvalidRequestError(
                "the selector is not valid", errors=[FieldError("selector", f"{label[0]} cannot have two values at a time")]
            )
    try:
        return Selector(match_labels=match_labels, match_expressions=expressions)
    except ValueError as exc:
        raise _unreadable(text) from exc


def check_labels(labels: Mapping[str, str]) -> None:
    """Do nothing, or refuse labels that an agent cannot have.

    Raises:
        InvalidRequestError: a key or value is not usable, or there are too many; every refusal names its label.
    """
    errors: list[FieldError] = []
    for key, value in labels.items():
        if not LABEL_KEY.fullmatch(key):
            errors.append(
                FieldError(
                    f"labels.{key}"[:200], "must be at most 128 letters, digits, '.', '_', '/' and '-', with a letter or digit at its ends"
                )
            )
        elif key in BUILT_IN:
            errors.append(FieldError(f"labels.{key}", "is what the instance says of itself and cannot be set"))
        elif len(value) > MAX_VALUE or not value.isprintable():
            errors.append(FieldError(f"labels.{key}", f"must have at most {MAX_VALUE} printable characters"))
    if len(labels) > MAX_LABELS:
        errors.append(FieldError("labels", f"an agent has at most {MAX_LABELS}"))
    if errors:
        raise InvalidRequestError("the labels are not valid", errors=errors)


def _part(part: str) -> tuple[tuple[str, str], Requirement | None]:
    if found := re.fullmatch(rf"({_KEY})\s+(in|notin)\s+\(([^()]*)\)", part):
        values = [value.strip() for value in found[4].split(",") if value.strip()]
        return ("", ""), Requirement(key=found[1], operator="In" if found[3] == "in" else "NotIn", values=values)
    if found := re.fullmatch(rf"({_KEY})\s*!=\s*([^=,()]*)", part):
        return ("", ""), Requirement(key=found[1], operator="NotIn", values=[found[3]])
    if found := re.fullmatch(rf"({_KEY})\s*==?\s*([^=,()]*)", part):
        return (found[1], found[3]), None
    if found := re.fullmatch(rf"(!?)\s*({_KEY})", part):
        return ("", ""), Requirement(key=found[2], operator="DoesNotExist" if found[1] else "Exists")
    raise ValueError(part)


def _unreadable(part: str) -> InvalidRequestError:
    message = f"{part!r} is not a condition: write name=value, name!=value, name in (a,b), name notin (a,b), name, or !name"
    return InvalidRequestError("the selector is not valid", errors=[FieldError("selector", message)])
