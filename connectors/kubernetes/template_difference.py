"""How a pod template differs from another: pure functions of templates as :func:`connectors.kubernetes.trim.template` leaves them.

Values of environment variables, commands, arguments and annotations are keyed hashes there. Keys begin with the name of the container
that they are of: ``app.LOG_LEVEL``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from connectors.kubernetes.difference import Parts, Telling, digest

Json = Mapping[str, Any]

TELLING = Telling(
    open=frozenset(
        {"image", "pull_policy", "resources", "security", "service_account", "node_selector", "priority_class", "network", "termination"}
    ),
    hashed=frozenset({"env", "command", "args", "annotations"}),
)
RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"
"""The annotation that ``kubectl rollout restart`` sets: a template that differs in nothing else is rolled out for the sake of it."""

_GENERATED_LABELS = frozenset({"pod-template-hash", "controller-revision-hash"})
_CONTAINERS = ("initContainers", "containers")
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_CONTAINER_FIELDS = frozenset(
    {
        *_PROBES, "name", "image", "imagePullPolicy", "command", "args", "env", "envFrom", "resources", "ports", "volumeMounts",
        "volumeDevices", "securityContext", "lifecycle",
    }
)  # fmt: skip
_NETWORK = ("hostNetwork", "hostPID", "hostIPC", "dnsPolicy")
_TERMINATION = ("terminationGracePeriodSeconds", "restartPolicy", "activeDeadlineSeconds")
_POD_FIELDS = frozenset(
    {
        *_CONTAINERS, *_NETWORK, *_TERMINATION, "volumes", "nodeSelector", "tolerations", "securityContext", "serviceAccountName",
        "serviceAccount", "priorityClassName",
    }
)  # fmt: skip
_POD = "pod"


def describe(template: Json) -> Parts:
    """What is compared of a template. Every field is in one of the parts: what has no part of its own is in ``other``."""
    meta, spec = template.get("metadata") or {}, template.get("spec") or {}
    containers = list(_containers(spec))

    def each(read: Callable[[Json], Iterable[tuple[str, str]]]) -> dict[str, str]:
        return {f"{name}.{key}" if key else name: text for name, _, container in containers for key, text in read(container)}

    return {
        "containers": {name: "init" if kind == "initContainers" else "" for name, kind, _ in containers},
        "image": each(_field("image")),
        "pull_policy": each(_field("imagePullPolicy")),
        "command": each(_hashed("command")),
        "args": each(_hashed("args")),
        "env": each(_env),
        "env_from": each(_env_from),
        "resources": each(_resources),
        "ports": each(_ports),
        "probes": each(lambda container: _digests(container, _PROBES)),
        "lifecycle": each(lambda container: _digests(container, ("lifecycle",))),
        "volume_mounts": each(_mounts),
        "security": each(lambda container: _flat(container.get("securityContext")))
        | {f"{_POD}.{key}": text for key, text in _flat(spec.get("securityContext"))},
        "volumes": {str(volume.get("name")): digest(volume) for volume in spec.get("volumes") or ()},
        "node_selector": {str(key): str(value) for key, value in (spec.get("nodeSelector") or {}).items()},
        "tolerations": {digest(each): "" for each in spec.get("tolerations") or ()},
        "service_account": _only(_POD, spec.get("serviceAccountName") or spec.get("serviceAccount")),
        "priority_class": _only(_POD, spec.get("priorityClassName")),
        "network": {key: _plain(spec[key]) for key in _NETWORK if spec.get(key)},
        "termination": {key: _plain(spec[key]) for key in _TERMINATION if spec.get(key) is not None},
        "labels": {key: digest(value) for key, value in (meta.get("labels") or {}).items() if key not in _GENERATED_LABELS},
        "annotations": {key: str(value) for key, value in (meta.get("annotations") or {}).items()},
        "other": each(lambda container: _digests(container, sorted(container.keys() - _CONTAINER_FIELDS)))
        | dict(_digests(spec, sorted(spec.keys() - _POD_FIELDS))),
    }


def images(template: Json) -> list[str]:
    """The images of a template's containers, those that only initialise first, each once."""
    return list(dict.fromkeys(str(c["image"]) for _, _, c in _containers(template.get("spec") or {}) if c.get("image")))


def _containers(spec: Json) -> Iterator[tuple[str, str, Json]]:
    for kind in _CONTAINERS:
        for container in spec.get(kind) or ():
            yield str(container.get("name")), kind, container


def _field(name: str) -> Callable[[Json], Iterable[tuple[str, str]]]:
    return lambda container: [("", str(container[name]))] if container.get(name) else []


def _hashed(name: str) -> Callable[[Json], Iterable[tuple[str, str]]]:
    # One hash of the hashes, so that a command is one key however many words it has.
    return lambda container: [("", digest(container[name]))] if container.get(name) else []


def _env(container: Json) -> Iterator[tuple[str, str]]:
    for entry in container.get("env") or ():
        source = entry.get("valueFrom")
        yield str(entry.get("name")), _reference(source) if source else str(entry.get("value") or "")


def _env_from(container: Json) -> Iterator[tuple[str, str]]:
    for entry in container.get("envFrom") or ():
        for kind in ("configMapRef", "secretRef"):
            if reference := entry.get(kind):
                yield f"{kind}:{reference.get('name')}", str(entry.get("prefix") or "")


def _reference(source: Json) -> str:
    """Where a variable's value comes from: ``secretKeyRef:name/key``."""
    for kind, reference in source.items():
        parts = (reference.get("name"), reference.get("key"), reference.get("fieldPath"), reference.get("resource"))
        return f"{kind}:{'/'.join(str(part) for part in parts if part)}"
    return ""


def _resources(container: Json) -> Iterator[tuple[str, str]]:
    held = container.get("resources") or {}
    for group in ("limits", "requests"):
        for key, value in (held.get(group) or {}).items():
            yield f"{group}.{key}", str(value)


def _ports(container: Json) -> Iterator[tuple[str, str]]:
    for port in container.get("ports") or ():
        yield f"{port.get('containerPort')}/{port.get('protocol') or 'TCP'}", digest(port)


def _mounts(container: Json) -> Iterator[tuple[str, str]]:
    for mount in container.get("volumeMounts") or ():
        yield str(mount.get("mountPath")), digest(mount)
    for device in container.get("volumeDevices") or ():
        yield str(device.get("devicePath")), digest(device)


def _digests(held: Json, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        if held.get(name) not in (None, "", [], {}):  # no and none are something else
            yield name, digest(held[name])


def _flat(held: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """A tree's leaves by their paths."""
    if isinstance(held, Mapping):
        for key, value in held.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    elif held is not None:
        yield path, " ".join(map(str, held)) if isinstance(held, list) else _plain(held)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _only(key: str, value: Any) -> dict[str, str]:
    return {key: str(value)} if value else {}
