"""The platform's chart repository: the chart of this version, what lies in the data directory beside it, and Helm's index of both."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from app.errors import NotFoundError
from connectors.kubernetes.artefacts import PACKAGE_SUFFIX, PROVENANCE_SUFFIX
from connectors.kubernetes.chart_package import chart_directory, chart_document, is_package_name, own_package

_log = logging.getLogger(__name__)
_LARGEST = 16 << 20
"""Bytes of the largest package that is served."""
_DESCRIBED = ("apiVersion", "name", "version", "kubeVersion", "description", "type", "appVersion", "keywords", "annotations", "deprecated")
"""What an index entry repeats of ``Chart.yaml``."""


@dataclass(frozen=True, slots=True)
class _Listed:
    """A package with what the index says of it."""

    content: bytes
    digest: str
    entry: dict[str, Any]


class ChartRepository:
    """What is served under ``/charts``. Its methods read files, so call them off the event loop.

    Args:
        directory: where further packages lie, such as older versions, and signed ones with their provenance. A package there goes before
            the one of the same name that this installation would pack.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[tuple[str, int, int], _Listed | None] = {}

    def index(self) -> bytes:
        """``index.yaml``: every version, newest packages of a name first in Helm's eyes, with digests and relative addresses."""
        entries: dict[str, list[dict[str, Any]]] = {}
        for listed in self._packages().values():
            entries.setdefault(listed.entry["name"], []).append(listed.entry)
        generated = max((entry["created"] for found in entries.values() for entry in found), default="1970-01-01T00:00:00Z")
        document = {"apiVersion": "v1", "entries": entries, "generated": generated}
        return yaml.safe_dump(document, sort_keys=True, width=1000, allow_unicode=True).encode()

    def package(self, file: str) -> bytes:
        """The content of the package ``file``.

        Raises:
            NotFoundError: there is none of that name.
        """
        return self._package(file).content

    def provenance(self, file: str) -> bytes:
        """The provenance of the package ``file``: it is served only while it vouches for the package that is served.

        Raises:
            NotFoundError: there is no such package, or no provenance for it.
        """
        listed = self._package(file)
        try:
            content = (self._directory / f"{file}{PROVENANCE_SUFFIX}").read_bytes()
        except OSError:
            raise NotFoundError(f"{file} is not signed here") from None
        if f"sha256:{listed.digest}".encode() not in content:
            raise NotFoundError(f"the provenance of {file} vouches for another package of that name, so it is not served")
        return content

    def _package(self, file: str) -> _Listed:
        if is_package_name(file) and (listed := self._packages().get(file)):
            return listed
        raise NotFoundError(f"there is no chart package {file!r}")

    def _packages(self) -> dict[str, _Listed]:
        own = own_package()
        found = {own.file: _own()}
        try:
            paths = sorted(path for path in self._directory.glob(f"*{PACKAGE_SUFFIX}") if is_package_name(path.name))
        except OSError:
            paths = []
        known: dict[tuple[str, int, int], _Listed | None] = {}
        for path in paths:
            try:
                status = path.stat()
                key = (path.name, status.st_mtime_ns, status.st_size)
                known[key] = self._known[key] if key in self._known else _read(path, status.st_size)
            except OSError as exc:
                _log.warning("the chart package %s cannot be read: %s", path.name, exc.strerror, extra={"action": "chart_unreadable"})
                continue
            if (listed := known[key]) is not None:
                found[path.name] = listed
        self._known = known
        return found


def _own() -> _Listed:
    own = own_package()
    return _listed(own.file, own.content, (chart_directory() / "Chart.yaml").stat().st_mtime)


def _read(path: Path, size: int) -> _Listed | None:
    """The package at ``path``; None, said once in the log, where it is no chart that its name tells."""
    try:
        if size > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST} bytes")
        return _listed(path.name, path.read_bytes(), path.stat().st_mtime)
    except ValueError as exc:
        _log.warning("the chart package %s is not served: %s", path.name, exc, extra={"action": "chart_refused"})
        return None


def _listed(file: str, content: bytes, created: float) -> _Listed:
    try:
        chart = yaml.safe_load(chart_document(content))
    except yaml.YAMLError as exc:
        raise ValueError(f"its Chart.yaml is not YAML: {exc}") from exc
    if not isinstance(chart, dict) or f"{chart.get('name')}-{chart.get('version')}{PACKAGE_SUFFIX}" != file:
        raise ValueError("its Chart.yaml names another chart or version than its file does")
    digest = hashlib.sha256(content).hexdigest()
    described = {key: chart[key] for key in _DESCRIBED if key in chart}
    time = datetime.fromtimestamp(int(created), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return _Listed(content, digest, {**described, "created": time, "digest": digest, "urls": [file]})
