"""A view that holds objects as watches leave them there, and what its collectors make of them."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path

from connectors.core.collector import run_collectors
from connectors.kubernetes.collect import cluster_collectors
from connectors.kubernetes.config import DEFAULT_FEATURES, K8sAgentConfig
from connectors.kubernetes.kinds import KINDS, of_features
from connectors.kubernetes.view import View

FIXTURES = Path(__file__).parent / "fixtures" / "kubernetes"
NOW = 1_795_370_000.0
"""Some minutes after the objects of the fixtures were written down."""


@functools.cache
def _recorded():
    return json.loads((FIXTURES / "objects.json").read_text())


def recorded(kind, name=None):
    """What a real cluster (1.20) said of its objects of a kind, or of the one whose name begins with ``name``."""
    items = copy.deepcopy(_recorded()[kind])
    if name is None:
        return items
    [item] = [item for item in items if item["metadata"]["name"].startswith(name)]
    return item


class Watched:
    """A view, its collectors, and a clock that stands still until it is set."""

    def __init__(self, *features, **config):
        config.setdefault("features", features or DEFAULT_FEATURES)
        self.config = K8sAgentConfig(**config)
        self.kinds = [kind.name for kind in of_features(KINDS, self.config.features)]
        self.view = View(KINDS[name] for name in self.kinds)
        self.term = self.view.begin()
        self.now = NOW
        self.collectors = cluster_collectors(self.view, self.config, lambda: self.now, lambda: {"k8s.cluster.uid": "c"})

    def hold(self, kind, *items):
        """The kind's list is read, and it holds exactly these."""
        keys = set()
        for item in items:
            trimmed = KINDS[kind].trim(item)
            keys.add((trimmed["metadata"].get("namespace") or "", trimmed["metadata"]["name"]))
            self.view.put(self.term, kind, trimmed, initial=True)
        self.view.keep(self.term, kind, keys)

    def sync(self):
        """Every list is read; what was not held before is empty."""
        for kind in self.kinds:
            self.view.keep(self.term, kind, {key_of(item) for item in self.view.all(kind)})

    def collect(self):
        return run_collectors(self.collectors, {"k8s.cluster.uid": "c"})


def key_of(item):
    return item["metadata"].get("namespace") or "", item["metadata"]["name"]


def recorded_cluster():
    """A view with everything that was recorded."""
    watched = Watched()
    for kind, items in _recorded().items():
        watched.hold(kind, *items)
    watched.sync()
    return watched


def values(metrics):
    return {"|".join([m.name, *map(str, p.attributes.values())]): p.value for m in metrics for p in m.points}


def outcome(collection):
    return {result.name: result.reason for result in collection.collectors}


def resource_of(collection, **names):
    """The one resource with these attributes (``k8s_pod_name`` is ``k8s.pod.name``), of which a pod's is not one of its containers'."""
    wanted = {key.replace("_", "."): value for key, value in names.items()}
    [found] = _found(collection, wanted)
    return found


def gathered(collection, **names):
    """The values of that one resource; nothing where there is none."""
    wanted = {key.replace("_", "."): value for key, value in names.items()}
    found = _found(collection, wanted)
    assert len(found) < 2, [r.resource for r in found]
    return values(found[0].metrics) if found else {}


def _found(collection, wanted):
    [last] = list(wanted)[-1:]
    kind = last.rpartition(".")[0]
    return [r for r in collection.resources if wanted.items() <= r.resource.items() and _is_of(r.resource, kind)]


def _is_of(resource, kind):
    """Whether this is a resource of that kind itself: those of pods and containers carry the names of what owns them, too."""
    if kind == "k8s.container":
        return True
    inner = [key for key in resource if key.endswith(".uid") and key != "k8s.cluster.uid"]
    return "k8s.container.name" not in resource and (inner == [f"{kind}.uid"] or not inner)
