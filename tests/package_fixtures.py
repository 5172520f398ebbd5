"""Releases for tests: built once a session from the code that runs here, signed with a key of the session, published where asked.

pytest_plugins has it, so a test asks for ``package_shop`` and calls ``package_shop.publish(data_dir)``; a platform on that data
directory, running or started later, then serves it. ``package_shop.publish(data_dir, version="0.9.0")`` makes another version of the
same code: what upgrades are tested with. A platform for which nothing is published serves a bundle for its own kind of host by itself.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from app.releases import build, release, signing, wheels
from app.releases.executable import least_glibc
from app.releases.repository import PackageRepository
from app.releases.wheels import Target
from connectors._version import __version__
from connectors.core.package_manifest import BUNDLE, EXECUTABLE, MANIFEST_FILE, PRODUCT, Manifest, PackageFile, encode

DAY = 86_400.0


@dataclass
class PackageShop:
    """Makes releases below ``directory`` and keeps what takes long."""

    directory: Path
    key: signing.SigningKey = field(default_factory=signing.SigningKey.generate)
    _bundles: dict[str, tuple[PackageFile, bytes]] = field(default_factory=dict)
    _executable: list[tuple[PackageFile, bytes]] = field(default_factory=list)
    _number: int = 0

    def bundle(self, version: str = __version__) -> tuple[PackageFile, bytes]:
        """The bundle for this kind of host; ``version`` is what its agent calls itself."""
        if version not in self._bundles:
            self._bundles[version] = build.own_bundle(version)
        return self._bundles[version]

    def executable(self) -> tuple[PackageFile, bytes]:
        """The program for this kind of host (PyInstaller: ten seconds the first time), of the version that runs here."""
        if not self._executable:
            scratch = self.directory / "executable"
            scratch.mkdir()
            self._executable.append(build.own_executable(scratch))
            shutil.rmtree(scratch)
        return self._executable[0]

    def program(self, tarball: Path) -> tuple[PackageFile, bytes]:
        """The program that another system's build made, with what its files say of the glibc that they need."""
        unpacked = self.directory / f"unpacked-{tarball.name}"
        with tarfile.open(tarball) as archive:
            archive.extractall(unpacked, filter="data")
        own = wheels.own_target()
        target = Target(own.os, own.arch, own.libc, least_glibc(unpacked))
        shutil.rmtree(unpacked)
        return build.describe(f"{PRODUCT}-{__version__}-{target.label}-executable.tar.gz", EXECUTABLE, target, tarball.read_bytes(), "")

    def make(self, version: str = __version__, *, bundle: bool = True, executable: bool | Path = False) -> Path:
        """A directory with a release that is not signed yet; ``executable`` may be a program that was built elsewhere."""
        self._number += 1
        made = self.directory / f"release-{self._number}"
        made.mkdir()
        programs = [self.program(executable)] if isinstance(executable, Path) else [self.executable()] if executable else []
        files = [*([self.bundle(version)] if bundle else []), *programs]
        for file, content in files:
            (made / file.name).write_bytes(content)
        manifest = Manifest(version, 0.0, 0.0, build.UNSIGNED, tuple(file for file, _ in files))
        (made / MANIFEST_FILE).write_bytes(encode(manifest))
        return made

    def publish(
        self,
        data_dir: Path,
        version: str = __version__,
        *,
        bundle: bool = True,
        executable: bool | Path = False,
        life: float = 30 * DAY,
        now: float | None = None,
        allow_downgrade: bool = False,
    ) -> Manifest:
        """Make, sign, and publish a release in the data directory of a platform, which is told to trust the session's key."""
        moment = time.time() if now is None else now
        made = self.make(version, bundle=bundle, executable=executable)
        release.sign(made, self.key, now=moment, life=life)
        repository = PackageRepository(data_dir, clock=lambda: moment)
        signing.trust(repository.trusted_directory, self.key.public)
        return repository.publish(made, allow_downgrade=allow_downgrade)


def small_release(directory: Path, version: str = "1.0.0", content: bytes = b"content " * 1000) -> Path:
    """A release that is not signed, with one file that no host could use; for tests of what is done with files."""
    directory.mkdir()
    file, held = build.describe(f"incident-rca-agent-{version}-any.tar.gz", BUNDLE, Target("any", "any"), content, "")
    (directory / file.name).write_bytes(held)
    (directory / MANIFEST_FILE).write_bytes(encode(Manifest(version, 0.0, 0.0, build.UNSIGNED, (file,))))
    return directory


@pytest.fixture(scope="session")
def package_shop(tmp_path_factory) -> PackageShop:
    return PackageShop(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="session")
def unpacked_bundle(package_shop, tmp_path_factory) -> Path:
    """A directory of packages as the installer makes it: the bundle's wheels, each unpacked as a zip file."""
    return unpack_bundle(package_shop.bundle()[1], tmp_path_factory.mktemp("unpacked"))


def unpack_bundle(content: bytes, target: Path) -> Path:
    for name, wheel in read_tarball(content).items():
        assert name.startswith("wheels/")
        wheels.check_wheel(name, wheel)
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            archive.extractall(target)
    return target


def read_tarball(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        return {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}
