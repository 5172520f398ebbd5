"""The platform's own metrics, gathered when /metrics is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.fleet.views import Status
from app.platform import Platform
from app.telemetry import instruments
from app.telemetry.store import StoreStatistics
from connectors._version import __version__


class _PlatformCollector(Collector):
    def __init__(self, platform: Platform, statistics: StoreStatistics, endpoints: Mapping[str, Any]) -> None:
        self._platform = platform
        self._statistics = statistics
        self._endpoints = endpoints

    def collect(self) -> Iterator[Metric]:
        """The families, made anew from the platform's present state."""
        info = GaugeMetricFamily("irca_build_info", "The platform's version.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        counts = Counter(i.status for i in self._platform.fleet.registry.instances.values())
        instances = GaugeMetricFamily("irca_instances", "Instances by status.", labels=["status"])
        for status in Status:
            instances.add_metric([status.value], counts[status])
        yield instances
        yield GaugeMetricFamily("irca_agents", "Agents.", value=len(self._platform.fleet.registry.agents))
        yield GaugeMetricFamily("irca_live_subscribers", "Connections to the live stream.", value=self._platform.live.subscribers)
        yield GaugeMetricFamily("irca_metric_store_series", "Series in the metric store.", value=self._statistics.series)
        yield GaugeMetricFamily("irca_metric_store_samples", "Samples in the metric store.", value=self._statistics.samples)
        yield GaugeMetricFamily("irca_metric_store_bytes", "Size of the metric store on disk.", value=self._statistics.disk_bytes)
        yield GaugeMetricFamily("irca_failing_jobs", "Background jobs whose last run failed.", value=len(self._platform.jobs.failures()))
        yield from instruments.collect()
        yield CounterMetricFamily("irca_opamp_exchanges", "OpAMP exchanges answered.", value=self._endpoints["opamp"].exchanges)


def platform_registry(platform: Platform, statistics: StoreStatistics, endpoints: Mapping[str, Any]) -> CollectorRegistry:
    """A registry that holds the platform's metrics of this moment."""
    registry = CollectorRegistry()
    registry.register(_PlatformCollector(platform, statistics, endpoints))
    return registry
