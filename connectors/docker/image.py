"""Planning of the agent's image, for Docker hosts and for clusters: its build context, and the arguments of the programs that make it.

Pure functions of what they are given; ``incident-rca image`` (``app/commands``) reads, runs and writes. The context holds the
``Dockerfile``, ``requirements.txt`` and ``wheels/``: this distribution cut down to the agent, and what it depends on, for each of
``PYTHONS`` and ``ARCHITECTURES``. Equal inputs make equal bytes.
"""

from __future__ import annotations

import base64
import email.parser
import gzip
import hashlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import IO

from connectors.core.errors import ConfigError
from connectors.docker.config import IMAGE

ARCHITECTURES = ("x86_64", "aarch64")
"""Machines, as the kernel names them, that one context serves."""
LEAST_PYTHON = "3.11"
PYTHONS = (LEAST_PYTHON, "3.12", "3.13", "3.14")
"""Versions of CPython that one context serves."""
EXTRAS = "docker,kubernetes"
"""What the image's agent can be: one image serves both."""
_GLIBC = ("manylinux2014", "manylinux_2_28")
_DISTRIBUTION = "incident-rca"
_LEFT_OUT = ("connectors/api/",)
_WHEEL_NAME = re.compile(r"(?P<name>[A-Za-z0-9_.]+)-(?P<version>[A-Za-z0-9_.!+]+)(-\d[^-]*)?-[^-]+-[^-]+-[^-]+\.whl")
_OTHER_EXTRA = re.compile(r"""extra\s*==\s*['"](?!(?:docker|kubernetes)['"])""")
_BOUND_WHEEL = re.compile(r"-cp3\d+-cp3\d+-")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:_-]*")
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The oldest time that a zip file can tell: members carry it, so that equal files make equal wheels."""


def is_agent_file(path: str) -> bool:
    """Whether the file at this path of the distribution (``connectors/…``, with slashes) belongs into the agent's wheel."""
    pure = PurePosixPath(path)
    return (
        path.startswith("connectors/")
        and "__pycache__" not in pure.parts
        and pure.suffix in (".py", ".pyi", ".typed")
        and not path.startswith(_LEFT_OUT)
    )


def agent_wheel(files: Mapping[str, bytes], metadata: str, version: str, licence: str = "") -> tuple[str, bytes]:
    """Name and content of the wheel of this distribution without the platform.

    Args:
        files: the distribution's files by path; those of the agent are taken.
        metadata: the installed distribution's METADATA, for what it says of itself and of its dependencies.
        version: what the agent will call itself.
        licence: text of the licence, which travels along.
    """
    info = f"incident_rca-{version}.dist-info"
    members = {path: content for path, content in sorted(files.items()) if is_agent_file(path)}
    members[f"{info}/METADATA"] = _agent_metadata(metadata, version).encode()
    members[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: incident-rca\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members[f"{info}/entry_points.txt"] = b"[console_scripts]\nincident-rca-agent = connectors.cli:main\n"
    if licence:
        members[f"{info}/licenses/LICENSE"] = licence.encode()
    record = f"{info}/RECORD"
    members[record] = "".join([*(_record_line(path, content) for path, content in members.items()), f"{record},,\n"]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in members.items():
            member = zipfile.ZipInfo(path, _EPOCH)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
            archive.writestr(member, content)
    return f"incident_rca-{version}-py3-none-any.whl", packed.getvalue()


def _agent_metadata(metadata: str, version: str) -> str:
    given = email.parser.HeaderParser().parsestr(metadata)
    kept = [(key, given[key]) for key in ("Summary", "License-Expression", "Requires-Python") if given[key]]
    needs = [("Requires-Dist", need) for need in given.get_all("Requires-Dist", []) if not _OTHER_EXTRA.search(need)]
    extras = [("Provides-Extra", extra) for extra in EXTRAS.split(",")]
    lines = [("Metadata-Version", "2.4"), ("Name", _DISTRIBUTION), ("Version", version), *kept, *extras, *needs]
    return "".join(f"{key}: {value}\n" for key, value in lines)


def _record_line(path: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{path},sha256={digest},{len(content)}\n"


def download_arguments(wheel: str, directory: str, constraints: str, architecture: str) -> list[str]:
    """Arguments of pip that bring the dependencies of the agent's ``wheel`` for ``architecture`` into ``directory``, as wheels only.

    They fit the oldest of ``PYTHONS``; :func:`bound_to_python` says which of them fit no other.
    """
    return [*_download(directory, architecture, LEAST_PYTHON), "--constraint", constraints, f"{wheel}[{EXTRAS}]"]


def bound_to_python(files: Iterable[str]) -> list[str]:
    """Of these wheels (file names) the distributions, as ``name==version``, that come compiled for each version of Python anew."""
    found = (_WHEEL_NAME.fullmatch(file) for file in files if _BOUND_WHEEL.search(file))
    return sorted({f"{match['name']}=={match['version']}" for match in found if match})


def further_download_arguments(distributions: Sequence[str], directory: str, architecture: str, python: str) -> list[str]:
    """Arguments of pip that bring these ``distributions``, without what they need, for another version of ``python``."""
    return [*_download(directory, architecture, python), "--no-deps", *distributions]


def _download(directory: str, architecture: str, python: str) -> list[str]:
    platforms = [word for glibc in _GLIBC for word in ("--platform", f"{glibc}_{architecture}")]
    abis = [word for abi in (f"cp{python.replace('.', '')}", "abi3", "none") for word in ("--abi", abi)]
    target = ["--implementation", "cp", "--python-version", python, *abis, *platforms]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    return ["download", *quiet, "--only-binary", ":all:", *target, "--dest", directory]


def constraints(installed: Mapping[str, str]) -> str:
    """Constraints for pip that give the agent the versions that the platform itself has ``installed`` (name to version)."""
    return "".join(f"{name}=={version}\n" for name, version in sorted(installed.items()) if name.lower() != _DISTRIBUTION)


def requirements(digests: Mapping[str, str]) -> str:
    """A requirements file that pins every wheel of the context by name, version and SHA-256 (file name to hexadecimal digest).

    Raises:
        ConfigError: a file is no wheel, two versions of one distribution are there, or the agent itself is missing.
    """
    versions: dict[str, str] = {}
    hashes: dict[str, list[str]] = {}
    for file, digest in sorted(digests.items()):
        found = _WHEEL_NAME.fullmatch(file)
        if found is None:
            raise ConfigError(f"{file} is not the name of a wheel", field="wheels")
        name = re.sub(r"[-_.]+", "-", found["name"]).lower()
        if versions.setdefault(name, found["version"]) != found["version"]:
            raise ConfigError(f"there are wheels of {name} {versions[name]} and {found['version']}: keep one version", field="wheels")
        hashes.setdefault(name, []).append(digest)
    if _DISTRIBUTION not in versions:
        raise ConfigError("the agent's own wheel is missing", field="wheels")
    lines = []
    for name, version in versions.items():
        wanted = f"{name}[{EXTRAS}]" if name == _DISTRIBUTION else name
        lines.append(" \\\n    ".join([f"{wanted}=={version}", *(f"--hash=sha256:{digest}" for digest in hashes[name])]))
    return "\n".join(lines) + "\n"


def dockerfile(text: str, *, version: str, revision: str = "") -> str:
    """The Dockerfile of a context: ``text`` with labels that say which version, and which revision of the source if known, it is.

    Raises:
        ConfigError: a value cannot be a label's.
    """
    known = {"version": version, "revision": revision}
    return f"{text.rstrip()}\nLABEL {' '.join(f'{key}={json.dumps(value)}' for key, value in _labels(known).items())}\n"


def context(dockerfile: str, wheels: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a build context by path; ``wheels`` are contents by file name.

    Raises:
        ConfigError: as :func:`requirements`.
    """
    pinned = requirements({name: hashlib.sha256(content).hexdigest() for name, content in wheels.items()})
    members = {"Dockerfile": dockerfile.encode(), "requirements.txt": pinned.encode()}
    return members | {f"wheels/{name}": content for name, content in sorted(wheels.items())}


def write_tarball(members: Mapping[str, bytes], file: IO[bytes]) -> None:
    """Write a gzipped tarball of ``members`` (contents by path), the same bytes for the same members."""
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path, content in members.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def tags(tag: str, version: str) -> tuple[str, ...]:
    """The names of an image that is built as ``tag``: the default one is also known by its version, which clusters ask for."""
    repository, _, last = tag.rpartition(":")
    return (tag, f"{repository}:{version.replace('+', '-')}") if tag == IMAGE and last == "latest" else (tag,)


def build_arguments(names: Sequence[str], directory: str, *, base_image: str = "", created: str = "") -> list[str]:
    """Arguments of ``docker`` that build the context in ``directory`` as ``names``; ``created`` is an RFC 3339 time for the label.

    Raises:
        ConfigError: ``created`` cannot be a label's value.
    """
    base = ["--build-arg", f"BASE_IMAGE={base_image}"] if base_image else []
    labels = [word for key, value in _labels({"created": created}).items() for word in ("--label", f"{key}={value}")]
    # Without a network the build shows that it needs none.
    return ["build", "--network", "none", *base, *labels, *(word for name in names for word in ("--tag", name)), directory]


def save_arguments(names: Sequence[str], file: str) -> list[str]:
    """Arguments of ``docker`` that write the image with its ``names`` to ``file``, for ``docker load``."""
    return ["save", "--output", file, *names]


def checksum(digest: str, name: str) -> str:
    """A line that ``sha256sum -c`` reads."""
    return f"{digest}  {name}\n"


def _labels(values: Mapping[str, str]) -> dict[str, str]:
    for key, value in values.items():
        if value and not _LABEL_VALUE.fullmatch(value):
            raise ConfigError(f"{value!r} cannot be the image's {key}", field=key)
    return {f"org.opencontainers.image.{key}": value for key, value in values.items() if value}
