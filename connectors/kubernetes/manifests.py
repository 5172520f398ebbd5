"""The agent's objects for ``kubectl apply``, as a pure function of the configuration: what the chart renders, for whoever has no Helm.

The chart (``chart/templates``) is the other writing of the same objects; a test renders both and compares them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from connectors._version import __version__
from connectors.kubernetes.access import Access, needed
from connectors.kubernetes.artefacts import CHART, CHART_OWNED_OPTIONS, PROVISIONED_SECRET
from connectors.kubernetes.config import Feature, K8sAgentConfig
from connectors.kubernetes.image_reference import pull_policy, resolved

Manifest = dict[str, Any]
_CLUSTER, _NODE = "cluster-view", "node-view"
_RBAC = "rbac.authorization.k8s.io"
_STATE_DIR = "/var/lib/incident-rca"
_TOKEN_DIR = "/run/secrets/incident-rca"  # noqa: S105 - where the token is mounted, not a token
_CA_DIR = "/etc/incident-rca/ca"
_USER = 10001
_LEAST_BUDGET_V1 = (1, 21)
"""The first version of Kubernetes with ``policy/v1``."""
_FIELDS = {
    "NODE_IP": "status.hostIP",
    "NODE_NAME": "spec.nodeName",
    "POD_NAME": "metadata.name",
    "POD_NAMESPACE": "metadata.namespace",
    "POD_UID": "metadata.uid",
}


def manifests(platform_url: str, config: K8sAgentConfig, *, kubernetes: tuple[int, int] = _LEAST_BUDGET_V1) -> list[Manifest]:
    """The objects in the order in which they are to be made, without namespace and Secret, which have to be there before.

    Args:
        platform_url: where the platform is reached from the cluster.
        config: of its options, ``existing_secret`` names the Secret that holds the token (by default ``incident-rca-agent``), and
            ``ca_config_map`` the ConfigMap that holds the platform's certificate authority.
        kubernetes: major and minor version of the cluster, at least.
    """
    made = _Release(platform_url, config)
    objects = [*made.accounts(), *made.roles(), made.lease()]
    if config.replicas > 1:
        objects.append(made.disruption_budget("policy/v1" if kubernetes >= _LEAST_BUDGET_V1 else "policy/v1beta1"))
    if config.node_view:
        objects.append(made.daemon_set())
    return [*objects, made.deployment()]


def full_name(config: K8sAgentConfig) -> str:
    """What the names of all objects begin with."""
    return config.release_name.removesuffix("-agent") + "-agent"


class _Release:
    def __init__(self, platform_url: str, config: K8sAgentConfig) -> None:
        self._platform_url = platform_url
        self._config = config
        self._name = full_name(config)
        self._secret = config.existing_secret or PROVISIONED_SECRET
        self._lease = config.explicit().get("lease_name", self._name)

    def accounts(self) -> Iterator[Manifest]:
        for suffix, component in self._views():
            yield self._object("v1", "ServiceAccount", self._name + suffix, component)

    def roles(self) -> Iterator[Manifest]:
        for suffix, component in self._views():
            values = {**self._config.explicit(), "view": "cluster" if component == _CLUSTER else "node", "lease_name": self._lease}
            accesses = needed(K8sAgentConfig.from_mapping(values))
            account = {"kind": "ServiceAccount", "name": self._name + suffix, "namespace": self._config.namespace}
            name = f"{self._config.namespace}:{self._name}{suffix}"
            everywhere = [access for access in accesses if not access.namespaced]
            yield from self._granted("ClusterRole", name, everywhere, account, component)
            if inside := [access for access in accesses if access.namespaced]:
                yield from self._granted("Role", self._name + suffix, inside, account, component)

    def lease(self) -> Manifest:
        return self._object("coordination.k8s.io/v1", "Lease", self._lease, _CLUSTER)

    def disruption_budget(self, api_version: str) -> Manifest:
        spec = {"maxUnavailable": 1, "selector": {"matchLabels": self._selector(_CLUSTER)}}
        return self._object(api_version, "PodDisruptionBudget", self._name, _CLUSTER) | {"spec": spec}

    def deployment(self) -> Manifest:
        spec: Manifest = {
            "replicas": self._config.replicas,
            "revisionHistoryLimit": 3,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": self._selector(_CLUSTER)},
            "template": self._pod(_CLUSTER, {"cpu": "25m", "memory": "96Mi"}, "512Mi", self._apart()),
        }
        return self._object("apps/v1", "Deployment", self._name, _CLUSTER) | {"spec": spec}

    def daemon_set(self) -> Manifest:
        everywhere = {"tolerations": [{"operator": "Exists"}]}
        spec = {
            "revisionHistoryLimit": 3,
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}},
            "selector": {"matchLabels": self._selector(_NODE)},
            "template": self._pod(_NODE, {"cpu": "10m", "memory": "64Mi"}, "192Mi", everywhere),
        }
        return self._object("apps/v1", "DaemonSet", f"{self._name}-node", _NODE) | {"spec": spec}

    def _views(self) -> list[tuple[str, str]]:
        return [("", _CLUSTER), *([("-node", _NODE)] if self._config.node_view else [])]

    def _selector(self, component: str) -> dict[str, str]:
        return {
            "app.kubernetes.io/name": CHART,
            "app.kubernetes.io/instance": self._config.release_name,
            "app.kubernetes.io/component": component,
        }

    def _object(self, api_version: str, kind: str, name: str, component: str) -> Manifest:
        labels = {
            **self._selector(component),
            "app.kubernetes.io/part-of": "incident-rca",
            "app.kubernetes.io/version": __version__.replace("+", "_"),
            "app.kubernetes.io/managed-by": "kubectl",
        }
        metadata: Manifest = {"name": name, "labels": labels}
        if not kind.startswith("ClusterRole"):
            metadata["namespace"] = self._config.namespace
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata}

    def _granted(self, kind: str, name: str, accesses: Iterable[Access], account: Manifest, component: str) -> Iterator[Manifest]:
        yield self._object(f"{_RBAC}/v1", kind, name, component) | {"rules": rules(accesses)}
        reference = {"apiGroup": _RBAC, "kind": kind, "name": name}
        yield self._object(f"{_RBAC}/v1", f"{kind}Binding", name, component) | {"roleRef": reference, "subjects": [account]}

    def _apart(self) -> Manifest:
        if self._config.replicas == 1:
            return {}
        term = {"labelSelector": {"matchLabels": self._selector(_CLUSTER)}, "topologyKey": "kubernetes.io/hostname"}
        preferred = [{"weight": 100, "podAffinityTerm": term}]
        return {"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}}

    def _pod(self, component: str, requests: Mapping[str, str], memory: str, placed: Manifest) -> Manifest:
        volumes = {name: source for name, (source, _path) in self._mounts().items()}
        container = {
            "name": "agent",
            "image": resolved(self._config.image, __version__),
            "imagePullPolicy": pull_policy(self._config.image),
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            },
            "env": list(self._environment(component)),
            "startupProbe": _probe("live", 3, 40),
            "livenessProbe": _probe("live", 60, 3),
            "readinessProbe": _probe("ready", 10, 3),
            "resources": {"requests": dict(requests), "limits": {"memory": memory}},
            "volumeMounts": [
                {"name": name, "mountPath": path, **({} if name == "state" else {"readOnly": True})}
                for name, (_source, path) in self._mounts().items()
            ],
        }
        secrets = [{"name": name} for name in self._config.image_pull_secrets]
        spec = {
            "serviceAccountName": self._name + ("" if component == _CLUSTER else "-node"),
            "automountServiceAccountToken": True,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 20,
            **({"imagePullSecrets": secrets} if secrets else {}),
            "nodeSelector": {"kubernetes.io/os": "linux"},
            **placed,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "runAsGroup": _USER,
                "fsGroup": _USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": name, **source} for name, source in volumes.items()],
        }
        return {"metadata": {"labels": self._selector(component)}, "spec": spec}

    def _mounts(self) -> dict[str, tuple[Manifest, str]]:
        """Volumes by name: source, and path in the container."""
        token = {"secretName": self._secret, "defaultMode": 0o440, "items": [{"key": "token", "path": "token"}]}
        mounts: dict[str, tuple[Manifest, str]] = {
            "state": ({"emptyDir": {"sizeLimit": "512Mi"}}, self._config.state_dir or _STATE_DIR),
            "token": ({"secret": token}, _TOKEN_DIR),
        }
        if self._config.ca_config_map:
            authority = {"name": self._config.ca_config_map, "items": [{"key": "ca.crt", "path": "ca.crt"}]}
            mounts["ca"] = ({"configMap": authority}, _CA_DIR)
        return mounts

    def _environment(self, component: str) -> Iterator[Manifest]:
        """The container's environment variables, in the chart's order."""
        yield {"name": "AGENT_TYPE", "value": "kubernetes"}
        yield {"name": "VIEW", "value": "cluster" if component == _CLUSTER else "node"}
        yield {"name": "PLATFORM_API_URL", "value": _literal(self._platform_url)}
        yield {"name": "AGENT_TOKEN_FILE", "value": f"{_TOKEN_DIR}/token"}
        if component == _CLUSTER:
            yield {"name": "FEATURES", "value": ",".join(name for name in get_args(Feature) if name in self._config.features) or ","}
            yield {"name": "LEASE_NAME", "value": self._lease}
        for name, path in _FIELDS.items():
            yield {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
        if self._config.ca_config_map:
            yield {"name": "CA_FILE", "value": f"{_CA_DIR}/ca.crt"}
        for name, text in sorted(chart_options(self._config).items()):
            yield {"name": name.upper(), "value": _literal(text)}


def chart_options(config: K8sAgentConfig) -> dict[str, str]:
    """The agent's options that the chart takes under ``config``: by name, in the form of their environment variables."""
    own = {config.options()[name].variable for name in CHART_OWNED_OPTIONS & config.options().keys()}
    return {variable.lower(): text for variable, text in config.environment().items() if variable not in own}


def rules(accesses: Iterable[Access]) -> list[Manifest]:
    """The rules of a role that allows ``accesses``: those of one group, of the same verbs and names are one rule."""
    verbs: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for access in accesses:
        verbs.setdefault((access.group, access.resource, access.names), []).append(access.verb)
    found = []
    for (group, names, allowed), same in itertools.groupby(verbs, key=lambda key: (key[0], key[2], verbs[key])):
        named = {"resourceNames": list(names)} if names else {}
        found.append({"apiGroups": [group], "resources": [resource for _, resource, _ in same], **named, "verbs": list(allowed)})
    return found


def _probe(question: str, period: int, failures: int) -> Manifest:
    command = ["python", "-m", "connectors.core.probe", question]
    return {"exec": {"command": command}, "periodSeconds": period, "timeoutSeconds": 10, "failureThreshold": failures}


def _literal(text: str) -> str:
    """``text`` as the value of a container's variable, in which Kubernetes finds no reference to another one."""
    return text.replace("$(", "$$(")
