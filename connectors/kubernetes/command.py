"""The commands and Helm values of the kubernetes agent type, as pure functions of the configuration. All are for a POSIX shell."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, get_args

from connectors._version import __version__
from connectors.core.quoting import helm_key, helm_value, posix, posix_command, posix_lines
from connectors.kubernetes.artefacts import CHART, CHARTS_PATH, PROVISIONED_SECRET
from connectors.kubernetes.config import Feature, K8sAgentConfig
from connectors.kubernetes.image_reference import ImageReference, pull_policy, resolved
from connectors.kubernetes.manifest_url import manifests_url
from connectors.kubernetes.manifests import chart_options, full_name

REPOSITORY = "incident-rca"
WAIT = "3m"
"""How long helm waits for the pods to be ready, which they are once they have enrolled."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class TokenBy(Enum):
    """How the token gets to helm: as an argument, or on its standard input."""

    ARGUMENT = "--set-string"
    STDIN = "--values -"


def deployment_command(platform_url: str, token: str, config: K8sAgentConfig, by: TokenBy = TokenBy.ARGUMENT) -> str:
    """The ``helm`` commands that deploy the agent and wait until its pods are ready.

    They add the platform as a chart repository, then install or upgrade the release. A configured ``existing_secret`` goes before ``by``.
    """
    chart_values = values(platform_url, token, config)
    document = {"token": chart_values.pop("token")} if by is TokenBy.STDIN and "token" in chart_values else {}
    trust = ["--ca-file", config.ca_file] if config.ca_file else []
    upgrade = posix_lines(
        [
            ["helm", "upgrade", "--install", config.release_name, f"{REPOSITORY}/{CHART}"],
            ["--namespace", config.namespace, "--create-namespace"],
            *_set_flags(chart_values),
            *([["--set-file", f"caBundle.pem={helm_value(config.ca_file)}"]] if config.ca_file else []),
            *([["--values", "-"]] if document else []),
            ["--wait", "--timeout", WAIT],
        ]
    )
    if document:  # printf is the shell's own, so that no process list shows what it prints
        upgrade = f"printf %s {posix(json.dumps(document))} | {upgrade}"
    steps = [
        posix_command(["helm", "repo", "add", REPOSITORY, repository_url(platform_url), "--force-update", *trust]),
        posix_command(["helm", "repo", "update", REPOSITORY]),
        upgrade,
    ]
    return " && \\\n".join(steps)


def alternatives(platform_url: str, token: str, config: K8sAgentConfig) -> list[tuple[str, str]]:
    """Other ways to deploy the agent, as (title, command): the token out of process lists, or of the shell's history; and without Helm."""
    found = []
    if not config.existing_secret:
        secret = replace(config, existing_secret=PROVISIONED_SECRET)
        found += [
            (
                "Token on helm's standard input, so that no process list shows it",
                deployment_command(platform_url, token, config, TokenBy.STDIN),
            ),
            (
                f"Token in a Secret that you make, so that no history keeps it: first {secret_command(secret)} Then run this.",
                deployment_command(platform_url, token, secret),
            ),
        ]
    return [
        *found,
        ("kubectl instead of Helm, with objects that the platform renders", kubectl_command(platform_url, token, config)),
        ("kubectl: this removes again what it made", kubectl_removal(platform_url, config)),
    ]


def kubectl_command(platform_url: str, token: str, config: K8sAgentConfig) -> str:
    """The ``kubectl`` commands that deploy the agent without Helm: namespace, Secret, then the objects that the platform renders.

    The token goes to kubectl's standard input; a Secret that is configured has to be there.
    """
    inside = ["kubectl", "--namespace", config.namespace]
    dry = ["--dry-run=client", "--output=yaml"]
    apply = "kubectl apply --filename -"
    steps = [f"{posix_command(['kubectl', 'create', 'namespace', config.namespace, *dry])} | {apply}"]
    if not config.existing_secret:
        make = [*inside, "create", "secret", "generic", PROVISIONED_SECRET, "--from-file=token=/dev/stdin", *dry]
        steps.append(f"printf %s {posix(token)} | {posix_command(make)} | {apply}")
    if config.ca_file:
        make = [*inside, "create", "configmap", _rendered(config).ca_config_map, f"--from-file=ca.crt={config.ca_file}", *dry]
        steps.append(f"{posix_command(make)} | {apply}")
    return " && \\\n".join([*steps, _on_manifests("apply", platform_url, config)])


def kubectl_removal(platform_url: str, config: K8sAgentConfig) -> str:
    """The commands that remove what :func:`kubectl_command` made, but for the namespace."""
    steps = [_on_manifests("delete --ignore-not-found", platform_url, config)]
    remove = ["kubectl", "--namespace", config.namespace, "delete", "--ignore-not-found"]
    if not config.existing_secret:
        steps.append(posix_command([*remove, "secret", PROVISIONED_SECRET]))
    if config.ca_file:
        steps.append(posix_command([*remove, "configmap", _rendered(config).ca_config_map]))
    return " && \\\n".join(steps)


def _on_manifests(action: str, platform_url: str, config: K8sAgentConfig) -> str:
    url = manifests_url(platform_url, _rendered(config))
    if config.ca_file:  # kubectl itself would not trust that authority
        return f"{posix_command(['curl', '-fsSL', '--cacert', config.ca_file, url])} | kubectl {action} --filename -"
    return f"kubectl {action} --filename {posix(url)}"


def _rendered(config: K8sAgentConfig) -> K8sAgentConfig:
    """The configuration whose objects the platform renders: a file of the user's is a ConfigMap in the cluster."""
    return replace(config, ca_file="", ca_config_map=f"{full_name(config)}-ca") if config.ca_file else config


def secret_command(config: K8sAgentConfig) -> str:
    """What makes the namespace and the Secret of ``existing_secret``; the token is read from the terminal, so that no history keeps it."""
    namespace = posix(config.namespace)
    make = posix_command(
        [
            *("kubectl", "--namespace", config.namespace, "create", "secret", "generic"),
            *(config.existing_secret, "--from-file=token=/dev/stdin"),
        ]
    )
    return f"`kubectl create namespace {namespace}; {make}`, then paste the token and press Enter and Ctrl-D."


def uninstall_command(config: K8sAgentConfig) -> str:
    """The command that removes the release. The namespace stays: it may hold other things."""
    return posix_command(["helm", "uninstall", config.release_name, "--namespace", config.namespace])


def install_arguments(platform_url: str, config: K8sAgentConfig) -> list[str]:
    """The arguments of the ``helm`` that installs or upgrades the release, its values (:func:`values`) on standard input."""
    trust = ["--ca-file", config.ca_file] if config.ca_file else []
    return [
        *("upgrade", "--install", config.release_name, CHART, "--repo", repository_url(platform_url), *trust),
        *("--namespace", config.namespace, "--create-namespace", "--values", "-"),
    ]


def values(platform_url: str, token: str, config: K8sAgentConfig) -> dict[str, Any]:
    """The chart's values for this agent, as far as they differ from the chart's own, but for the content of ``ca_file``.

    ``config`` holds the agent's options by name, in their environment variables' form.
    """
    secret = {"existingSecret": config.existing_secret} if config.existing_secret else {"token": token}
    result: dict[str, Any] = {"platformUrl": platform_url, **secret, "replicas": config.replicas}
    defaults = K8sAgentConfig().features
    if changed := {name: name in config.features for name in get_args(Feature) if (name in config.features) != (name in defaults)}:
        result["features"] = changed
    if config.node_view:
        result["nodeView"] = {"enabled": True}
    if config.image:
        image = ImageReference.parse(config.image)
        result["image"] = {
            key: text for key, text in (("repository", image.repository), ("tag", image.tag), ("digest", image.digest)) if text
        }
    if config.image_pull_secrets:
        result["imagePullSecrets"] = [{"name": name} for name in config.image_pull_secrets]
    if config.ca_config_map:
        result["caBundle"] = {"configMap": config.ca_config_map}
    if lease := config.explicit().get("lease_name"):
        result["leaseName"] = lease
    if options := chart_options(config):
        result["config"] = options
    return result


def repository_url(platform_url: str) -> str:
    """Where the platform serves its chart repository."""
    return f"{platform_url}{CHARTS_PATH}"


def instructions(platform_url: str, config: K8sAgentConfig) -> str:
    """Numbered steps for a person who is about to run the deployment command."""
    return "\n".join(f"{number}. {step}" for number, step in enumerate(_steps(platform_url, config), 1))


def _steps(platform_url: str, config: K8sAgentConfig) -> Iterator[str]:
    namespace, release = config.namespace, config.release_name
    yield (
        "Ensure Helm 3+ is installed (`helm version`) and that kubectl's current context is the cluster to connect "
        "(`kubectl config current-context`), with the right to create a namespace, a ClusterRole and a ClusterRoleBinding."
    )
    yield _image_step(platform_url, config)
    if urllib.parse.urlsplit(platform_url).hostname in _LOOPBACK:
        yield f"In a pod, {platform_url} is the pod itself. Give the platform a public URL that pods can reach (IRCA_PUBLIC_URL) first."
    if config.existing_secret:
        yield f"Make the Secret that holds the token: {secret_command(config)}"
    if config.ca_config_map:
        yield (
            f"Make the ConfigMap that holds the platform's certificate authority: `kubectl --namespace {namespace} create configmap "
            f"{config.ca_config_map} --from-file=ca.crt=FILE`; `helm repo add` needs `--ca-file FILE` unless this machine trusts it."
        )
    if "secrets" in config.features:
        yield "The feature secrets lets the agent's account read every Secret of the cluster, contents and all. Is that what you want?"
    yield (
        f"Run the command in a POSIX shell. It waits until the pods are ready, {WAIT} at most, and may be run again: "
        "it upgrades the release in place. The agent appears on the platform within a minute."
    )
    yield (
        f"If it does not: `kubectl --namespace {namespace} get pods` and `kubectl --namespace {namespace} logs --selector "
        f"app.kubernetes.io/instance={release} --prefix` say why; `kubectl --namespace {namespace} exec deployment/{full_name(config)} -- "
        "incident-rca-agent check` says what is wrong."
    )
    kept = f" and the Secret {config.existing_secret}" if config.existing_secret else ""
    yield (
        f"To remove it: `{uninstall_command(config)}`. The namespace{kept} stay{'' if kept else 's'}; `kubectl delete namespace "
        f"{namespace}` removes all that is in it."
    )


def _image_step(platform_url: str, config: K8sAgentConfig) -> str:
    image = resolved(config.image, __version__)
    if pull_policy(config.image) != "Never":
        return f"Make sure that the cluster's nodes can pull the image {image}."
    return (
        f"Make sure that every node has the image {image}, which is in no registry: `incident-rca image build` makes it. Best push it to a "
        f"registry of yours and provision with the option image=REGISTRY/{image}. Or load what the platform keeps on each node: "
        f"`curl -fsSL {platform_url}/artefacts/docker/image.tar.gz | gunzip | ctr --namespace k8s.io images import -`."
    )


def _set_flags(chart_values: Mapping[str, Any]) -> Iterator[list[str]]:
    for key, value in chart_values.items():
        yield from _set_flag(helm_key([key]), value)


def _set_flag(key: str, value: Mapping[str, Any] | Sequence[Any] | str | bool | int) -> Iterator[list[str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _set_flag(f"{key}.{helm_key([name])}", inner)
    elif isinstance(value, bool):
        yield ["--set", f"{key}={'true' if value else 'false'}"]
    elif isinstance(value, int):
        yield ["--set", f"{key}={value}"]
    elif isinstance(value, str):
        yield ["--set-string", f"{key}={helm_value(value)}"]
    else:
        for index, inner in enumerate(value):
            yield from _set_flag(f"{key}[{index}]", inner)
