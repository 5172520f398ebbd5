"""What the About page tells: the version, and the libraries that the platform is shipped with and runs on, with their licences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "incident-rca"
EXTRAS = frozenset({"docker", "kubernetes", "platform"})
"""Extras of ours whose packages the platform runs on."""
_NAME = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?[^;]*(?:;(.*))?")
_LONGEST = 60


@dataclass(frozen=True, slots=True, order=True)
class Library:
    """A library: its name, version, licence (empty where it does not say) and the address of the licence's text, if it is here."""

    name: str
    version: str
    licence: str
    text: str = ""


@lru_cache(maxsize=1)
def python_libraries() -> tuple[Library, ...]:
    """The installed packages that ours needs, directly or not, by name. Reads the packages' metadata from disk, once."""
    found: dict[str, Library] = {}
    waiting = [(DISTRIBUTION, EXTRAS)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed, or a package for other systems
        if name != DISTRIBUTION:
            found[name] = Library(str(distribution.metadata["Name"]), distribution.version, _licence(distribution))
        waiting += _needed(distribution, extras)
    return tuple(sorted(found.values(), key=lambda library: library.name.lower()))


def browser_libraries(static: Path) -> tuple[Library, ...]:
    """The libraries that pages send to browsers, with the address of each one's licence; none where they have not been fetched."""
    try:
        manifest = json.loads((static / "vendor" / "manifest.json").read_text())
    except (OSError, ValueError):
        return ()
    texts = {str(path).rpartition("/")[0]: str(path) for path in manifest["files"] if path.endswith("/LICENSE")}
    return tuple(
        sorted(
            Library(name, str(version), _first_words(static / "vendor" / texts[name]), f"vendor/{texts[name]}")
            if name in texts
            else Library(name, str(version), "")
            for name, version in manifest["versions"].items()
        )
    )


def _needed(distribution: metadata.Distribution, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    for requirement in distribution.requires or ():
        if not (parts := _NAME.match(requirement)):
            continue
        name, wanted, marker = parts[1], parts[2] or "", parts[3] or ""
        asked = re.findall(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        if not asked or extras.intersection(asked):
            yield _canonical(name), frozenset(part.strip() for part in wanted.split(",") if part.strip())


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _licence(distribution: metadata.Distribution) -> str:
    """The licence in short: an SPDX expression where the package gives one."""
    about = distribution.metadata
    if "License-Expression" in about:
        return str(about["License-Expression"])
    named = [str(c).rpartition(" :: ")[2] for c in about.get_all("Classifier") or () if str(c).startswith("License :: ")]
    if named and named != ["OSI Approved"]:
        return ", ".join(named)
    lines = next((str(one) for one in about.get_all("License") or ()), "").strip().splitlines()
    return lines[0].strip()[:_LONGEST] if lines else ""


def _first_words(path: Path) -> str:
    """What a licence's text calls itself, from its known beginnings."""
    try:
        text = path.read_text()
    except OSError:
        return ""
    for words, licence in (("Zero-Clause BSD", "0BSD"), ("MIT License", "MIT"), ("Permission is hereby granted, free of charge", "MIT")):
        if words in text:
            return licence
    return text.strip().splitlines()[0][:_LONGEST] if text.strip() else ""
