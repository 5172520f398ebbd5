"""The manifest of a release of the agent: what it says, when it is to be believed, and which of its files fits a host.

A manifest is JSON, UTF-8, at most ``LARGEST_MANIFEST`` bytes, with an Ed25519 signature over exactly those bytes in a file of its own.
It is written with one file a line and the keys in fixed order, so that a shell can read it too once it has verified the signature.
Keys that are not known here are passed over; a change that older readers must not misread gets another ``format``.

Everything is a pure function of bytes, of facts about the host and of the passed-in time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Final

from connectors.core import ed25519
from connectors.core.errors import (
    DowngradeError,
    ManifestError,
    ManifestExpiredError,
    ManifestNotYetValidError,
    NoMatchingPackageError,
    SignatureError,
)

FORMAT: Final = 1
PRODUCT: Final = "incident-rca-agent"
PACKAGES_PATH: Final = "/packages"
"""Path below the platform's URL where it serves manifests and files."""
MANIFEST_FILE: Final = "manifest.json"
SIGNATURE_FILE: Final = "manifest.json.sig"
PUBLIC_KEY_FILE: Final = "public-key.pem"
EXECUTABLE: Final = "executable"
"""Kind of a tarball that holds ``incident-rca-agent/incident-rca-agent``, which needs no Python."""
BUNDLE: Final = "bundle"
"""Kind of a tarball that holds ``wheels/``, to be unpacked into a virtual environment."""

LARGEST_MANIFEST: Final = 256 * 1024
LARGEST_FILE: Final = 512 * 1024 * 1024
MOST_FILES: Final = 64
CLOCK_TOLERANCE: Final = 86_400.0
"""Seconds by which a host's clock may be behind the releaser's."""

_VERSION = re.compile(r"([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})(?:(a|b|rc)([0-9]{1,6}))?(?:\.dev([0-9]{1,6}))?")
_STAGES: Final = {"a": 1, "b": 2, "rc": 3, None: 4}
_TIME = re.compile(r"[0-9]{4}-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9]Z")
_TOKEN = r"[a-z0-9_]{1,32}"  # noqa: S105 - a pattern
_NUMBERS = r"(?:[0-9]{1,4}\.[0-9]{1,4}(?:\.[0-9]{1,4})?)"
_SHAPES: Final = {
    "name": re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}"),
    "kind": re.compile(_TOKEN),
    "os": re.compile(_TOKEN),
    "arch": re.compile(_TOKEN),
    "libc": re.compile(rf"(?:{_TOKEN})?"),
    "libc_minimum": re.compile(rf"{_NUMBERS}?"),
    "python": re.compile(rf"(?:>={_NUMBERS})?"),
    "sha256": re.compile(r"[0-9a-f]{64}"),
}
_KEY_ID = re.compile(r"[0-9a-f]{16}")
_RESERVED: Final = frozenset({MANIFEST_FILE, SIGNATURE_FILE, PUBLIC_KEY_FILE})


@dataclass(frozen=True, slots=True)
class PackageFile:
    """One file of a release.

    ``os``, ``arch``: ``any`` fits all. ``libc_minimum`` is the oldest version of ``libc`` that it runs on, ``python`` a lower bound
    (``>=3.11``); empty where it needs none. ``size`` in bytes, ``sha256`` in lower-case hexadecimal.
    """

    name: str
    kind: str
    os: str
    arch: str
    libc: str
    libc_minimum: str
    python: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a release holds. ``created`` and ``expires`` are Unix seconds; ``key_id`` names the key that signs it."""

    version: str
    created: float
    expires: float
    key_id: str
    files: tuple[PackageFile, ...]

    def file(self, name: str) -> PackageFile | None:
        """The file of that name, None where there is none."""
        return next((one for one in self.files if one.name == name), None)


@dataclass(frozen=True, slots=True)
class Host:
    """A host to be given a package: ``os`` linux, macos or windows; ``arch`` as the kernel names it (x86_64, aarch64).

    ``libc`` glibc or musl with its version, empty outside of Linux; ``python`` the version of the interpreter to use, empty without one.
    """

    os: str
    arch: str
    libc: str = ""
    libc_version: str = ""
    python: str = ""


def key_id(public_key: bytes) -> str:
    """How manifests name a public key (32 raw bytes): the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def architecture(machine: str) -> str:
    """The name that manifests give to a machine which the system calls ``machine`` (``AMD64``, ``arm64``)."""
    lowered = machine.lower()
    return {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}.get(lowered, lowered)


def rfc3339(time: float) -> str:
    """A time in Unix seconds as manifests write it: UTC, whole seconds."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def encode(manifest: Manifest) -> bytes:
    """The manifest's bytes, one file a line; equal manifests give equal bytes.

    Raises:
        ManifestError: it could not be read back.
    """
    head = {
        "format": FORMAT,
        "product": PRODUCT,
        "version": manifest.version,
        "created": rfc3339(manifest.created),
        "expires": rfc3339(manifest.expires),
        "key_id": manifest.key_id,
    }
    lines = [_compact({field.name: getattr(one, field.name) for field in fields(PackageFile)}) for one in manifest.files]
    content = (_compact(head)[:-1] + ',"files":[\n' + ",\n".join(lines) + "\n]}\n").encode()
    parse(content)
    return content


def parse(content: bytes) -> Manifest:
    """Read a manifest without believing it: who signed it and when it ends is for :func:`verify` and :func:`check`.

    Raises:
        ManifestError: too large, not JSON, of another product or format, or a value is missing or out of bounds; the reason says which.
    """
    if len(content) > LARGEST_MANIFEST:
        raise ManifestError(f"the manifest is larger than {LARGEST_MANIFEST} bytes")
    try:
        document = json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as exc:
        raise ManifestError(f"the manifest is not JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise ManifestError("the manifest is not a JSON object")
    if document.get("format") != FORMAT or isinstance(document["format"], bool):
        raise ManifestError(f"the manifest has format {document.get('format')!r}, of which this version knows nothing: it reads {FORMAT}")
    if document.get("product") != PRODUCT:
        raise ManifestError(f"the manifest is of {document.get('product')!r}, not of {PRODUCT}")
    rows = document.get("files")
    if not isinstance(rows, list) or not 1 <= len(rows) <= MOST_FILES:
        raise ManifestError(f"the manifest must list 1 to {MOST_FILES} files")
    files = tuple(_file(row) for row in rows)
    if len({one.name for one in files}) != len(files):
        raise ManifestError("the manifest lists a file twice")
    version = _text(document, "version", _VERSION)
    return Manifest(version, _time(document, "created"), _time(document, "expires"), _text(document, "key_id", _KEY_ID), files)


def verify(content: bytes, signature: bytes, trusted: Iterable[bytes]) -> Manifest:
    """The manifest, once one of the ``trusted`` public keys (32 raw bytes each) has verified the signature (64 bytes) over it.

    Raises:
        SignatureError: none of them did, or the manifest names another key than the one that signed it.
        ManifestError: as :func:`parse`.
    """
    if len(content) > LARGEST_MANIFEST:
        raise ManifestError(f"the manifest is larger than {LARGEST_MANIFEST} bytes")
    keys = tuple(trusted)
    signer = next((key for key in keys if ed25519.verify(key, signature, content)), None)
    if signer is None:
        known = ", ".join(map(key_id, keys)) or "none"
        raise SignatureError(f"the manifest's signature is not by a key that is trusted here (trusted: {known})")
    manifest = parse(content)
    if manifest.key_id != key_id(signer):
        raise SignatureError(f"the manifest names key {manifest.key_id}, but {key_id(signer)} signed it")
    return manifest


def check(manifest: Manifest, *, now: float, installed_version: str = "", trusted_key_ids: Collection[str] | None = None) -> None:
    """Refuse a manifest that must not be acted on at ``now`` (Unix seconds) where ``installed_version`` runs (empty: nothing does).

    The installed version itself is no downgrade. ``trusted_key_ids``, where given, must hold the manifest's.

    Raises:
        ManifestExpiredError, ManifestNotYetValidError, DowngradeError, SignatureError: as their names say.
        ManifestError: ``installed_version`` is no version.
    """
    if trusted_key_ids is not None and manifest.key_id not in trusted_key_ids:
        raise SignatureError(f"key {manifest.key_id} is not trusted here (trusted: {', '.join(sorted(trusted_key_ids)) or 'none'})")
    if now > manifest.expires:
        raise ManifestExpiredError(
            f"the manifest of version {manifest.version} expired at {rfc3339(manifest.expires)}; this machine's clock says {rfc3339(now)}"
        )
    if now < manifest.created - CLOCK_TOLERANCE:
        raise ManifestNotYetValidError(
            f"the manifest was made at {rfc3339(manifest.created)}, but this machine's clock says {rfc3339(now)}: set the clock"
        )
    if installed_version and version_key(manifest.version) < version_key(installed_version):
        raise DowngradeError(f"version {manifest.version} is lower than {installed_version}, which is installed")


def version_key(version: str) -> tuple[float, ...]:
    """What orders versions: ``X.Y.Z``, with ``aN``, ``bN`` or ``rcN`` before it and ``.devN`` before those.

    Raises:
        ManifestError: it is no version.
    """
    found = _VERSION.fullmatch(version)
    if found is None:
        raise ManifestError(f"{version!r} is not a version (X.Y.Z)")
    major, minor, patch, stage, number, development = found.groups()
    rank = 0 if stage is None and development is not None else _STAGES[stage]
    return int(major), int(minor), int(patch), rank, int(number or 0), float("inf") if development is None else int(development)


def choose(files: Iterable[PackageFile], host: Host) -> PackageFile:
    """The file for a host: a bundle where its Python is new enough, for that is smaller, else an executable.

    Raises:
        NoMatchingPackageError: none fits; the reason says what each of those for this system and machine misses.
    """
    offered = tuple(files)
    missing: list[str] = []
    for kind in (BUNDLE, EXECUTABLE):
        for file in offered:
            if file.kind != kind or file.os not in ("any", host.os) or file.arch not in ("any", host.arch):
                continue
            lacks = _lacks(file, host)
            if not lacks:
                return file
            missing.append(f"the {kind} needs {lacks}")
    if not missing:
        raise NoMatchingPackageError(f"the release has no package for {host.os} on {host.arch}")
    raise NoMatchingPackageError(f"no package runs here: {'; '.join(missing)}")


def _lacks(file: PackageFile, host: Host) -> str:
    lacks = []
    if file.python and (not host.python or _numbers(host.python) < _numbers(file.python.removeprefix(">="))):
        lacks.append(f"Python {file.python.removeprefix('>=')} or newer ({host.python or 'none'} is here)")
    if file.libc and file.libc != host.libc:
        lacks.append(f"{file.libc} ({host.libc or 'none'} is here)")
    elif file.libc_minimum and _numbers(host.libc_version) < _numbers(file.libc_minimum):
        lacks.append(f"{file.libc} {file.libc_minimum} or newer ({host.libc_version or 'an unknown version'} is here)")
    return " and ".join(lacks)


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparison; text that is none compares as the oldest."""
    found = re.match(r"[0-9]{1,9}(?:\.[0-9]{1,9})*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _compact(document: dict[str, object]) -> str:
    return json.dumps(document, separators=(",", ":"))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return document


def _file(row: object) -> PackageFile:
    if not isinstance(row, dict):
        raise ManifestError("a file of the manifest is not a JSON object")
    texts = {name: _text(row, name, shape) for name, shape in _SHAPES.items()}
    size = row.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= LARGEST_FILE:
        raise ManifestError(f"the manifest's file {texts['name']} has size {size!r}, not 1 to {LARGEST_FILE} bytes")
    if texts["name"] in _RESERVED:
        raise ManifestError(f"no file of a release may be called {texts['name']}")
    return PackageFile(size=size, **texts)


def _text(document: dict[str, Any], name: str, shape: re.Pattern[str]) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not shape.fullmatch(value):
        raise ManifestError(f"the manifest's {name} is {_shown(value)}, which it cannot be")
    return value


def _time(document: dict[str, Any], name: str) -> float:
    text = _text(document, name, _TIME)
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as exc:
        raise ManifestError(f"the manifest's {name} is {text}, which is no time") from exc


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 64 else f"{text[:61]}..."  # noqa: PLR2004 - enough to recognise it by
