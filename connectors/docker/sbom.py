"""The image's bill of materials: a CycloneDX document of the Python distributions in it."""

from __future__ import annotations

import json
import platform
import re
import uuid
from collections.abc import Iterable
from importlib.metadata import Distribution
from typing import Any

_REQUIREMENT = re.compile(r"[A-Za-z0-9._-]+")
_NAMESPACE = uuid.UUID("7b0c8f3e-61f2-5d0c-9d55-3f0a6f0f4c11")


def bill_of_materials(distributions: Iterable[Distribution], version: str) -> dict[str, Any]:
    """A CycloneDX 1.6 document: ``distributions``, their licences and what each needs of the others, and the Python that runs them.

    Packages of the base image's operating system are not in it. The serial number follows from the content.
    """
    known = {_normal(found.name): found for found in distributions}
    components = [_component(name, found) for name, found in sorted(known.items())]
    python = {"type": "platform", "bom-ref": "python", "name": platform.python_implementation(), "version": platform.python_version()}
    references = {name: _reference(name, found.version) for name, found in known.items()}
    needs = [
        {"ref": references[name], "dependsOn": sorted(references[need] for need in _needs(found) if need in known and need != name)}
        for name, found in sorted(known.items())
    ]
    subject = {"type": "container", "bom-ref": "image", "name": "incident-rca/agent", "version": version}
    body = {
        "metadata": {"component": subject},
        "components": [*components, python],
        "dependencies": [{"ref": "image", "dependsOn": ["python", *sorted(references.values())]}, *needs],
    }
    serial = uuid.uuid5(_NAMESPACE, json.dumps(body, sort_keys=True))
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": serial.urn, "version": 1, **body}


def _component(name: str, found: Distribution) -> dict[str, Any]:
    reference = _reference(name, found.version)
    component: dict[str, Any] = {"type": "library", "bom-ref": reference, "name": name, "version": found.version, "purl": reference}
    told = {key: found.metadata[key].strip() for key in ("License-Expression", "License") if key in found.metadata}
    if expression := told.get("License-Expression"):
        component["licenses"] = [{"expression": expression}]
    elif words := told.get("License"):
        component["licenses"] = [{"license": {"name": words.splitlines()[0]}}]
    return component


def _needs(found: Distribution) -> set[str]:
    """Names of what ``found`` may need, whatever the conditions: those that are installed count."""
    return {_normal(match[0]) for need in found.requires or () if (match := _REQUIREMENT.match(need))}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _reference(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{version}"
