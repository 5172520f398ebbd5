"""From the names a query uses to those the store holds, and back.

The store keeps OTel names; queries see one of two *views* of it. In the *Prometheus view*, names and labels are translated
(:mod:`app.telemetry.promql.names`). A selector whose name conditions meet no translated name but do meet OTel names
(``{"system.cpu.time"}``) gets the *stored view*: its series come with names and labels as they were stored. Within a label matcher
either spelling of a label is understood in both views; grouping and results use the view's own.

Where several OTel names have one translation, the translated name selects all of them, and series that become equal are merged by
time. Where several attributes of a series have one translation, their values are joined with ``;`` in the order of the OTel names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from app.telemetry.matching import compile_pattern
from app.telemetry.promql.model import LabelSet, Series
from app.telemetry.promql.names import prometheus_label, prometheus_name
from app.telemetry.store import NAME, Labels, Matcher, MetricKind, MetricMetadata, SeriesData


def matches(matcher: Matcher, value: str) -> bool:
    """Whether ``value`` (empty for a missing label) meets ``matcher``."""
    if matcher.operator == "=":
        return value == matcher.value
    if matcher.operator == "!=":
        return value != matcher.value
    return _accepts(matcher.value)(value) == (matcher.operator == "=~")


_accepts = lru_cache(maxsize=1024)(compile_pattern)


@dataclass(frozen=True, slots=True)
class Selection:
    """What to ask the store for, and how the answer looks to the query."""

    stored_view: bool
    matchers: tuple[Matcher, ...]
    """For the store, on OTel names."""
    conditions: tuple[Matcher, ...]
    """What the store could not be asked: to be met by the labels as the query sees them."""
    names: tuple[Matcher, ...]
    """The conditions on the metric name that the Prometheus view puts to each series' own unit and kind."""
    translations: Mapping[str, str]
    """Prometheus name by OTel name, for series whose unit and kind are not at hand."""

    def labels(self, stored: Labels, unit: str | None = None, kind: MetricKind = "unknown") -> LabelSet:
        """The labels of a stored series as the query sees them; without a ``unit`` the catalogue's word for its name counts."""
        if self.stored_view:
            return tuple(sorted((key, value) for key, value in stored.items() if value))
        name = stored.get(NAME, "")
        translated = self.translations.get(name, name) if unit is None else prometheus_name(name, unit, kind)
        values = list(stored.values())
        pairs: list[tuple[str, str]] = []
        for key, positions in _layout(tuple(stored)):
            if key == NAME:
                value = translated
            elif len(positions) == 1:  # nearly always, and this runs for every label of every series
                value = values[positions[0]]
            else:
                value = ";".join(v for p in positions if (v := values[p]))
            if value:
                pairs.append((key, value))
        return tuple(pairs)

    def accepts(self, labels: LabelSet) -> bool:
        """Whether a series with these labels (as the query sees them) meets the conditions that the store was not asked."""
        if not self.conditions:
            return True
        found = dict(labels)
        return all(matches(condition, found.get(condition.name, "")) for condition in self.conditions)

    def series(self, selected: Iterable[SeriesData]) -> list[Series]:
        """The store's answer as the query sees it, ordered by labels, equal series merged."""
        by_labels: dict[LabelSet, list[Series]] = {}
        wanted: dict[tuple[str, str, MetricKind], bool] = {}
        for data in sorted(selected, key=lambda one: one.labels.get(NAME, "")):
            if self.names:
                traits = (data.labels.get(NAME, ""), data.unit, data.kind)
                if traits not in wanted:
                    wanted[traits] = _all_match(self.names, prometheus_name(*traits))
                if not wanted[traits]:
                    continue
            labels = self.labels(data.labels, data.unit, data.kind)
            if self.accepts(labels):
                by_labels.setdefault(labels, []).append(Series(labels, data.times, data.values))
        return [_merged(group) for _, group in sorted(by_labels.items())]


class Catalogue:
    """The metric and label names that a store holds, by either spelling. A snapshot: build a new one when the store has moved on."""

    def __init__(self, metadata: Sequence[MetricMetadata], label_names: Sequence[str]) -> None:
        self.metadata = sorted(metadata, key=lambda one: (one.name, one.unit, one.kind))
        self._by_translated: dict[str, set[str]] = {}
        self._by_stored: dict[str, set[str]] = {}
        self._translations: dict[str, str] = {}
        for one in self.metadata:
            translated = prometheus_name(one.name, one.unit, one.kind)
            self._by_translated.setdefault(translated, set()).add(one.name)
            self._by_stored.setdefault(one.name, set()).add(translated)
            self._translations.setdefault(one.name, translated)
        self._stored_labels = frozenset(label_names) - {NAME}
        self._labels_by_translated: dict[str, list[str]] = {}
        for label in sorted(self._stored_labels):
            self._labels_by_translated.setdefault(prometheus_label(label), []).append(label)

    def translated_names(self) -> list[str]:
        """The metric names of the Prometheus view, sorted."""
        return sorted(self._by_translated)

    def translate(self, one: MetricMetadata) -> str:
        """The name of a metric in the Prometheus view."""
        return prometheus_name(one.name, one.unit, one.kind)

    def knows(self, matchers: Iterable[Matcher]) -> bool:
        """Whether every name that ``matchers`` may mean is known; if not, a fresh catalogue may know more."""
        for matcher in matchers:
            if matcher.name != NAME:
                if not self.stored_labels(matcher.name, stored_view=False):
                    return False
            elif matcher.operator != "=" or (matcher.value not in self._by_translated and matcher.value not in self._by_stored):
                return False
        return True

    def stored_labels(self, name: str, *, stored_view: bool) -> list[str]:
        """The OTel attribute names that a query means by the label ``name``."""
        translated = self._labels_by_translated.get(name, [])
        as_stored = [name] if name in self._stored_labels else []
        return (as_stored or translated) if stored_view else (translated or as_stored)

    def resolve(self, matchers: Sequence[Matcher]) -> Selection | None:
        """What to ask the store for ``matchers``; None when nothing it holds can meet them."""
        by_name = [matcher for matcher in matchers if matcher.name == NAME]
        stored_view = False
        asked: list[Matcher] = []
        conditions: list[Matcher] = []
        if by_name:
            names = {stored for name, held in self._by_translated.items() if _all_match(by_name, name) for stored in held}
            if not names:
                stored_view = True
                names = {name for name in self._by_stored if _all_match(by_name, name)}
            if not names:
                return None
            asked.append(_one_of(names))
        for matcher in matchers:
            if matcher.name == NAME:
                continue
            labels = self.stored_labels(matcher.name, stored_view=stored_view)
            if not labels:
                if not matches(matcher, ""):
                    return None
            elif len(labels) == 1:
                asked.append(Matcher(labels[0], matcher.operator, matcher.value))
            else:
                conditions.append(matcher)
        return Selection(stored_view, tuple(asked), tuple(conditions), () if stored_view else tuple(by_name), self._translations)


def _all_match(matchers: Iterable[Matcher], value: str) -> bool:
    return all(matches(matcher, value) for matcher in matchers)


def _one_of(names: set[str]) -> Matcher:
    if len(names) == 1:
        return Matcher(NAME, "=", next(iter(names)))
    return Matcher(NAME, "=~", "|".join(re.escape(name) for name in sorted(names)))


@lru_cache(maxsize=4096)
def _layout(keys: tuple[str, ...]) -> list[tuple[str, list[int]]]:
    """Translated label names in order, each with the positions of its OTel names among ``keys`` (in the order of those names)."""
    positions: dict[str, list[int]] = {}
    for position in sorted(range(len(keys)), key=keys.__getitem__):
        key = keys[position]
        positions.setdefault(NAME if key == NAME else prometheus_label(key), []).append(position)
    return sorted(positions.items())


def _merged(group: list[Series]) -> Series:
    """Series that look the same to the query as one; of two samples at one time the earlier series' stays."""
    if len(group) == 1:
        return group[0]
    times, first = np.unique(np.concatenate([one.times for one in group]), return_index=True)
    return Series(group[0].labels, times, np.concatenate([one.values for one in group])[first])
