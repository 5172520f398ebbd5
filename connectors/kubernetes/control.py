"""Installing and removing the deployed agent with Helm, and what Helm's failures mean."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from connectors.core.errors import (
    ConfigError,
    ControlError,
    NotDeployedError,
    PermissionRefusedError,
    RuntimeUnavailableError,
    ToolMissingError,
)
from connectors.kubernetes import command
from connectors.kubernetes.config import K8sAgentConfig

TIMEOUT = 120.0
"""Seconds that one helm command may take."""

_FORBIDDEN = re.compile(
    r'is forbidden: User "(?P<user>[^"]*)" cannot (?P<verb>\S+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]*)")?'
)
_ESCALATION = re.compile(
    r'is forbidden: user "(?P<user>[^"]*)".* is attempting to grant RBAC permissions not currently held:\s*(?P<rules>.*)'
)
_FOREIGN = re.compile(r"(?P<object>\S+ \"[^\"]+\")(?: in namespace \"[^\"]*\")? exists and cannot be imported into the current release")
_MEANINGS: tuple[tuple[type[ControlError], str, tuple[str, ...]], ...] = (
    (NotDeployedError, "there is no such release: {words}", ("release: not found", "release not loaded")),
    (
        PermissionRefusedError,
        "the cluster does not accept the credentials of the current kubectl context",
        ("unauthorized", "must be logged in", "provide credentials"),
    ),
    (ControlError, "the platform does not serve its chart repository: {words}", ("not a valid chart repository",)),
    (ControlError, "the release is installed, but its pods are not ready: {words}", ("not ready",)),
    (
        ControlError,
        (
            "the release is locked by another helm operation, under way or broken off: wait for it; where nobody's is under way, undo it "
            "with helm rollback, or with helm uninstall where it was the first"
        ),
        ("another operation",),
    ),
    (
        ControlError,
        "the release is in a failed state and never was deployed: helm uninstall it, then start again",
        ("has no deployed releases",),
    ),
    (
        RuntimeUnavailableError,
        "no Kubernetes cluster answers: {words}",
        (
            "cluster unreachable",
            "connection refused",
            "no such host",
            "i/o timeout",
            "network is unreachable",
            "no route to host",
            "context deadline exceeded",
            "tls handshake timeout",
            "no configuration has been provided",
        ),
    ),
)
"""What helm's other failures mean: the error, its reason, and the words that helm says it with. The first one that fits is taken."""


def start(platform_url: str, token: str, config: K8sAgentConfig, *, timeout: float = TIMEOUT) -> None:
    """``helm upgrade --install`` of the release. The values, the token among them, go to helm's standard input.

    Raises:
        ToolMissingError: helm is not on the path.
        RuntimeUnavailableError: no cluster answers.
        PermissionRefusedError: the cluster refuses; the reason names verb and resource.
        ConfigError: the file that ``ca_file`` names cannot be read.
        ControlError: the release is locked or in a failed state, or helm failed for another reason; the reason says which.
    """
    chart_values = command.values(platform_url, token, config)
    if config.ca_file:
        chart_values["caBundle"] = {"pem": _read(config.ca_file)}
    _helm(command.install_arguments(platform_url, config), json.dumps(chart_values), secret=token, timeout=timeout)  # JSON is YAML


def stop(config: K8sAgentConfig, *, timeout: float = TIMEOUT) -> None:
    """``helm uninstall`` of the release.

    Raises:
        NotDeployedError: there is no such release.
        ControlError: as :func:`start`.
    """
    _helm(["uninstall", config.release_name, "--namespace", config.namespace], "", timeout=timeout)


def explain(output: str, arguments: Sequence[str]) -> ControlError:
    """What helm's failure means, from what it printed, as an error of our own with a reason for a person."""
    words = " ".join(output.split())
    if refused := _explain_refusal(words):
        return refused
    if found := _FOREIGN.search(words):
        return ControlError(f"{found['object']} is there already and belongs to another: remove it, or choose another release_name")
    lower = words.lower()
    for kind, reason, signs in _MEANINGS:
        if any(sign in lower for sign in signs):
            return kind(reason.replace("{words}", _last(words)))
    return ControlError(f"helm {arguments[0]} failed: {_last(words) or 'it said nothing'}")


def _explain_refusal(words: str) -> PermissionRefusedError | None:
    if found := _FORBIDDEN.search(words):
        where = f" in the namespace {found['namespace']}" if found["namespace"] else " in the whole cluster"
        group = f" (API group {found['group']})" if found["group"] else ""
        return PermissionRefusedError(f"the cluster forbids {found['user']} to {found['verb']} {found['resource']}{group}{where}")
    if found := _ESCALATION.search(words):
        user, rules = found["user"], found["rules"][:300]
        return PermissionRefusedError(f"the cluster forbids {user} to give the agent rights that {user} does not have: {rules}")
    return None


def _helm(arguments: Sequence[str], document: str, *, timeout: float, secret: str = "") -> None:
    program = shutil.which("helm")
    if program is None:
        raise ToolMissingError("helm is not installed or not on the path: see https://helm.sh/docs/intro/install/")
    try:
        done = subprocess.run(
            [program, *arguments],
            input=document,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as exc:
        raise RuntimeUnavailableError(f"helm {arguments[0]} did not end within {timeout:g} s") from exc
    except OSError as exc:
        raise ToolMissingError(f"{program} cannot be run: {exc.strerror}") from exc
    if done.returncode != 0:
        said = done.stderr or done.stdout
        # A chart that fails to render may quote its values.
        raise explain(said.replace(secret, "**********") if secret else said, arguments)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as exc:
        why = getattr(exc, "strerror", None) or "it is not PEM text"
        raise ConfigError(f"ca_file {path} cannot be read: {why}", field="ca_file") from exc


def _last(words: str) -> str:
    """The end of what helm said, where its error stands; at most 500 characters."""
    return words.rpartition("Error: ")[2][-500:]
