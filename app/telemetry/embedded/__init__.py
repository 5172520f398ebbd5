"""The embedded metric store: SQLite files on one machine, no server."""

from __future__ import annotations

from app.telemetry.embedded.rollup import RollupSeries
from app.telemetry.embedded.store import EmbeddedMetricStore, StoreHealth

__all__ = ["EmbeddedMetricStore", "RollupSeries", "StoreHealth"]
