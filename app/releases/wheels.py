"""The wheels of a bundle: the agent's own, packed from the code that runs here, and its dependencies, from a directory or as installed.

Equal inputs make equal bytes, so that a bundle which was made again keeps its checksum.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import platform
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

import connectors
from app.errors import ReleaseError
from connectors._version import __version__
from connectors.core.package_manifest import PRODUCT, architecture

DEPENDENCIES = ("annotated-types", "psutil")
"""Distributions that the running server agent imports, and all of them; a test runs it with nothing else on the path."""
LEAST_PYTHON = "3.11"

_LEFT_OUT = ("api/", "core/opamp_pb2.py")
"""Parts of :mod:`connectors` that no agent runs: the platform's routes, and messages that tests compare the agent's own with."""
_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9_.]+)-(?P<version>[A-Za-z0-9_.!+]+)(?:-[0-9][^-]*)?-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<on>[^-]+)\.whl"
)
_LINUX = re.compile(r"(?P<flavour>manylinux|musllinux)_(?P<major>[0-9]+)_(?P<minor>[0-9]+)_(?P<arch>\w+)")
_LEGACY = {"manylinux1": "2.5", "manylinux2010": "2.12", "manylinux2014": "2.17"}
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The oldest time that a zip file can tell: members carry it, so that equal files make equal wheels."""
_LARGEST_WHEEL = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """A kind of host that a compiled wheel runs on: names as manifests have them, ``libc_minimum`` empty outside of Linux."""

    os: str
    arch: str
    libc: str = ""
    libc_minimum: str = ""

    @property
    def label(self) -> str:
        """How file names call it: ``linux-x86_64``, ``linux-aarch64-musl``."""
        return f"{self.os}-{self.arch}" + ("-musl" if self.libc == "musl" else "")


def own_target() -> Target:
    """The kind of host that this is."""
    system = {"Darwin": "macos"}.get(platform.system(), platform.system().lower())
    arch = architecture(platform.machine())
    if system != "linux":
        return Target(system, arch)
    name, version = platform.libc_ver()
    return Target(system, arch, name or "musl", version)


def targets(file_name: str) -> list[Target]:
    """The kinds of hosts that a wheel of this file name runs on with every Python from ``LEAST_PYTHON`` on; none for a pure wheel.

    Raises:
        ReleaseError: the name is no wheel's, or the wheel is tied to one version of Python.
    """
    found = _NAME.fullmatch(file_name)
    if found is None:
        raise ReleaseError(f"{file_name} is not the name of a wheel")
    if found["abi"] == "none" and found["on"] == "any":
        return []
    minors = [int(tag.removeprefix("cp3")) for tag in found["python"].split(".") if re.fullmatch(r"cp3[0-9]+", tag)]
    least = int(LEAST_PYTHON.split(".")[1])
    if found["abi"].split(".") == ["none"]:
        minors = [least]
    elif "abi3" not in found["abi"].split("."):
        minors = []
    if not minors or min(minors) > least:
        raise ReleaseError(f"{file_name} is tied to one version of Python; a bundle needs a wheel of the stable ABI (abi3)")
    return sorted({target for tag in found["on"].split(".") for target in _targets(tag)})


def _targets(tag: str) -> list[Target]:
    for legacy, version in _LEGACY.items():
        if tag.startswith(f"{legacy}_"):
            return [Target("linux", tag.removeprefix(f"{legacy}_"), "glibc", version)]
    if found := _LINUX.fullmatch(tag):
        libc = "glibc" if found["flavour"] == "manylinux" else "musl"
        return [Target("linux", found["arch"], libc, f"{found['major']}.{found['minor']}")]
    if tag.startswith("linux_"):  # built on the machine that it is installed on: runs where that one's libc does
        own = own_target()
        return [Target("linux", tag.removeprefix("linux_"), own.libc, own.libc_minimum)]
    if found := re.fullmatch(r"macosx_[0-9]+_[0-9]+_(\w+)", tag):
        arches = ("x86_64", "aarch64") if found[1] == "universal2" else (architecture(found[1]),)
        return [Target("macos", arch) for arch in arches]
    if tag.startswith("win_"):
        return [Target("windows", architecture(tag.removeprefix("win_")))]
    return []


def wheel_version(file_name: str, distribution: str) -> str:
    """The version of ``distribution`` in a wheel of this file name; empty where it is a wheel of something else, or none."""
    found = _NAME.fullmatch(file_name)
    if found is None or _normal(found["name"]) != _normal(distribution):
        return ""
    return found["version"]


def source_files() -> dict[str, bytes]:
    """The agent's code as it runs here, by path (``connectors/…``).

    Raises:
        ReleaseError: it cannot be read.
    """
    root = Path(connectors.__file__).parent
    try:
        return {f"connectors/{name}": path.read_bytes() for path in sorted(root.rglob("*.py")) if _belongs(name := _relative(path, root))}
    except OSError as exc:
        raise ReleaseError(f"the agent's code in {root} cannot be read: {exc.strerror}") from exc


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _belongs(name: str) -> bool:
    return "__pycache__" not in PurePosixPath(name).parts and not name.startswith(_LEFT_OUT)


def agent_wheel(version: str = __version__, files: Mapping[str, bytes] | None = None) -> tuple[str, bytes]:
    """File name and content of the agent's wheel: :mod:`connectors` without the platform's routes, and what it needs.

    ``version`` is what the agent will call itself; ``files`` stand for those of :func:`source_files`.

    Raises:
        ReleaseError: as :func:`source_files`.
    """
    members = dict(files if files is not None else source_files())
    if version != __version__:
        members["connectors/_version.py"] = f'"""The version of this release."""\n\n__version__ = "{version}"\n'.encode()
    name = PRODUCT.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {distribution}\n" for distribution in DEPENDENCIES)
    about = (
        f"Metadata-Version: 2.4\nName: {PRODUCT}\nVersion: {version}\n{_own_terms(members, info)}Requires-Python: >={LEAST_PYTHON}\n{needs}"
    )
    members[f"{info}/METADATA"] = about.encode()
    members[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: incident-rca\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members[f"{info}/entry_points.txt"] = f"[console_scripts]\n{PRODUCT} = connectors.cli:main\n".encode()
    return f"{name}-{version}-py3-none-any.whl", _pack(members, info)


def _own_terms(members: dict[str, bytes], info: str) -> str:
    """The metadata's line about the licence, whose text is put among the members; nothing in a source tree that is not installed."""
    try:
        distribution = metadata.distribution("incident-rca")
    except metadata.PackageNotFoundError:
        return ""
    text = distribution.read_text("licenses/LICENSE")
    if text:
        members[f"{info}/licenses/LICENSE"] = text.encode()
    expression = distribution.metadata.json.get("license_expression")
    return f"License-Expression: {expression}\n" if expression else ""


def installed_wheel(distribution_name: str) -> tuple[str, bytes]:
    """File name and content of a wheel put together again from what its installation left here, every file checked by its RECORD.

    Raises:
        ReleaseError: it is not installed, was not installed from a wheel, or a file was changed since.
    """
    try:
        distribution = metadata.distribution(distribution_name)
    except metadata.PackageNotFoundError as exc:
        raise ReleaseError(f"{distribution_name} is not installed here") from exc
    record, wheel = distribution.read_text("RECORD"), distribution.read_text("WHEEL")
    if record is None or wheel is None:
        raise ReleaseError(f"{distribution_name} was not installed here from a wheel: give one with --wheels")
    rows = [row for row in csv.reader(record.splitlines()) if row]
    info = next((PurePosixPath(row[0]).parts[0] for row in rows if row[0].endswith(".dist-info/WHEEL")), "")
    members: dict[str, bytes] = {}
    for path, digest, *_ in rows:
        if _only_of_the_installation(path, info):
            continue
        try:
            content = Path(str(distribution.locate_file(path))).read_bytes()
        except OSError as exc:
            raise ReleaseError(f"{path} of the installed {distribution_name} cannot be read: {exc.strerror}") from exc
        if digest and digest != _digest(content):
            raise ReleaseError(
                f"{path} of the installed {distribution_name} is not as it came: install it anew, or give a wheel with --wheels"
            )
        members[path] = content
    return f"{info.removesuffix('.dist-info')}-{_tags(wheel)}.whl", _pack(members, info)


def _only_of_the_installation(path: str, info: str) -> bool:
    pure = PurePosixPath(path)
    installer = {f"{info}/{name}" for name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")}
    return pure.is_absolute() or ".." in pure.parts or "__pycache__" in pure.parts or path in installer


def _tags(wheel: str) -> str:
    """The three compressed tags of a wheel's file name, from those in its WHEEL file."""
    given = [line.partition(":")[2].strip().split("-") for line in wheel.splitlines() if line.startswith("Tag:")]
    return "-".join(".".join(dict.fromkeys(part)) for part in zip(*given, strict=True))


def check_wheel(name: str, content: bytes) -> None:
    """Refuse what could not be unpacked into a virtual environment without harm.

    Raises:
        ReleaseError: it is no zip file, is damaged, too large, or a member would land outside.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > _LARGEST_WHEEL:
                raise ReleaseError(f"the wheel {name} holds more than {_LARGEST_WHEEL} bytes")
            for member in members:
                pure = PurePosixPath(member.filename)
                if pure.is_absolute() or ".." in pure.parts or "\\" in member.filename:
                    raise ReleaseError(f"the wheel {name} holds {member.filename!r}, which would land outside of its directory")
                if pure.parts and pure.parts[0].endswith(".data"):
                    raise ReleaseError(f"the wheel {name} needs an installer: it holds {pure.parts[0]}/")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError) as exc:
        raise ReleaseError(f"{name} is not a wheel: {exc}") from exc
    if damaged:
        raise ReleaseError(f"the wheel {name} is damaged at {damaged}")


def _pack(members: Mapping[str, bytes], info: str) -> bytes:
    """A wheel of these members and a RECORD of them; stored, because the bundle around it compresses better across files."""
    record = f"{info}/RECORD"
    lines = io.StringIO()
    rows: Iterable[tuple[str, str, object]] = ((path, _digest(content), len(content)) for path, content in sorted(members.items()))
    csv.writer(lines, lineterminator="\n").writerows([*rows, (record, "", "")])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for path, content in [*sorted(members.items()), (record, lines.getvalue().encode())]:
            member = zipfile.ZipInfo(path, _EPOCH)
            member.external_attr = 0o644 << 16
            archive.writestr(member, content)
    return packed.getvalue()


def _digest(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
