"""The commands and Helm values of the kubernetes agent type, as pure functions of the configuration. All are for a POSIX shell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from connectors.core.quoting import helm_key, helm_value, posix_command, posix_lines
from connectors.kubernetes.config import K8sAgentConfig

REPOSITORY = "incident-rca"
CHART = "incident-rca-agent"


def deployment_command(platform_url: str, token: str, config: K8sAgentConfig) -> str:
    """The ``helm`` commands that deploy the agent: they add the platform as a chart repository, then install or upgrade the release."""
    steps = [
        posix_command(["helm", "repo", "add", REPOSITORY, repository_url(platform_url), "--force-update"]),
        posix_command(["helm", "repo", "update", REPOSITORY]),
        posix_lines(
            [
                ["helm", "upgrade", "--install", config.release_name, f"{REPOSITORY}/{CHART}"],
                ["--namespace", config.namespace, "--create-namespace"],
                *_set_flags(platform_url, token, config),
            ]
        ),
    ]
    return " && \\\n".join(steps)


def uninstall_command(config: K8sAgentConfig) -> str:
    """The command that removes the release. The namespace stays: it may hold other things."""
    return posix_command(["helm", "uninstall", config.release_name, "--namespace", config.namespace])


def install_arguments(platform_url: str, config: K8sAgentConfig) -> list[str]:
    """The arguments of the ``helm`` that installs or upgrades the release, its values (:func:`values`) on standard input."""
    return [
        *("upgrade", "--install", config.release_name, CHART, "--repo", repository_url(platform_url)),
        *("--namespace", config.namespace, "--create-namespace", "--values", "-"),
    ]


def values(platform_url: str, token: str, config: K8sAgentConfig) -> dict[str, Any]:
    """The chart's values for this agent. ``config`` holds the agent's options by name, in their environment variables' form."""
    secret = {"existingSecret": config.existing_secret} if config.existing_secret else {"token": token}
    result: dict[str, Any] = {"platformUrl": platform_url, **secret, "replicas": config.replicas}
    if options := {variable.lower(): text for variable, text in config.environment().items()}:
        result["config"] = options
    return result


def repository_url(platform_url: str) -> str:
    """Where the platform serves its chart repository."""
    return f"{platform_url}/charts"


def instructions(platform_url: str, config: K8sAgentConfig) -> str:
    """Numbered steps for a person who is about to run the deployment command."""
    namespace, release = config.namespace, config.release_name
    steps = []
    steps.append(
        "Ensure Helm 3+ is installed (`helm version`) and that kubectl's current context is the cluster to connect "
        "(`kubectl config current-context`), with the right to create a namespace, a ClusterRole and a ClusterRoleBinding."
    )
    steps.append(
        f"The chart comes from the platform's own repository, {repository_url(platform_url)}. This version of the platform does not serve "
        "it yet: `helm repo add` ends with 'not a valid chart repository' then, and nothing is changed in the cluster."
    )
    if config.existing_secret:
        steps.append(
            f"Create the Secret that holds the token: `kubectl --namespace {namespace} create secret generic {config.existing_secret} "
            "--from-file=token=FILE`, FILE being a file with the token and no line end."
        )
    steps += [
        "Run the command in a POSIX shell. It may be run again: it upgrades the release in place.",
        f"Watch the pods come up: `kubectl --namespace {namespace} get pods`. The agent appears on the platform within a minute.",
        f"If it does not appear: `kubectl --namespace {namespace} logs --selector app.kubernetes.io/instance={release}`.",
    ]
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))


def _set_flags(platform_url: str, token: str, config: K8sAgentConfig) -> Iterator[list[str]]:
    for key, value in values(platform_url, token, config).items():
        if isinstance(value, dict):
            for name, text in value.items():
                yield ["--set-string", f"{helm_key([key, name])}={helm_value(text)}"]
        elif isinstance(value, int):
            yield ["--set", f"{helm_key([key])}={value}"]
        else:
            yield ["--set-string", f"{helm_key([key])}={helm_value(value)}"]
