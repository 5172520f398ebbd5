"""What the platform serves of the kubernetes agent type: names and paths, which the printed commands, the chart and the platform share."""

from __future__ import annotations

CHARTS_PATH = "/charts"
"""Path below the platform's URL of its chart repository; ``<data directory>/artefacts/charts`` holds further packages and provenance."""
INDEX_FILE = "index.yaml"
MANIFESTS_FILE = "manifests.yaml"
"""Rendered objects for ``kubectl apply``, which hold no token."""
CHART = "incident-rca-agent"
PACKAGE_SUFFIX = ".tgz"
PROVENANCE_SUFFIX = ".prov"
"""Follows the package's whole name: ``incident-rca-agent-1.2.3.tgz.prov``."""
IMAGE_REPOSITORY = "incident-rca/agent"
"""Where the agent's image is by default; its tag is the version."""
CHART_OWNED_OPTIONS = frozenset({"view", "features", "lease_name", "ca_file"})
"""Runtime options that the chart has values of its own for; the chart's ``config`` takes the others."""
PROVISIONED_SECRET = "incident-rca-agent"  # noqa: S105 - the name of a Secret, not what it holds
"""The Secret that the manifests expect the token in, unless the option ``existing_secret`` names another."""


def image_tag(version: str) -> str:
    """The tag of the agent's image of this version (a tag knows no plus sign)."""
    return version.replace("+", "-")
