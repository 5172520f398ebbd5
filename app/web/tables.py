"""What tables with sortable columns and counted filters have in common, as values that a template draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from app.telemetry.containers import SortOrder

_WORDS = {SortOrder.ASCENDING: "ascending", SortOrder.DESCENDING: "descending"}
_OTHER = {SortOrder.ASCENDING: SortOrder.DESCENDING, SortOrder.DESCENDING: SortOrder.ASCENDING}
_Choice = TypeVar("_Choice", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Heading:
    """A column's heading: the query that sorts by it, and the order it is sorted in now (``ascending``, ``descending`` or empty)."""

    title: str
    classes: str
    query: Mapping[str, str]
    sorted: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the counted filters over a table. ``look`` names a status' colour."""

    title: str
    count: int
    look: str
    query: Mapping[str, str]
    current: bool


def one_of(choices: type[_Choice], value: str | None) -> _Choice | None:
    """The choice that a parameter of a URL names; None where it names none."""
    return next((choice for choice in choices if choice.value == value), None)


def following(current: bool, order: SortOrder, default: SortOrder) -> tuple[SortOrder, str]:
    """The order that a click on a column's heading asks for, and the word for the one that it is in now."""
    return (_OTHER[order], _WORDS[order]) if current else (default, "")


def problem_choices(
    total: int, troubled: int, every: tuple[Mapping[str, str], bool], problems: tuple[Mapping[str, str], bool]
) -> list[Choice]:
    """The filter *all*, and *with problems* where there are some or it is in force; each by its query and whether it is in force."""
    choices = [Choice("all", total, "", *every)]
    if troubled or problems[1]:
        choices.append(Choice("with problems", troubled, "degraded", *problems))
    return choices
