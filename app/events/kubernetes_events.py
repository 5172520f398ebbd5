"""The events that the kubernetes agent type records of its cluster. Their resource names the object, its owners and the cluster."""

from __future__ import annotations

from collections.abc import Mapping

from app.events.event_type import ERROR, INFO, WARN, EventType

_OBJECT = {
    "irca.k8s.object.kind": "Kind of the object that it happened to, such as Deployment.",
    "irca.k8s.object.name": "Its name.",
    "k8s.namespace.name": "Its namespace, where it has one.",
}
_WHO = {
    "irca.k8s.changed_by": "Who changed it (field manager, such as helm), where the cluster recorded it.",
    "irca.k8s.change.cause": "The cause that was given (annotation kubernetes.io/change-cause), where it is new.",
}
_CHART = {
    "irca.k8s.chart.from": "Helm chart before, by the label helm.sh/chart, where it is another.",
    "irca.k8s.chart.to": "Helm chart now.",
    "irca.k8s.app_version.from": "Version before, by the label app.kubernetes.io/version, where it is another.",
    "irca.k8s.app_version.to": "Version now.",
}
_CHANGED = {"irca.k8s.changed": "Parts that differ."}
_KEYS = {
    "irca.k8s.change.<part>.added": "Keys that are new, of parts whose values are not told.",
    "irca.k8s.change.<part>.removed": "Keys that are gone, of the same parts.",
    "irca.k8s.change.<part>.changed": "Keys whose values differ, of the same parts.",
}
_VALUES = {
    "irca.k8s.change.<part>.from": "Values before, as key=value, of parts that hold no secrets.",
    "irca.k8s.change.<part>.to": "Values now, of the same parts.",
}
_HASHES = {"irca.k8s.change.hashes": "Hashes of the values now, as part.key=hash, under a key that never leaves the agent."}
_UNSEEN = {"irca.k8s.change.unseen": "True when it was changed while nobody watched, so that what differs is not known."}
_IMAGES = {"container.image.name": "Images of its containers."}
_ROLLOUT = _OBJECT | {"irca.k8s.rollout.revision": "Revision, as the controller calls it."} | _IMAGES | _CHART
_PODS = {
    "irca.k8s.rollout.pods.desired": "Pods wanted.",
    "irca.k8s.rollout.pods.updated": "Pods of the new template.",
    "irca.k8s.rollout.pods.available": "Pods that are available; of a stateful set, ready.",
}
_MESSAGE = {"irca.k8s.message": "What the cluster says about it, without what looks like a secret."}
_CONTAINER = _OBJECT | {
    "k8s.pod.name": "Pod.",
    "k8s.container.name": "Container.",
    "container.image.name": "Its image.",
    "container.image.id": "The image that runs, where the cluster tells.",
    "k8s.container.restart_count": "Restarts until then.",
    "k8s.container.status.reason": "The reason, in the cluster's word.",
}
_ENDED = {
    "irca.container.exit_code": "Exit code; above 128, the signal that ended it is the rest.",
    "k8s.container.status.last_terminated_reason": "Why the last run ended.",
    "irca.container.signal": "Number of the signal, where the cluster tells.",
}
_CONDITION = {"irca.k8s.condition.reason": "Reason of the condition, in the cluster's word."}
_RELEASE = _OBJECT | {
    "irca.helm.release.name": "Release.",
    "irca.helm.release.revision": "Its revision.",
    "irca.helm.release.status": "Status, in Helm's word.",
}


def _event(what: str, meaning: str, attributes: Mapping[str, str], severity: int = INFO) -> EventType:
    return EventType(f"irca.kubernetes.{what}", severity, meaning, attributes, source="agent")


def _lifecycle(noun: str, called: str, changed: dict[str, str], note: str = "") -> tuple[EventType, ...]:
    """Created, changed and deleted."""
    return (
        _event(f"{noun}.created", f"{called} was created.{note}", _OBJECT | _CHART | _WHO),
        _event(f"{noun}.changed", f"{called} was changed.{note}", _OBJECT | _CHANGED | changed | _CHART | _WHO),
        _event(f"{noun}.deleted", f"{called} was deleted, and not its whole namespace with it.{note}", _OBJECT | _CHART),
    )


KUBERNETES_EVENTS = (
    _event(
        "rollout.started",
        "A deployment, stateful set or daemon set began to roll out another template.",
        _ROLLOUT
        | {
            "irca.k8s.rollout.previous_revision": "Revision before.",
            "irca.k8s.rollout.restart": "True when nothing but the time of a restart that was asked for differs.",
            "irca.k8s.changed": "Parts that differ: image, env, resources, command, volumes, probes and so on.",
            "irca.k8s.change.<part>.added": "Keys that are new, beginning with the container's name: of env, volumes, probes and so on.",
            "irca.k8s.change.<part>.removed": "Keys that are gone, of the same parts.",
            "irca.k8s.change.<part>.changed": "Keys whose values differ, of the same parts.",
            "irca.k8s.change.<part>.from": (
                "Values before, of image, pull_policy, resources, security, service_account, node_selector, priority_class, network "
                "and termination."
            ),
            "irca.k8s.change.<part>.to": "Values now, of the same parts.",
            "irca.k8s.change.hashes": (
                "Of env, command, args and annotations, hashes of the values under a key that never leaves the agent; of a variable that "
                "has its value from elsewhere, from where."
            ),
        }
        | _WHO,
    ),
    _event(
        "rollout.completed",
        "Every pod of a deployment, stateful set or daemon set is of the new template and available.",
        _ROLLOUT | _PODS | {"irca.k8s.rollout.duration": "Seconds that it took, where its beginning was seen."},
    ),
    _event(
        "rollout.stalled",
        "A rollout makes no progress: a deployment's own deadline has passed, or ten minutes for the other kinds.",
        _ROLLOUT | _PODS | _MESSAGE,
        ERROR,
    ),
    _event(
        "workload.created",
        "A deployment, stateful set, daemon set, or replica set that nothing controls, was created.",
        _OBJECT | _IMAGES | _CHART | _WHO,
    ),
    _event("workload.deleted", "Such a workload was deleted, and not its whole namespace with it.", _OBJECT | _CHART),
    _event(
        "workload.scaled",
        "The number of pods that a workload is to have was changed. Its pods are not told one by one.",
        _OBJECT
        | {
            "irca.k8s.scale.from": "Pods before.",
            "irca.k8s.scale.to": "Pods now.",
            "irca.k8s.scale.by": "autoscaler, or manager where somebody else is recorded.",
            "k8s.hpa.name": "The autoscaler.",
        }
        | _WHO,
    ),
    _event("chart.changed", "A workload's chart or version is another by its labels, without a new template.", _OBJECT | _CHART | _WHO),
    _event(
        "pod.oom_killed",
        "A container was killed because memory ran out.",
        _CONTAINER | _ENDED | {"irca.k8s.container.memory.limit": "Its memory limit, as written."} | _MESSAGE,
        ERROR,
    ),
    _event(
        "pod.container_exited",
        "A container ended with another exit code than 0. Its severity is warn when its pod was being deleted.",
        _CONTAINER
        | _ENDED
        | {
            "irca.container.oom_suspected": "True of exit code 137 under a memory limit, without anybody having asked for its end.",
            "irca.k8s.container.memory.limit": "Its memory limit, with exit code 137.",
        }
        | _MESSAGE,
        ERROR,
    ),
    _event(
        "pod.crash_loop",
        "A container crashes again and again, and the kubelet waits before it starts it anew. Told once until it has run for ten minutes.",
        _CONTAINER | _ENDED | {"irca.k8s.container.ran": "Seconds that its last run lasted."} | _MESSAGE,
        ERROR,
    ),
    _event(
        "pod.image_pull_failed", "A container's image cannot be pulled. Told once for a container and image.", _CONTAINER | _MESSAGE, ERROR
    ),
    _event(
        "pod.config_error",
        "A container cannot be made or started: what it refers to is not there, or cannot be used.",
        _CONTAINER | _MESSAGE,
        ERROR,
    ),
    _event("pod.evicted", "A pod was evicted from its node.", _OBJECT | {"k8s.pod.status.reason": "Evicted."} | _MESSAGE, WARN),
    _event(
        "pod.failed",
        "A pod failed as a whole for a reason that the cluster names.",
        _OBJECT | {"k8s.pod.status.reason": "The reason."} | _MESSAGE,
        ERROR,
    ),
    _event(
        "pod.failed_scheduling",
        "No node can take a pod. Told once until it was scheduled.",
        _OBJECT | {"k8s.pod.status.reason": "Unschedulable."} | _MESSAGE,
        WARN,
    ),
    _event("node.added", "A node was added.", _OBJECT),
    _event("node.removed", "A node was removed.", _OBJECT, WARN),
    _event("node.cordoned", "A node was cordoned: it takes no new pods.", _OBJECT | _WHO, WARN),
    _event("node.uncordoned", "A node was uncordoned.", _OBJECT | _WHO),
    _event(
        "node.taints_changed",
        "A node's taints changed, beside those that follow from its conditions.",
        _OBJECT | _CHANGED | _KEYS | _WHO,
    ),
    _event(
        "node.condition_changed",
        "A node's condition changed. Its severity is error when it is not ready, warn for another that is bad.",
        _OBJECT
        | {
            "k8s.node.condition.type": "Condition, such as Ready.",
            "k8s.node.condition.status": "true, false or unknown.",
            "irca.k8s.condition.previous_status": "Status before.",
        }
        | _CONDITION
        | _MESSAGE,
    ),
    _event("node.upgraded", "A node runs another kubelet, container runtime, kernel or system.", _OBJECT | _CHANGED | _VALUES),
    _event("namespace.created", "A namespace was created.", _OBJECT | _WHO),
    _event("namespace.deleted", "The deletion of a namespace, and of all that is in it, has begun.", _OBJECT, WARN),
    *_lifecycle("configmap", "A config map", _KEYS | _HASHES | _UNSEEN),
    *_lifecycle("secret", "A secret", _KEYS | _HASHES | _UNSEEN, " Only with the feature secrets."),
    _event("helm_release.deployed", "A revision of a Helm release was deployed. Only with the feature secrets.", _RELEASE),
    _event("helm_release.failed", "A revision of a Helm release failed. Only with the feature secrets.", _RELEASE, ERROR),
    _event("helm_release.uninstalled", "A Helm release was uninstalled. Only with the feature secrets.", _RELEASE),
    *_lifecycle("rbac", "A role, cluster role, or a binding of one", _KEYS | _VALUES | _UNSEEN),
    *_lifecycle("hpa", "A horizontal pod autoscaler", _KEYS | _VALUES),
    *_lifecycle("quota", "A resource quota", _KEYS | _VALUES),
    *_lifecycle("disruption_budget", "A pod disruption budget", _KEYS | _VALUES),
    *_lifecycle("cronjob", "A cron job", _KEYS | _VALUES | _HASHES),
    _event(
        "job.failed",
        "A job failed for good.",
        _OBJECT | _CONDITION | {"irca.k8s.job.pods.failed": "Pods of it that failed."} | _MESSAGE,
        ERROR,
    ),
    _event("pvc.lost", "A volume claim has lost its volume.", _OBJECT | {"k8s.volume.name": "The volume."}, ERROR),
    _event(
        "warning.recorded",
        "The cluster recorded a warning. Told when a series (a reason, about one object) begins, and then once a minute at most.",
        _OBJECT
        | {
            "irca.k8s.event.reason": "Reason, in the cluster's word.",
            "irca.k8s.event.count": "How often the last event of the series was counted.",
            "irca.k8s.event.delta": "How often it happened since it was told last.",
            "irca.k8s.event.name": "Name of that event.",
            "irca.k8s.event.source": "Who recorded it, such as kubelet.",
        }
        | _MESSAGE,
        WARN,
    ),
    _event(
        "events.dropped",
        "An agent left out events of a cluster because too many of a kind, or about one object, came at a time.",
        {
            "irca.events.dropped": "How many.",
            "irca.events.dropped.kinds": "Which most, with their counts.",
            "irca.gap.start_time_unix_nano": "Start of the stretch.",
            "irca.gap.end_time_unix_nano": "End of the stretch.",
        },
        WARN,
    ),
)
"""In the order in which they are documented."""
