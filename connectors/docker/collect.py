"""The collectors of the docker agent type."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from docker import APIClient

from connectors.core.collector import describe_failure
from connectors.core.errors import CollectorError, ConnectorError, NotDeployedError
from connectors.core.telemetry import Attributes, AttributeValue, Kind, Metric, Point, ResourceMetrics
from connectors.docker import stats
from connectors.docker.engine import FAILURES, Engine, explain

_GONE = (404, 409)
"""What the engine answers about a container that has just gone, or is being removed."""


class EngineCollector:
    """The engine itself: containers by state, images. Metrics are of the agent's own resource."""

    name = "docker.engine"

    def __init__(self, engine: Engine, resource: Callable[[], Attributes]) -> None:
        self._engine = engine
        self._resource = resource

    def collect(self) -> Iterator[ResourceMetrics]:
        """One resource: the engine.

        Raises:
            ControlError: the engine cannot be asked.
        """
        with self._engine.client() as client:
            info = client.info()
        yield ResourceMetrics(self._resource(), engine_metrics(info))


class ContainerCollector:
    """Every container: state and, while it runs, what it uses. The engine's answers are fanned out over a bounded pool of threads.

    Args:
        engine: where to ask.
        labels: the container labels that become resource attributes.
        workers: how many containers are asked about at a time.
        deadline: seconds that one round may take; containers that no answer has come for by then are reported as missing.
        clock: Unix nanoseconds.
    """

    name = "docker.containers"

    def __init__(
        self,
        engine: Engine,
        *,
        labels: Sequence[str] = (),
        workers: int = 32,
        deadline: float = 10.0,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._engine = engine
        self._labels = labels
        self._workers = workers
        self._deadline = deadline
        self._clock = clock
        self._cpu: dict[str, stats.CpuSample] = {}

    def collect(self) -> Iterator[ResourceMetrics]:
        """One resource for each container.

        Raises:
            ControlError: the engine cannot be asked at all.
            CollectorError: some containers are missing from this round, after all the others have been yielded.
        """
        with self._engine.client() as client:
            summaries: list[dict[str, Any]] = client.containers(all=True)
        found, failures = self._observe_all(client, summaries)
        cpu: dict[str, stats.CpuSample] = {}
        for summary in summaries:
            identity = summary["Id"]
            previous = self._cpu.get(identity)
            seen = found.get(identity)
            sample = (stats.cpu_sample(seen.statistics) if seen else None) or previous
            if sample:
                cpu[identity] = sample
            if seen:
                yield self._metrics(summary, seen, previous)
        self._cpu = cpu
        if failures:
            raise CollectorError(f"{len(failures)} of {len(summaries)} containers are missing from this round: {failures[0]}")

    def _metrics(self, summary: dict[str, Any], seen: _Observation, previous: stats.CpuSample | None) -> ResourceMetrics:
        metrics = stats.state_metrics(seen.inspection, self._clock())
        if seen.statistics:
            metrics += stats.usage_metrics(seen.inspection, seen.statistics, previous)
        return ResourceMetrics(stats.container_resource(summary, self._labels), metrics)

    def _observe_all(self, client: APIClient, summaries: Sequence[dict[str, Any]]) -> tuple[dict[str, _Observation], list[str]]:
        """What each container is and uses, and a reason for each one that could not be asked. One that has gone is neither."""
        if not summaries:
            return {}, []
        pool = ThreadPoolExecutor(min(self._workers, len(summaries)), thread_name_prefix="irca-docker-stats")
        try:
            asked = {summary["Id"]: pool.submit(_observe, client, summary["Id"]) for summary in summaries}
            wait(asked.values(), timeout=self._deadline)
        finally:
            # Threads that still wait end by their own request's timeout; the round does not wait for them.
            pool.shutdown(wait=False, cancel_futures=True)
        found: dict[str, _Observation] = {}
        failures: list[str] = []
        for identity, future in asked.items():
            try:
                found[identity] = self._result(future)
            except NotDeployedError:
                continue
            except ConnectorError as exc:
                failures.append(exc.reason)
        return found, failures

    def _result(self, future: Future[_Observation]) -> _Observation:
        if not future.done() or future.cancelled():
            raise CollectorError(f"the engine did not answer for all of them within {self._deadline:g} s")
        failure = future.exception()
        if failure is None:
            return future.result()
        if getattr(failure, "status_code", None) in _GONE:
            raise NotDeployedError(describe_failure(failure))
        raise (
            explain(failure, self._engine.host, self._engine.timeout)
            if isinstance(failure, FAILURES)
            else CollectorError(describe_failure(failure))
        )


@dataclass(frozen=True, slots=True)
class _Observation:
    inspection: dict[str, Any]
    statistics: dict[str, Any]


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


def engine_metrics(info: Mapping[str, Any]) -> list[Metric]:
    """Containers by state and images, from the engine's ``/info``."""
    by_state = (("running", "ContainersRunning"), ("paused", "ContainersPaused"), ("stopped", "ContainersStopped"))
    points = [Point(float(info.get(key) or 0), {"irca.container.state": state}) for state, key in by_state]
    return [
        Metric("irca.engine.container.count", "{container}", Kind.UPDOWNCOUNTER, points),
        Metric("irca.engine.image.count", "{image}", Kind.UPDOWNCOUNTER, [Point(float(info.get("Images") or 0))]),
    ]


def _observe(client: APIClient, identity: str) -> _Observation:
    inspection = client.inspect_container(identity)
    statistics = client.stats(identity, stream=False, one_shot=_one_shot(client)) if inspection["State"].get("Running") else {}
    return _Observation(inspection, statistics)


def _one_shot(client: APIClient) -> bool | None:
    """Ask for one reading instead of two, where the engine knows how to (API 1.41, Docker 20.10)."""
    major, _, minor = client.api_version.partition(".")
    return True if (int(major), int(minor)) >= (1, 41) else None
