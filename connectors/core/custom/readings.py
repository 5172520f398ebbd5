"""What commands and endpoints say, as metrics: the Prometheus text format and a small JSON form. Strict: a malformed line is an error."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from connectors.core.errors import CollectorError
from connectors.core.telemetry import AttributeValue, Kind, Metric, Point

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\\n]|\\.)*)"[ \t]*(,[ \t]*)?')
_VALUE = re.compile(r"[ \t]+([^ \t]+)(?:[ \t]+(-?[0-9]+))?[ \t]*")
_NUMBER = re.compile(
    r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?0[xX][0-9a-fA-F]+|NaN|[+-]?Inf(?:inity)?", re.IGNORECASE
)
_TYPES: Final = ("counter", "gauge", "histogram", "summary", "untyped")
_PARTS: Final = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
_SET_LABELS: Final = frozenset({"le", "quantile"})
_JSON_KEYS: Final = frozenset({"name", "value", "unit", "kind", "attributes"})
_KINDS: Final = {"gauge": Kind.GAUGE, "counter": Kind.COUNTER, "updowncounter": Kind.UPDOWNCOUNTER}
_METRIC_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.:/-]{0,254}")
_ESCAPES: Final = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def prometheus_metrics(text: str, labels: Collection[str] = ()) -> list[Metric]:
    """The metrics of a text exposition; ``labels`` are the labels to keep (all where there are none; le and quantile always stay).

    Counters, and the buckets, sums and counts of histograms and summaries, are counters; everything else is a gauge. Timestamps are
    ignored, and so are values that are no finite number.

    Raises:
        CollectorError: a line is malformed, or a series comes twice (perhaps because the labels that tell it apart are not kept).
    """
    types: dict[str, str] = {}
    found: dict[str, tuple[Kind, list[Point]]] = {}
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(" \t\r")  # noqa: PLW2901 - the same line
        if line.startswith("#"):
            _learn_type(line, number, types)
            continue
        if not line:
            continue
        name, attributes, value = _sample(line, number)
        if labels:
            attributes = {key: text for key, text in attributes.items() if key in labels or key in _SET_LABELS}
        series = (name, frozenset(attributes.items()))
        if series in seen:
            raise CollectorError(f"line {number}: the series {name} with the same labels came before")
        seen.add(series)
        if math.isfinite(value):
            found.setdefault(name, (_kind(name, types), []))[1].append(Point(value, attributes))
    return [Metric(name, "", kind, points) for name, (kind, points) in found.items()]


def json_metrics(text: str) -> list[Metric]:
    """The metrics of a JSON array of ``{"name", "value", "unit", "kind", "attributes"}``; the first two are needed.

    Raises:
        CollectorError: it is not such an array, or a series comes twice.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise CollectorError("what it says is not JSON") from exc
    if not isinstance(document, list):
        raise CollectorError("what it says is not a JSON array")
    found: dict[tuple[str, str, Kind], list[Point]] = {}
    seen: set[tuple[str, frozenset[tuple[str, AttributeValue]]]] = set()
    for number, item in enumerate(document):
        name, unit, kind, point = _item(item, number)
        series = (name, frozenset(point.attributes.items()))
        if series in seen:
            raise CollectorError(f"entry {number}: the series {name} with the same attributes came before")
        seen.add(series)
        found.setdefault((name, unit, kind), []).append(point)
    return [Metric(name, unit, kind, points) for (name, unit, kind), points in found.items()]


def _learn_type(line: str, number: int, types: dict[str, str]) -> None:
    words = line[1:].split()
    if words[:1] != ["TYPE"]:
        return
    if len(words) != 3 or not _NAME.fullmatch(words[1]) or words[2] not in _TYPES:  # noqa: PLR2004 - TYPE, name, type
        raise CollectorError(f"line {number}: a malformed TYPE")
    if words[1] in types:
        raise CollectorError(f"line {number}: a second TYPE of {words[1]}")
    types[words[1]] = words[2]


def _sample(line: str, number: int) -> tuple[str, dict[str, str], float]:
    begin = _NAME.match(line)
    if begin is None:
        raise CollectorError(f"line {number}: no metric name")
    name, at = begin[0], begin.end()
    attributes: dict[str, str] = {}
    opened = at + len(line[at:]) - len(line[at:].lstrip(" \t"))
    if line[opened : opened + 1] == "{":
        attributes, at = _labels(line, opened + 1, number)
    end = _VALUE.fullmatch(line, at)
    if end is None or not _NUMBER.fullmatch(end[1]):
        raise CollectorError(f"line {number}: no value")
    return name, attributes, float.fromhex(end[1]) if "x" in end[1].lower() else float(end[1])


def _labels(line: str, at: int, number: int) -> tuple[dict[str, str], int]:
    """The labels from ``at``, and where the closing brace ends."""
    labels: dict[str, str] = {}
    more = True
    while True:
        at += len(line[at:]) - len(line[at:].lstrip(" \t"))
        if line[at : at + 1] == "}":
            return labels, at + 1
        found = _LABEL.match(line, at)
        if found is None or not more or found[1] in labels:
            raise CollectorError(f"line {number}: malformed labels")
        labels[found[1]] = re.sub(r"\\.", lambda escape: _ESCAPES.get(escape[0], escape[0]), found[2])
        at, more = found.end(), bool(found[3])


def _kind(name: str, types: Mapping[str, str]) -> Kind:
    if types.get(name) == "counter":
        return Kind.COUNTER
    for of, parts in _PARTS.items():
        if any(name.endswith(part) and types.get(name.removesuffix(part)) == of for part in parts):
            return Kind.COUNTER
    return Kind.GAUGE


def _item(item: Any, number: int) -> tuple[str, str, Kind, Point]:
    def refuse(what: str) -> CollectorError:
        return CollectorError(f"entry {number}: {what}")

    if not isinstance(item, dict) or not item.keys() <= _JSON_KEYS:
        raise refuse(f"must be an object with {', '.join(sorted(_JSON_KEYS))}")
    name, value, unit, kind = item.get("name"), item.get("value"), item.get("unit", ""), item.get("kind", "gauge")
    if not isinstance(name, str) or not _METRIC_NAME.fullmatch(name):
        raise refuse("name must be a metric's name")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
        raise refuse("value must be a finite number")
    if not isinstance(unit, str) or not isinstance(kind, str) or kind not in _KINDS:
        raise refuse(f"unit must be a string, and kind one of {', '.join(_KINDS)}")
    attributes = item.get("attributes", {})
    if not isinstance(attributes, dict) or not all(isinstance(each, (str, bool, int, float)) for each in attributes.values()):
        raise refuse("attributes must be an object of strings, numbers and booleans")
    return name, unit, _KINDS[kind], Point(float(value), attributes)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
