"""Building a release: bundles for every kind of host that wheels are there for, the executable for this kind, and the manifest.

A release being built is a directory of files with an unsigned manifest; :func:`app.releases.release.sign` makes it one to publish.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from app.errors import ReleaseError
from app.releases import wheels
from app.releases.archive import tarball
from app.releases.executable import build_executable
from app.releases.release import check_files
from app.releases.wheels import DEPENDENCIES, LEAST_PYTHON, Target
from connectors._version import __version__
from connectors.core.errors import PackageError
from connectors.core.files import write_atomically
from connectors.core.package_manifest import BUNDLE, EXECUTABLE, MANIFEST_FILE, PRODUCT, Manifest, PackageFile, encode, parse, version_key

UNSIGNED = "0" * 16
"""Key id of a manifest that nobody has signed yet."""
DOWNLOAD_PLATFORMS = (
    ("manylinux2014_x86_64", "manylinux_2_28_x86_64"),
    ("manylinux2014_aarch64", "manylinux_2_28_aarch64"),
    ("macosx_11_0_x86_64",),
    ("macosx_11_0_arm64",),
    ("win_amd64",),
    ("win_arm64",),
)
"""What ``--download`` brings wheels for, each as pip's names of the platforms that will do."""
_DOWNLOAD_TIMEOUT = 300.0


def own_bundle(version: str = __version__) -> tuple[PackageFile, bytes]:
    """The bundle for the kind of host that this is, from nothing but what is installed here.

    Raises:
        ReleaseError: a dependency was not installed from a wheel, or from one that is tied to this version of Python.
    """
    found = dict(wheels.installed_wheel(name) for name in DEPENDENCIES)
    own = wheels.own_target()
    for target, chosen in plan_bundles(found).items():
        if (target.os, target.arch, target.libc) == (own.os, own.arch, own.libc):
            return bundle(version, target, chosen)
    raise ReleaseError(f"what is installed here makes no bundle for {own.label}: {', '.join(found)}")


def plan_bundles(found: Mapping[str, bytes]) -> dict[Target, dict[str, bytes]]:
    """Which of these wheels (contents by file name) go into the bundle of each kind of host that they all can serve.

    Wheels of other distributions are passed over. Of several that run on one kind of host, the one for the oldest libc is taken.

    Raises:
        ReleaseError: a dependency is missing, two versions of one are there, or a wheel is tied to one version of Python.
    """
    pure: dict[str, bytes] = {}
    compiled: dict[tuple[str, str, str], dict[str, tuple[str, str]]] = {}
    for distribution in DEPENDENCIES:
        names = {name: version for name in sorted(found) if (version := wheels.wheel_version(name, distribution))}
        if not names:
            raise ReleaseError(f"there is no wheel of {distribution}")
        if len(set(names.values())) > 1:
            raise ReleaseError(f"there are wheels of {distribution} {' and '.join(sorted(set(names.values())))}: keep one version")
        for name in names:
            runs_on = wheels.targets(name)
            if not runs_on:
                pure[distribution] = found[name]
                compiled.setdefault(("", "", ""), {})[distribution] = (name, "")
            for target in runs_on:
                held = compiled.setdefault((target.os, target.arch, target.libc), {})
                if distribution not in held or _older(target.libc_minimum, held[distribution][1]):
                    held[distribution] = (name, target.libc_minimum)
    anywhere = compiled.pop(("", "", ""), {})
    bundles: dict[Target, dict[str, bytes]] = {}
    for (system, arch, libc), held in sorted(compiled.items()):
        chosen = {**anywhere, **held}
        if set(chosen) == set(DEPENDENCIES):
            least = max((minimum for _, minimum in chosen.values()), key=_numbers)
            bundles[Target(system, arch, libc, least)] = {name: found[name] for name, _ in chosen.values()}
    return bundles


def bundle(version: str, target: Target, dependencies: Mapping[str, bytes]) -> tuple[PackageFile, bytes]:
    """The bundle of the agent's wheel and these (contents by file name) for one kind of host.

    Raises:
        ReleaseError: a wheel cannot be unpacked without harm.
    """
    for name, content in dependencies.items():
        wheels.check_wheel(name, content)
    held = dict(sorted([wheels.agent_wheel(version), *dependencies.items()]))
    content = tarball({f"wheels/{name}": wheel for name, wheel in held.items()})
    name = f"{PRODUCT}-{version}-{target.label}.tar.gz"
    return describe(name, BUNDLE, target, content, f">={LEAST_PYTHON}")


def build(
    out: Path,
    *,
    say: Callable[[str], None],
    wheel_directory: Path | None = None,
    download: bool = False,
    executable: bool = True,
    include: Sequence[Path] = (),
) -> Manifest:
    """Build a release of the version that runs here into ``out``, which must not hold anything yet.

    Args:
        out: the directory; made if need be.
        say: is told what is under way.
        wheel_directory: wheels of the dependencies; there is a bundle for each kind of host that they serve. Without one, and without
            ``download``, there is a bundle for this kind of host only.
        download: have pip bring the dependencies' wheels, in the versions that are installed here, for all usual kinds of hosts.
        executable: also make the program for hosts without Python; takes a minute.
        include: directories of releases of the same version that other machines built; what they have and this one lacks is taken over.

    Raises:
        ReleaseError: a step failed, and ``out`` holds no manifest.
    """
    try:
        version_key(__version__)
    except PackageError as exc:
        raise ReleaseError(exc.reason) from exc
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise ReleaseError(f"{out} is not empty")
        with tempfile.TemporaryDirectory(prefix="irca-release-") as made:
            scratch = Path(made)
            files = [_keep(out, *one) for one in _bundles(scratch, wheel_directory, download, say)]
            if executable:
                say("Making the executable (PyInstaller takes about a minute)")
                files.append(_keep(out, *own_executable(scratch)))
            for other in include:
                held = {file.name for file in files}
                files += [_keep(out, *one) for one in _others(other) if one[0].name not in held]
        manifest = Manifest(__version__, 0.0, 0.0, UNSIGNED, tuple(files))
        write_atomically(out / MANIFEST_FILE, encode(manifest), mode=0o644)
    except OSError as exc:
        raise ReleaseError(f"{exc.filename or out} cannot be used: {exc.strerror}") from exc
    return manifest


def _bundles(scratch: Path, directory: Path | None, download: bool, say: Callable[[str], None]) -> list[tuple[PackageFile, bytes]]:
    if directory is None and not download:
        say(f"Packing a bundle for {wheels.own_target().label}")
        return [own_bundle()]
    found: dict[str, bytes] = {}
    if download:
        _download(scratch, say)
        found |= _read_wheels(scratch)
    if directory is not None:
        found |= _read_wheels(directory)
    for distribution in DEPENDENCIES:
        if not any(wheels.wheel_version(name, distribution) for name in found):
            name, content = wheels.installed_wheel(distribution)
            found[name] = content
    made = []
    for target, chosen in plan_bundles(found).items():
        say(f"Packing a bundle for {target.label}")
        made.append(bundle(__version__, target, chosen))
    return made


def _others(directory: Path) -> list[tuple[PackageFile, bytes]]:
    try:
        manifest = parse((directory / MANIFEST_FILE).read_bytes())
    except PackageError as exc:
        raise ReleaseError(f"{directory}: {exc.reason}") from exc
    if manifest.version != __version__:
        raise ReleaseError(f"the release in {directory} is version {manifest.version}, not {__version__}")
    check_files(directory, manifest.files)
    return [(file, (directory / file.name).read_bytes()) for file in manifest.files]


def _read_wheels(directory: Path) -> dict[str, bytes]:
    wanted = [path for path in sorted(directory.glob("*.whl")) if any(wheels.wheel_version(path.name, name) for name in DEPENDENCIES)]
    if not wanted:
        raise ReleaseError(f"there is no wheel of {' or '.join(DEPENDENCIES)} in {directory}")
    return {path.name: path.read_bytes() for path in wanted}


def _download(directory: Path, say: Callable[[str], None]) -> None:
    pins = [f"{name}=={metadata.version(name)}" for name in DEPENDENCIES]
    for platforms in DOWNLOAD_PLATFORMS:
        say(f"Downloading wheels for {platforms[0]}")
        command = [sys.executable, "-m", "pip", *download_arguments(pins, str(directory), platforms)]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_DOWNLOAD_TIMEOUT, check=False)
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise ReleaseError(f"pip download did not end well: {exc}") from exc
        if done.returncode:
            raise ReleaseError("\n".join(["pip download failed", *done.stderr.decode(errors="replace").strip().splitlines()[-6:]]))


def download_arguments(pins: Sequence[str], directory: str, platforms: Sequence[str]) -> list[str]:
    """Arguments of pip that bring the wheels of these pinned distributions for one kind of host into ``directory``."""
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--only-binary", ":all:"]
    target = ["--implementation", "cp", "--python-version", LEAST_PYTHON, "--abi", "abi3", "--abi", "none"]
    return ["download", *quiet, *target, *(word for name in platforms for word in ("--platform", name)), "--dest", directory, *pins]


def own_executable(scratch: Path) -> tuple[PackageFile, bytes]:
    """The program for the kind of host that this is, made in the directory ``scratch``.

    Raises:
        ReleaseError: as :func:`app.releases.executable.build_executable`.
    """
    path, glibc = build_executable(scratch, scratch)
    own = wheels.own_target()
    target = Target(own.os, own.arch, own.libc, glibc)
    return describe(f"{PRODUCT}-{__version__}-{target.label}-executable.tar.gz", EXECUTABLE, target, path.read_bytes(), "")


def describe(name: str, kind: str, target: Target, content: bytes, python: str) -> tuple[PackageFile, bytes]:
    """A file of a release as its manifest tells of it, and its content."""
    digest = hashlib.sha256(content).hexdigest()
    return PackageFile(name, kind, target.os, target.arch, target.libc, target.libc_minimum, python, len(content), digest), content


def _keep(out: Path, file: PackageFile, content: bytes) -> PackageFile:
    write_atomically(out / file.name, content, mode=0o644)
    return file


def _older(version: str, than: str) -> bool:
    return _numbers(version) < _numbers(than)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split("."))) if version else ()
