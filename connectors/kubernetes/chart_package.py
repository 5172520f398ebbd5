"""The chart as a package: the same bytes for the same files, whoever packs them and when."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from connectors._version import __version__
from connectors.kubernetes.artefacts import CHART, PACKAGE_SUFFIX

_LEFT_OUT = ("examples/", ".helmignore")
"""As ``chart/.helmignore`` has it."""
_RELEASE = re.compile(r"(?P<release>\d+(?:\.\d+){0,2})(?P<rest>.*)")
_NAME = re.compile(r"(?P<name>[a-z0-9]+(?:-[a-z0-9]+)*)-(?P<version>\d+\.\d+\.\d+(?:[-+][0-9A-Za-z.+-]+)?)")
_EPOCH = 315_532_800
"""1980-01-01, the time of every file in a package."""


@dataclass(frozen=True, slots=True)
class ChartPackage:
    """A chart's package: the name of its file, its content, and the SHA-256 of that in hexadecimal."""

    file: str
    content: bytes
    digest: str


@functools.cache
def own_package() -> ChartPackage:
    """The package of the chart that this installation ships, for its own version. Reads the files at first use.

    Raises:
        OSError: the installation is incomplete.
    """
    content = pack(chart_files(), chart_version(__version__))
    return ChartPackage(f"{CHART}-{chart_version(__version__)}{PACKAGE_SUFFIX}", content, hashlib.sha256(content).hexdigest())


def chart_directory() -> Path:
    """Where the chart's source lies."""
    return Path(__file__).with_name("chart")


def chart_files() -> dict[str, bytes]:
    """The chart's files by path, those that do not belong into a package left out.

    Raises:
        OSError: the installation is incomplete.
    """
    root = chart_directory()
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    if "Chart.yaml" not in found:
        raise FileNotFoundError(f"{root} holds no chart")
    return {path: content for path, content in found.items() if not path.startswith(_LEFT_OUT)}


def pack(files: Mapping[str, bytes], version: str) -> bytes:
    """The gzipped tarball that Helm reads, of a chart of these ``files`` (contents by path), stamped with ``version``."""
    stamped = {**files, "Chart.yaml": _stamped(files["Chart.yaml"], version)}
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0, compresslevel=9) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        # Helm reads Chart.yaml first; the rest is sorted.
        for path in sorted(stamped, key=lambda name: (name != "Chart.yaml", name)):
            member = tarfile.TarInfo(f"{CHART}/{path}")
            member.size, member.mode, member.mtime = len(stamped[path]), 0o644, _EPOCH
            archive.addfile(member, io.BytesIO(stamped[path]))
    return packed.getvalue()


def chart_version(version: str) -> str:
    """The product's version (PEP 440) as Helm wants one (SemVer): ``1.2`` is ``1.2.0``, ``1.2.0rc1`` is ``1.2.0-rc1``."""
    public, plus, local = version.partition("+")
    found = _RELEASE.match(public)
    if found is None:
        return version
    release = ".".join([*found["release"].split("."), "0", "0"][:3])
    rest = found["rest"].lstrip(".-")
    return release + (f"-{rest}" if rest else "") + plus + local


def is_package_name(file: str) -> bool:
    """Whether ``file`` is the name of a chart's package: name, dash, version, ``.tgz``; it holds no path."""
    return file.endswith(PACKAGE_SUFFIX) and _NAME.fullmatch(file.removesuffix(PACKAGE_SUFFIX)) is not None


def chart_document(content: bytes) -> bytes:
    """The ``Chart.yaml`` in a package.

    Raises:
        ValueError: it is no chart's package.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            found = None
            for member in archive:  # to its end, or one that is cut off would pass
                if member.isfile() and member.name.count("/") == 1 and member.name.endswith("/Chart.yaml") and member.size < 1 << 20:
                    file = archive.extractfile(member)
                    found = file.read() if file else None
    except (tarfile.TarError, OSError, EOFError) as exc:
        raise ValueError(f"not a gzipped tarball: {exc}") from exc
    if found is None:
        raise ValueError("there is no Chart.yaml in it")
    return found


def _stamped(document: bytes, version: str) -> bytes:
    return re.sub(rb"(?m)^(version|appVersion): .*$", rb"\1: " + version.encode(), document)
