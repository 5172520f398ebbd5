"""Where the platform keeps releases: ``<data directory>/packages``.

``<version>`` is a link to a directory of ``.releases``, so that a release is published, or its signature renewed, in one step;
``current`` names the version that hosts are given. What the platform built for itself lies apart in ``.built`` and is given only while
nothing is published.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from app.errors import NotFoundError, ReleaseError
from app.releases import build, release, signing
from app.releases.release import Release
from connectors._version import __version__
from connectors.core import package_manifest
from connectors.core.errors import PackageError
from connectors.core.files import sync_directory, write_atomically
from connectors.core.package_manifest import Manifest, encode, rfc3339, version_key

SELF_BUILT_LIFE = 86_400.0 * 90
"""Seconds for which the platform's own signature is good; it is renewed when half of them have passed."""
_RELEASES = ".releases"
_BUILT = ".built"
_CURRENT = "current"


class PackageRepository:
    """Releases as files. Everything here blocks; :class:`app.releases.service.PackageService` keeps it off the event loop.

    Args:
        data_dir: the platform's data directory; nothing is made in it before something is to be kept.
        trusted_directory: public keys whose signatures on published releases count; None: ``keys/trusted`` in the data directory.
        self_built: whether a release is built here while none is published.
        clock: Unix seconds.
    """

    def __init__(
        self, data_dir: Path, *, trusted_directory: Path | None = None, self_built: bool = True, clock: Callable[[], float]
    ) -> None:
        self.directory = data_dir / "packages"
        self.trusted_directory = trusted_directory or data_dir / signing.KEY_DIRECTORY / signing.TRUSTED_DIRECTORY
        self._data_dir = data_dir
        self._self_built = self_built
        self._clock = clock

    def publish(self, source: Path, *, allow_downgrade: bool = False) -> Manifest:
        """Keep the signed release in ``source``, once its signature and every file have been checked, and give it to hosts from now on.

        Publishing the same files again, signed anew, renews the signature.

        Raises:
            ReleaseError: it is not signed by a trusted key, has expired, is damaged, is lower than the current one, or its version was
                published with other files; what was published before stands.
        """
        keys = signing.trusted_keys(self.trusted_directory)
        if not keys:
            raise ReleaseError("no key is trusted here yet: incident-rca release trust FILE, with the releaser's public key")
        found = release.read(source, keys.values())
        current = self.current_version()
        try:
            package_manifest.check(found.manifest, now=self._clock(), installed_version="" if allow_downgrade else current)
        except PackageError as exc:
            hint = "; --allow-downgrade publishes it all the same" if exc.code == "downgrade-refused" else ""
            raise ReleaseError(f"the release in {source} is refused: {exc.reason}{hint}") from exc
        self._refuse_other_files(found.manifest)
        try:
            self._take(found)
            write_atomically(self.directory / _CURRENT, f"{found.version}\n".encode("ascii"), mode=0o644)
        except OSError as exc:
            raise ReleaseError(f"{exc.filename or self.directory} cannot be written: {exc.strerror}") from exc
        return found.manifest

    def current_version(self) -> str:
        """The version that hosts are given; empty while nothing is published.

        Raises:
            ReleaseError: it cannot be read.
        """
        try:
            text = (self.directory / _CURRENT).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as exc:
            raise ReleaseError(f"{self.directory / _CURRENT} cannot be read: {exc}") from exc
        return text if _is_version(text) else ""

    def versions(self) -> list[str]:
        """All that are published, lowest first."""
        try:
            found = [path.name for path in self.directory.iterdir() if path.is_symlink() and _is_version(path.name)]
        except OSError:
            return []
        return sorted(found, key=version_key)

    def current(self) -> Release:
        """The release that hosts are given.

        Raises:
            NotFoundError: nothing is published, and nothing may or can be built here; the reason says what to do.
            ReleaseError: what is published cannot be verified.
        """
        version = self.current_version()
        return self.find(version) if version else self._own()

    def find(self, version: str) -> Release:
        """The release of that version, published or built here.

        Raises:
            NotFoundError: there is none.
            ReleaseError: as :meth:`current`.
        """
        if _is_version(version) and (self.directory / version).is_symlink():
            return release.read((self.directory / version).resolve(), signing.trusted_keys(self.trusted_directory).values())
        if version == __version__ and not self.current_version():
            return self._own()
        known = ", ".join(self.versions()) or "none"
        raise NotFoundError(f"no release {version[:64]!r} is published here (published: {known})")

    def state(self) -> tuple[object, ...]:
        """Something that differs whenever :meth:`current` or :meth:`find` could answer otherwise than before."""
        places = [self.trusted_directory, self.directory, self.directory / _CURRENT, *sorted(self._trusted_files())]
        return tuple(_stamp(place) for place in places)

    def _trusted_files(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            yield from self.trusted_directory.glob("*.pem")

    def _refuse_other_files(self, manifest: Manifest) -> None:
        link = self.directory / manifest.version
        if not link.is_symlink():
            return
        with contextlib.suppress(OSError, PackageError):
            held = package_manifest.parse((link / package_manifest.MANIFEST_FILE).read_bytes())
            if held.files != manifest.files:
                raise ReleaseError(
                    f"version {manifest.version} was published with other files, and hosts may hold those: raise the version"
                )

    def _take(self, found: Release) -> None:
        releases = self.directory / _RELEASES
        releases.mkdir(mode=0o755, parents=True, exist_ok=True)
        target = releases / f"{found.version}-{hashlib.sha256(found.content).hexdigest()[:16]}"
        if not target.exists():
            with _scratch(releases) as scratch:
                for file in found.manifest.files:
                    _copy(found.path(file), scratch / file.name)
                release.check_files(scratch, found.manifest.files)  # of the copies: what is served is what was checked
                release.write(scratch, found.content, found.signature)
                scratch.chmod(0o755)
                scratch.rename(target)
            sync_directory(releases)
        link = self.directory / found.version
        before = link.resolve() if link.is_symlink() else None
        _point(link, Path(_RELEASES, target.name))
        if before is not None and before != target.resolve() and before.parent == releases.resolve():
            shutil.rmtree(before, ignore_errors=True)

    def _own(self) -> Release:
        """The release that is built here, made or signed anew where need be."""
        if not self._self_built:
            raise NotFoundError("no package of the agent is published here: incident-rca release publish DIR, on the platform's machine")
        try:
            key = signing.installation_key(self._data_dir)
            file, content = build.own_bundle()
            directory = self.directory / _BUILT / __version__
            with contextlib.suppress(ReleaseError):
                held = release.read(directory, [key.public], built_here=True)
                fresh = held.manifest.expires - self._clock() > SELF_BUILT_LIFE / 2 and held.manifest.created <= self._clock()
                if fresh and held.manifest.files == (file,):
                    release.check_files(directory, held.manifest.files)
                    return held
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_atomically(directory / file.name, content, mode=0o644)
            now = float(int(self._clock()))
            signed = encode(Manifest(__version__, now, now + SELF_BUILT_LIFE, key.key_id, (file,)))
            release.write(directory, signed, key.sign(signed))
            return release.read(directory, [key.public], built_here=True)
        except ReleaseError as exc:
            raise NotFoundError(f"no package of the agent is published here, and none can be built here: {exc.reason}") from exc
        except OSError as exc:
            raise ReleaseError(f"{exc.filename or self.directory} cannot be written: {exc.strerror}") from exc


def describe(manifest: Manifest) -> str:
    """A line about a release, for people and logs."""
    return f"version {manifest.version}, {len(manifest.files)} files, key {manifest.key_id}, expires {rfc3339(manifest.expires)}"


@contextlib.contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A directory beside the results that is gone afterwards, unless it was renamed into place."""
    made = Path(tempfile.mkdtemp(dir=directory, prefix=".making-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("xb") as written:
        shutil.copyfileobj(read, written, 1 << 20)
        written.flush()
        os.fsync(written.fileno())
    target.chmod(0o644)


def _point(link: Path, target: Path) -> None:
    """Make ``link`` a symbolic link to ``target`` in one step, whatever it was."""
    fresh = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
    sync_directory(link.parent)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _is_version(text: str) -> bool:
    try:
        version_key(text)
    except PackageError:
        return False
    return True
