"""A view, a reporter of its changes, and a clock that stands still until it is set; and objects as the API gives them."""

from __future__ import annotations

import copy
from datetime import UTC, datetime

from connectors.kubernetes.changes import ChangeReporter
from connectors.kubernetes.config import DEFAULT_FEATURES, K8sAgentConfig
from connectors.kubernetes.kinds import kinds, of_features
from connectors.kubernetes.view import View

NOW = 1_795_370_000.0
CLUSTER = "cluster-uid"


def stamp(seconds):
    """A time as the API writes it; ``seconds`` from :data:`NOW`."""
    return datetime.fromtimestamp(NOW + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def obj(name, *, namespace="shop", uid="", made=-3600, manager="kubectl", wrote=None, owner=None, **rest):
    """An object made ``made`` seconds from NOW and last written by ``manager``."""
    meta = {"name": name, "uid": uid or f"uid-{name}", "creationTimestamp": stamp(made), "generation": 1}
    if namespace:
        meta["namespace"] = namespace
    if owner:
        kind, owned_by = owner
        meta["ownerReferences"] = [{"kind": kind, "name": owned_by, "uid": f"uid-{owned_by}", "controller": True}]
    meta["managedFields"] = [
        {"manager": manager, "operation": "Update", "time": stamp(made if wrote is None else wrote), "fieldsV1": {"f:spec": {}}}
    ]
    meta |= rest.pop("metadata", {})
    return {"metadata": meta, **rest}


class Reported:
    """What a reporter made of the changes of a real view."""

    def __init__(self, *features, since=None, limit=None):
        features = features or DEFAULT_FEATURES
        self.now = NOW
        self.events = []
        self.uid = CLUSTER
        self._table = kinds(b"salt")
        self.view = View(of_features(self._table, features))
        self.term = self.view.begin()
        self._version = 0
        self.reporter = ChangeReporter(
            self.view,
            K8sAgentConfig(features=features),
            lambda: {"k8s.cluster.uid": self.uid},
            self.events.append,
            clock=lambda: int(self.now * 1_000_000_000),
            since=since,
        )
        if limit is not None:
            self.reporter._limit = limit
        self.view.listen(self.reporter)

    def put(self, kind, item, *, initial=False):
        """The object is as it is; the events that this makes."""
        self._version += 1
        item = copy.deepcopy(item)
        item["metadata"].setdefault("resourceVersion", str(self._version))
        self.view.put(self.term, kind, self._table[kind].trim(item), initial=initial)
        return self._heard()

    def hold(self, kind, *items):
        """The first list of a kind: exactly these; the events that this makes."""
        found = []
        for item in items:
            found += self.put(kind, item, initial=True)
        self.view.keep(self.term, kind, {(i["metadata"].get("namespace") or "", i["metadata"]["name"]) for i in items})
        return found

    def remove(self, kind, item):
        self.view.remove(self.term, kind, (item["metadata"].get("namespace") or "", item["metadata"]["name"]))
        return self._heard()

    def wait(self, seconds):
        """Time passes, and the reporter ticks; the events that this makes."""
        self.now += seconds
        self.reporter.tick(self.now)
        return self._taken()

    def close(self):
        self.reporter.close()
        return self._taken()

    def _heard(self):
        while self.view.tell(0.0):
            pass
        assert not any(self.view.state(kind.name).reason for kind in self.view.kinds)
        return self._taken()

    def _taken(self):
        found = self.events[:]
        self.events.clear()
        return found


def names(events):
    return [event.name.removeprefix("irca.kubernetes.") for event in events]


def workload(name="web", *, image="shop/web:1", replicas=2, revision="1", generation=1, labels=None, status=None, **rest):
    """A deployment whose rollout is done, unless ``status`` says something else."""
    notes = {"deployment.kubernetes.io/revision": revision} if revision else {}
    container = {"name": "app", "image": image, **rest.pop("container", {})}
    meta = {"generation": generation, "annotations": notes | rest.pop("annotations", {}), "labels": labels or {}}
    done = {
        "observedGeneration": generation,
        "replicas": replicas,
        "updatedReplicas": replicas,
        "availableReplicas": replicas,
        "readyReplicas": replicas,
        "conditions": [progressing("NewReplicaSetAvailable", -1800)],
    }
    return obj(
        name,
        metadata=meta,
        spec={"replicas": replicas, "template": {"metadata": rest.pop("template_meta", {}), "spec": {"containers": [container]}}},
        status=done | (status or {}),
        **rest,
    )


def progressing(reason, moved, status="True"):
    return {
        "type": "Progressing",
        "status": status,
        "reason": reason,
        "message": f"{reason} it is",
        "lastUpdateTime": stamp(moved),
        "lastTransitionTime": stamp(moved),
    }


def replica_set(name, revision, image, made=-3600, deployment="web"):
    template = {"metadata": {"labels": {"pod-template-hash": name}}, "spec": {"containers": [{"name": "app", "image": image}]}}
    notes = {"annotations": {"deployment.kubernetes.io/revision": revision}}
    return obj(name, made=made, owner=("Deployment", deployment), metadata=notes, spec={"replicas": 1, "template": template}, status={})


def pod(name="web-1", *, status=None, containers=({"name": "app", "image": "shop/web:1"},), node="node-1", **rest):
    held = {"phase": "Running", **(status or {})}
    return obj(name, spec={"nodeName": node, "containers": list(containers)}, status=held, **rest)


def container(name="app", *, restarts=0, state=None, last=None):
    return {"name": name, "image": "sha256:1", "restartCount": restarts, "state": state or {}, "lastState": last or {}}


def ended(code, at, *, began=None, reason="Error", run="1", message=""):
    return {
        "terminated": {
            "exitCode": code,
            "reason": reason,
            "startedAt": stamp(at - 5 if began is None else began),
            "finishedAt": stamp(at),
            "containerID": f"docker://{run}",
            "message": message,
        }
    }


def waiting(reason, message=""):
    return {"waiting": {"reason": reason, "message": message}}


def warning(name, *, count=1, last=0, first=None, about=("Pod", "web-1"), reason="BackOff", message="it is so", uid="", **rest):
    kind, about_name = about
    return obj(
        name,
        uid=uid,
        involvedObject={"kind": kind, "namespace": "shop", "name": about_name, "uid": f"uid-{about_name}", **rest.pop("at", {})},
        reason=reason,
        message=message,
        type="Warning",
        count=count,
        firstTimestamp=stamp(last if first is None else first),
        lastTimestamp=stamp(last),
        source={"component": "kubelet"},
        **rest,
    )
