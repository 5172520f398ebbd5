"""The collectors of the docker agent type that ask the engine in every round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from connectors.core.collector import describe_failure
from connectors.core.errors import CollectorError, ControlError, NotDeployedError
from connectors.core.telemetry import Attributes, AttributeValue, Metric, Point, ResourceMetrics
from connectors.docker import stats
from connectors.docker.engine import Cost, Engine
from connectors.docker.fanout import Answer, Fanout
from connectors.docker.metrics import metric, single

_BEING_REMOVED = 409
_IMAGES_FOR = 300.0
"""Seconds for which a list of images is believed: tags move."""
_LEAST_BUDGET = 3.5
_INSPECT_PATIENCE = 1.0
_STATS_PATIENCE = 2.5
"""Seconds: the engine takes readings each second, and one that cannot give a single reading (before API 1.41) waits for two."""
_PATIENCE = 0.35
"""As a part of the round: a container whose questions are never answered must not cost the others half a round, and so the next one."""


class EngineCollector:
    """The engine itself: which one, containers by state, images, and what our requests to it cost. Metrics are of the agent's resource."""

    name = "docker.engine"

    def __init__(self, engine: Engine, resource: Callable[[], Attributes]) -> None:
        self._engine = engine
        self._resource = resource

    def collect(self) -> Iterator[ResourceMetrics]:
        """One resource: the engine.

        Raises:
            ControlError: the engine cannot be asked.
        """
        yield ResourceMetrics(self._resource(), request_metrics(self._engine.costs()))
        with self._engine.client("info") as client:
            info, version = client.info(), client.api_version
        yield ResourceMetrics(self._resource(), engine_metrics(info, version))


class ContainerCollector:
    """Every container: state and, while it runs, what it uses. All of them are asked at once.

    Args:
        engine: where to ask.
        resource: the agent's own resource, for the count of containers that were not measured.
        labels: the container labels that become resource attributes, beside those of compose.
        width: how many containers are asked about at a time.
        budget: seconds that one round may take; what no answer has come for by then is reported as missing.
        clock: Unix nanoseconds.
        monotonic: seconds of a clock that is never set.
    """

    name = "docker.containers"

    def __init__(
        self,
        engine: Engine,
        resource: Callable[[], Attributes],
        *,
        labels: Sequence[str] = (),
        width: int = 256,
        budget: float = 10.0,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._resource = resource
        self._labels = labels
        self._width = width
        self._budget = max(_LEAST_BUDGET, budget)
        self._clock = clock
        self._monotonic = monotonic
        self._images = _Images(engine, monotonic)
        self._references: dict[str, str] = {}
        self._cpu: dict[str, stats.CpuSample] = {}

    def collect(self) -> Iterator[ResourceMetrics]:
        """One resource for each container, and the count of those that could not be measured. Of these only the state is told.

        Raises:
            ControlError: the engine cannot be asked at all.
            CollectorError: some containers could not be measured, after everything else has been yielded.
        """
        deadline = self._monotonic() + self._budget
        with self._engine.client("list") as client:
            summaries: list[dict[str, Any]] = client.containers(all=True)
        inspections, statistics = self._ask([summary["Id"] for summary in summaries], deadline)
        images = self._images.all({summary.get("ImageID") or "" for summary in summaries})
        present = inspections.keys()
        self._references = {key: name for key, name in self._references.items() if key in present}
        self._cpu = {key: sample for key, sample in self._cpu.items() if key in present}
        reasons: list[str] = []
        for summary in summaries:
            key = summary["Id"]
            asked = [answer for answer in (inspections[key], statistics.get(key)) if answer is not None]
            if any(_gone(answer) for answer in asked):
                continue
            reason = next((answer.failure.reason for answer in asked if answer.failure), "")
            metrics = stats.listed_state(summary)
            if not inspections[key].failure:
                try:
                    metrics = self._metrics(key, inspections[key].document, statistics.get(key))
                except (KeyError, TypeError, ValueError, AttributeError) as exc:
                    reason = f"the engine's answer makes no sense: {describe_failure(exc)}"
            if reason:
                reasons.append(reason)
            reference = self._references.get(key, "")
            image = images.get(summary.get("ImageID") or "")
            yield ResourceMetrics(stats.container_resource(summary, self._labels, reference=reference, image=image), metrics)
        yield ResourceMetrics(self._resource(), [single("irca.engine.container.unmeasured", len(reasons))])
        if reasons:
            raise CollectorError(f"{len(reasons)} of {len(summaries)} containers could not be measured in this round: {reasons[0]}")

    def _ask(self, keys: Sequence[str], deadline: float) -> tuple[dict[str, Answer], dict[str, Answer]]:
        """What each container is, and what each one that runs uses."""
        if not keys:
            return {}, {}
        base = self._engine.path("/containers")
        once = "&one-shot=true" if self._engine.speaks("1.41") else ""
        patience = min(self._engine.timeout, _PATIENCE * self._budget)
        with Fanout(self._engine, width=self._width, monotonic=self._monotonic) as fanout:
            paths = {key: f"{base}/{key}/json" for key in keys}
            inspections = fanout.ask("inspect", paths, patience=max(_INSPECT_PATIENCE, patience), deadline=deadline)
            running = [key for key in keys if (inspections[key].document.get("State") or {}).get("Running")]
            paths = {key: f"{base}/{key}/stats?stream=false{once}" for key in running}
            return inspections, fanout.ask("stats", paths, patience=max(_STATS_PATIENCE, patience), deadline=deadline)

    def _metrics(self, key: str, inspection: stats.Json, answer: Answer | None) -> list[Metric]:
        """A container's metrics; what must be remembered of it until the next round is remembered."""
        self._references[key] = str((inspection.get("Config") or {}).get("Image") or "")
        metrics = stats.state_metrics(inspection, self._clock())
        if answer is None or answer.failure:
            return metrics
        metrics += stats.usage_metrics(inspection, answer.document, self._cpu.get(key))
        if sample := stats.cpu_sample(answer.document):
            self._cpu[key] = sample
        return metrics


class _Images:
    """The engine's images by id. They are listed again when one is unknown, and now and then; not at all where that is refused."""

    def __init__(self, engine: Engine, monotonic: Callable[[], float]) -> None:
        self._engine = engine
        self._monotonic = monotonic
        self._known: dict[str, stats.Json] = {}
        self._listed_for: set[str] = set()
        self._due = 0.0

    def all(self, wanted: set[str]) -> Mapping[str, stats.Json]:
        """What is known of the images, after a look for those ``wanted`` that were never looked for."""
        now = self._monotonic()
        if wanted <= self._listed_for and now < self._due:
            return self._known
        try:
            with self._engine.client("images") as client:
                found = client.images()
        except ControlError:
            # Tags and digests describe, and no more: what is known stays, and a proxy that hides images is no failure.
            found = None
        if found is not None:
            self._known = {image["Id"]: image for image in found}
        self._listed_for, self._due = wanted, now + _IMAGES_FOR
        return self._known


def engine_resource(info: Mapping[str, Any]) -> Attributes:
    """OTel resource attributes of the engine's host, from the engine's ``/info``."""
    attributes: dict[str, AttributeValue] = {
        "host.name": info.get("Name", ""),
        "host.arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(info.get("Architecture", ""), info.get("Architecture", "")),
        "os.type": info.get("OSType", ""),
        "os.description": info.get("OperatingSystem", ""),
        "container.runtime.name": "docker",
        "container.runtime.version": info.get("ServerVersion", ""),
        "irca.engine.id": info.get("ID", ""),
    }
    return {key: value for key, value in attributes.items() if value}


def engine_metrics(info: Mapping[str, Any], api_version: str) -> list[Metric]:
    """Containers by state, images, and which engine it is, from the engine's ``/info``; ``api_version`` is the one spoken with it."""
    by_state = (("running", "ContainersRunning"), ("paused", "ContainersPaused"), ("stopped", "ContainersStopped"))
    described = {
        "irca.engine.version": info.get("ServerVersion", ""),
        "irca.engine.api_version": api_version,
        "irca.engine.storage_driver": info.get("Driver", ""),
        "irca.engine.cgroup_version": info.get("CgroupVersion", ""),
    }
    return [
        metric(
            "irca.engine.container.count", [Point(float(info.get(key) or 0), {"irca.container.state": state}) for state, key in by_state]
        ),
        single("irca.engine.image.count", info.get("Images") or 0),
        metric("irca.engine.info", [Point(1.0, {key: str(value) for key, value in described.items() if value})]),
    ]


def request_metrics(costs: Mapping[str, Cost]) -> list[Metric]:
    """What our requests to the engine have cost it and us, by kind of request."""
    fields = (("count", "irca.engine.request.count"), ("failed", "irca.engine.request.failed"), ("seconds", "irca.engine.request.duration"))
    return [
        metric(name, [Point(float(getattr(cost, field)), {"irca.engine.request.kind": kind}) for kind, cost in costs.items()])
        for field, name in fields
    ]


def _gone(answer: Answer) -> bool:
    """Whether the container has just gone, or is being removed."""
    return isinstance(answer.failure, NotDeployedError) or answer.status == _BEING_REMOVED
