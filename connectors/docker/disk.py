"""What the engine's content takes on disk. The engine may walk through every layer and volume to tell, so it is asked seldom."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from connectors.core.collector import describe_failure
from connectors.core.errors import CollectorError, ConnectorError, ControlError, PermissionRefusedError
from connectors.core.telemetry import Attributes, Metric, Point, ResourceMetrics
from connectors.docker.engine import Engine
from connectors.docker.metrics import metric, single

_TIMEOUT = 60.0
_FIRST_WAIT = 1.0
"""Seconds that a round waits for the answer; one that takes longer is told in a later round."""
_BUSY = "already running"
"""What the engine says while it works out the same for somebody else. It is asked again in the next round."""
_PATIENCE = 300.0
"""Seconds that an engine may be busy with somebody else's question before that counts as a failure."""


class DiskCollector:
    """Disk use and volumes of the engine, asked for every ``interval`` seconds and told in every round.

    Metrics are of the agent's resource. The question has a thread of its own, for its answer may take longer than a round; its failure
    degrades this collector until the question succeeds. The engine answers one such question at a time: while it works for somebody else
    (``docker system df``, another agent), the question is repeated in each round, and is a failure only once that has taken too long.
    """

    name = "docker.disk"

    def __init__(
        self, engine: Engine, resource: Callable[[], Attributes], *, interval: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._resource = resource
        self._interval = interval
        self._monotonic = monotonic
        self._due = 0.0
        self._busy_since: float | None = None
        self._asking: threading.Thread | None = None
        self._metrics: list[Metric] = []
        self._failure: ConnectorError | None = None

    def collect(self) -> Iterator[ResourceMetrics]:
        """One resource: the engine; none until its first answer.

        Raises:
            ConnectorError: the last question failed. What was known before is yielded first.
        """
        now = self._monotonic()
        if self._asking is not None and not self._asking.is_alive():
            self._asking = None
        if self._asking is None and (now >= self._due or self._failure or self._busy_since is not None):
            self._due = now + self._interval
            self._asking = threading.Thread(target=self._ask, name="irca-docker-disk", daemon=True)
            self._asking.start()
        if self._asking is not None:
            self._asking.join(_FIRST_WAIT)
            if not self._asking.is_alive():
                self._asking = None
        if self._metrics:
            yield ResourceMetrics(self._resource(), self._metrics)
        if self._failure is not None:
            raise self._failure

    def _ask(self) -> None:
        busy_since, self._busy_since = self._busy_since, None
        try:
            with self._engine.client("disk_usage", timeout=_TIMEOUT) as client:
                self._metrics = disk_metrics(client.df())
            self._failure = None
        except PermissionRefusedError as exc:
            advice = "let GET /system/df through, or set disk_usage_interval to 0"
            self._failure = PermissionRefusedError(f"{exc.reason}; {advice}")
        except ControlError as exc:
            now = self._monotonic()
            if _BUSY in exc.reason:
                self._busy_since = now if busy_since is None else busy_since
            patient = self._busy_since is not None and now - self._busy_since < _PATIENCE
            self._failure = None if patient else exc
        except Exception as exc:  # noqa: BLE001 - a thread must not die unheard: the next round tells
            self._failure = CollectorError(f"the engine's account of its disk use makes no sense: {describe_failure(exc)}")


def disk_metrics(usage: Mapping[str, Any]) -> list[Metric]:
    """Disk use by content, and volumes, from the engine's ``/system/df``."""
    volumes = usage.get("Volumes") or ()
    sizes = {
        "images": int(usage.get("LayersSize") or 0),
        "containers": sum(int(container.get("SizeRw") or 0) for container in usage.get("Containers") or ()),
        # A volume whose driver cannot tell has size -1.
        "volumes": sum(max(0, int((volume.get("UsageData") or {}).get("Size") or 0)) for volume in volumes),
        "build_cache": sum(int(entry.get("Size") or 0) for entry in usage.get("BuildCache") or () if not entry.get("Shared")),
    }
    return [
        metric("irca.engine.disk.usage", [Point(float(size), {"irca.engine.disk.content": content}) for content, size in sizes.items()]),
        single("irca.engine.volume.count", len(volumes)),
    ]
