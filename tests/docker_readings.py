"""What the docker collectors read of a stub, and what they made of it."""

from __future__ import annotations

from engine_stub import STARTED

FINE = {"docker.engine": "", "docker.containers": "", "docker.disk": ""}


def inspection(memory_limit=0, **state):
    described = {"Status": "running", "Running": True, "StartedAt": STARTED, "FinishedAt": "0001-01-01T00:00:00Z"} | state
    return {"State": described, "RestartCount": 4, "HostConfig": {"Memory": memory_limit}}


def values(metrics):
    """Every value by metric name, or by name and attribute values where it has attributes."""
    return {"|".join([metric.name, *map(str, point.attributes.values())]): point.value for metric in metrics for point in metric.points}


def by_container(collection):
    return {r.resource.get("container.name"): values(r.metrics) for r in collection.resources}


def outcome(collection):
    return {result.name: result.reason for result in collection.collectors}
