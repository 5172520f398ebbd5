"""OpenTelemetry names in Prometheus' alphabet, by OpenTelemetry's Prometheus compatibility rules.

``system.cpu.time`` (s, counter) reads ``system_cpu_time_seconds_total``, ``system.memory.utilization`` (1, gauge) reads
``system_memory_utilization_ratio``, the label ``host.name`` reads ``host_name``. All of it is pure; what the store holds is
:mod:`app.telemetry.promql.catalogue`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from app.telemetry.store import MetricKind

_UNITS = {
    "d": "days",
    "h": "hours",
    "min": "minutes",
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
    "By": "bytes",
    "KiBy": "kibibytes",
    "MiBy": "mebibytes",
    "GiBy": "gibibytes",
    "TiBy": "tebibytes",
    "kBy": "kilobytes",
    "KBy": "kilobytes",
    "MBy": "megabytes",
    "GBy": "gigabytes",
    "TBy": "terabytes",
    "bit": "bits",
    "m": "meters",
    "V": "volts",
    "A": "amperes",
    "J": "joules",
    "W": "watts",
    "g": "grams",
    "Cel": "celsius",
    "Hz": "hertz",
    "%": "percent",
    "1": "",
}
_PER_UNITS = {"s": "second", "min": "minute", "m": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}
_ANNOTATION = re.compile(r"\{[^}]*\}")
_HISTOGRAM_SUFFIX = re.compile(r"(_bucket|_count|_sum)$")
_LEGACY_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_NOT_IN_METRIC = re.compile(r"[^a-zA-Z0-9_:]")
_NOT_IN_LABEL = re.compile(r"[^a-zA-Z0-9_]")
_UNDERSCORES = re.compile(r"__+")


@lru_cache(maxsize=65_536)
def prometheus_name(name: str, unit: str, kind: MetricKind) -> str:
    """The Prometheus name of the OTel metric ``name``: its alphabet, its unit suffix, ``_total`` for counters.

    A suffix that the name ends with already is not doubled. Of histograms and summaries the parts (``_bucket``, ``_count``, ``_sum``)
    keep their ending behind the unit.
    """
    base = _UNDERSCORES.sub("_", _NOT_IN_METRIC.sub("_", name)).rstrip("_")
    if not base or base[0].isdigit():
        base = f"_{base}"
    ending = ""
    if kind == "counter":
        base, ending = base.removesuffix("_total"), "_total"
    elif kind in ("histogram", "summary") and (part := _HISTOGRAM_SUFFIX.search(base)):
        base, ending = base[: part.start()], part.group()
    suffix = unit_suffix(unit, kind)
    if suffix and base != suffix and not base.endswith(f"_{suffix}"):
        base = f"{base}_{suffix}"
    return base + ending


@lru_cache(maxsize=4096)
def unit_suffix(unit: str, kind: MetricKind) -> str:
    """The suffix that a UCUM ``unit`` becomes: full words, ``a/b`` as ``a_per_b``, annotations dropped, ``1`` as ``ratio`` for gauges."""
    if unit == "1":
        return "ratio" if kind == "gauge" else ""
    main, _, per = _ANNOTATION.sub("", unit).partition("/")
    words = [_word(main.strip(), _UNITS)]
    if per.strip() and (denominator := _word(per.strip(), _PER_UNITS)):
        words += ["per", denominator]
    return "_".join(word for word in words if word)


@lru_cache(maxsize=65_536)
def prometheus_label(name: str) -> str:
    """The Prometheus name of the OTel attribute ``name``; a leading digit gets ``key_`` before it, two leading underscores stay."""
    if _LEGACY_LABEL.fullmatch(name) and "__" not in name:
        return name
    reserved = name.startswith("__") and _LEGACY_LABEL.fullmatch(name) is not None
    label = _UNDERSCORES.sub("_", _NOT_IN_LABEL.sub("_", name))
    if reserved:
        return f"_{label}"
    return f"key_{label}" if not label or label[0].isdigit() else label


def is_legacy_label(name: str) -> bool:
    """Whether ``name`` is a label name in Prometheus' classic alphabet."""
    return _LEGACY_LABEL.fullmatch(name) is not None


def _word(unit: str, words: dict[str, str]) -> str:
    return _UNDERSCORES.sub("_", _NOT_IN_LABEL.sub("_", words.get(unit, unit))).strip("_")
