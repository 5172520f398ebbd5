from __future__ import annotations

import gc
import math
from dataclasses import dataclass, field

import pytest

from app.memory import spare_the_long_lived
from app.telemetry.clusters import MANY_PODS, ClusterScope, ClusterService
from app.telemetry.matching import compile_matchers
from tests.page_clusters import MadeCluster, synthetic_cluster

NOW = 1_800_000_000.0


@dataclass
class MadeStore:
    """The series of one cluster, up to now."""

    cluster: MadeCluster
    selects: int = 0
    now: float = field(default=NOW)

    async def select(self, matchers, start_ms, end_ms, *, max_samples=None):
        self.selects += 1
        wanted = compile_matchers(matchers)
        found = self.cluster.series(start_ms, min(end_ms, self.now * 1000))
        return [one for one in found if len(one.times) and all(m.accepts(one.labels.get(m.name, "")) for m in wanted)]


def service(pods: int) -> tuple[ClusterService, MadeStore]:
    store = MadeStore(synthetic_cluster("the-agent", "leader", pods))
    return ClusterService(store, max_samples=10**9, clock=lambda: store.now), store


SCOPE = ClusterScope(("the-agent",))


@pytest.mark.parametrize("what", ["read", "pods"])
async def test_what_was_read_of_a_large_cluster_is_shown_again_for_half_a_collection_interval(what):
    clusters, store = service(MANY_PODS)
    first = await getattr(clusters, what)(SCOPE)
    asked = store.selects
    store.now += 4.9
    assert await getattr(clusters, what)(SCOPE) is first
    assert store.selects == asked
    store.now += 0.2
    assert await getattr(clusters, what)(SCOPE) is not first
    assert store.selects == 2 * asked
    clusters.forget()
    await getattr(clusters, what)(SCOPE)
    assert store.selects == 3 * asked


async def test_nothing_is_kept_of_a_small_cluster_and_nothing_of_one_for_another():
    clusters, _ = service(50)
    assert await clusters.read(SCOPE) is not await clusters.read(SCOPE)
    clusters, _ = service(MANY_PODS)
    everything = await clusters.read(SCOPE)
    assert await clusters.read(ClusterScope(("the-agent",), reasons={("leader", "kubernetes.pods"): "denied"})) is not everything
    assert await clusters.read(SCOPE, usage=True) is not everything
    assert (await clusters.read(ClusterScope(("another",)))).newest is None
    for number in range(10):
        await clusters.pods(SCOPE, namespace=f"team-{number:02}")
    assert await clusters.read(SCOPE) is everything
    assert math.isclose(sum(everything.phases.values()), MANY_PODS)


def test_a_platform_that_has_started_is_not_looked_through_for_garbage_again():
    thresholds = gc.get_threshold()
    try:
        spare_the_long_lived()
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold()[0] > thresholds[0]
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
