"""Installing and removing the deployed agent with Helm, and what Helm's failures mean."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from connectors.core.errors import ControlError, NotDeployedError, PermissionRefusedError, RuntimeUnavailableError, ToolMissingError
from connectors.kubernetes import command
from connectors.kubernetes.config import K8sAgentConfig

TIMEOUT = 120.0
"""Seconds that one helm command may take."""

_FORBIDDEN = re.compile(
    r'is forbidden: User "(?P<user>[^"]*)" cannot (?P<verb>\S+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]*)")?'
)
_UNREACHABLE = (
    "cluster unreachable",
    "connection refused",
    "no such host",
    "i/o timeout",
    "network is unreachable",
    "no route to host",
    "context deadline exceeded",
    "tls handshake timeout",
    "no configuration has been provided",
)


def start(platform_url: str, token: str, config: K8sAgentConfig, *, timeout: float = TIMEOUT) -> None:
    """``helm upgrade --install`` of the release. The values, the token among them, go to helm's standard input.

    Raises:
        ToolMissingError: helm is not on the path.
        RuntimeUnavailableError: no cluster answers.
        PermissionRefusedError: the cluster refuses; the reason names verb and resource.
        ControlError: helm failed for another reason; the reason holds helm's own words.
    """
    document = json.dumps(command.values(platform_url, token, config))  # JSON is YAML
    _helm(command.install_arguments(platform_url, config), document, secret=token, timeout=timeout)


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
    lower = words.lower()
    if found := _FORBIDDEN.search(words):
        where = f" in the namespace {found['namespace']}" if found["namespace"] else " in the whole cluster"
        group = f" (API group {found['group']})" if found["group"] else ""
        return PermissionRefusedError(f"the cluster forbids {found['user']} to {found['verb']} {found['resource']}{group}{where}")
    if "release: not found" in lower or "release not loaded" in lower:
        return NotDeployedError(f"there is no such release: {_last(words)}")
    if "unauthorized" in lower or "must be logged in" in lower or "provide credentials" in lower:
        return PermissionRefusedError("the cluster does not accept the credentials of the current kubectl context")
    if "not a valid chart repository" in lower:
        return ControlError(f"the platform does not serve its chart repository: {_last(words)}")
    if any(sign in lower for sign in _UNREACHABLE):
        return RuntimeUnavailableError(f"no Kubernetes cluster answers: {_last(words)}")
    if "another operation" in lower:
        return ControlError(
            "the release is locked by another helm operation, under way or broken off: wait for it, or undo it with helm rollback"
        )
    return ControlError(f"helm {arguments[0]} failed: {_last(words) or 'it said nothing'}")


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


def _last(words: str) -> str:
    """The end of what helm said, where its error stands; at most 500 characters."""
    return words.rpartition("Error: ")[2][-500:]
