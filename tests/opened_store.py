"""An embedded metric store in a directory of a test: open, write and read it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from app.telemetry.embedded import EmbeddedMetricStore
from app.telemetry.embedded.files import DAY_MS
from app.telemetry.store import Matcher, Row, Schema, SeriesKey

T0 = 20_000 * DAY_MS
HOUR = 3_600_000
ALL = [Matcher("__name__", "!=", "")]


@asynccontextmanager
async def opened(directory: Path, **options: Any) -> AsyncIterator[EmbeddedMetricStore]:
    settings_ = {"retention": 3 * 86_400, "rollup_retention": 60 * 86_400, "disk_budget": 2**30, "clock": lambda: T0 / 1000} | options
    store = EmbeddedMetricStore(directory, **settings_)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def keys(*names: str) -> list[SeriesKey]:
    return [SeriesKey((("__name__", name), ("host", "h1")), "1", "gauge") for name in names]


def row(schema: Schema, time_ms: int, *values: float) -> Row:
    return Row(schema.id, time_ms, np.array(values, np.float64))


def present(directory: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in directory.glob(pattern))


async def read(store: EmbeddedMetricStore, start: int = 0, end: int = T0 * 2) -> dict[str, dict[int, float]]:
    found = await store.select(ALL, start, end)
    return {s.labels["__name__"]: dict(zip(s.times.tolist(), s.values.tolist(), strict=True)) for s in found}
