"""The doing behind ``incident-rca image``: pip brings wheels, docker builds and saves, files land in the data directory.

What they do and with which arguments is planned in :mod:`connectors.docker.image`.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO

import typer

import connectors
from app.commands.output import USAGE, CommandError
from app.commands.setup import check_data_dir, load_settings
from connectors._version import __version__
from connectors.core.errors import ConfigError
from connectors.docker import image as plan
from connectors.docker.artefacts import ARTEFACT_PATH, CHECKSUM_SUFFIX, CONTEXT_FILE, IMAGE_FILE
from connectors.docker.config import DockerAgentConfig

PIP_TIMEOUT = 900.0
BUILD_TIMEOUT = 1800.0
SAVE_TIMEOUT = 900.0
LAST_LINES = 12
"""Lines of a failed program's output that are shown."""


def artefact_directory(data_dir: Path) -> Path:
    """Where the files are kept that the platform serves under ``/artefacts/docker``."""
    return data_dir / ARTEFACT_PATH.strip("/")


@dataclass(frozen=True, slots=True)
class Workshop:
    """Makes contexts and images, and keeps them in ``directory``; ``say`` is told what is under way."""

    directory: Path
    say: Callable[[str], None]

    @classmethod
    def of(cls, data_dir: Path | None) -> Workshop:
        """The one that keeps its results in the data directory of the settings, or in ``data_dir``.

        Raises:
            CommandError: the settings are not valid, or the directory cannot be written.
        """
        settings = load_settings(data_dir=data_dir)
        check_data_dir(settings)
        directory = artefact_directory(settings.data_dir)
        try:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as exc:
            raise CommandError(f"{directory.absolute()} cannot be made: {exc.strerror}") from exc
        return cls(directory, lambda text: typer.echo(text, err=True))

    def make_context(self, wheels: Path | None) -> dict[str, bytes]:
        """The files of a build context by path.

        Raises:
            CommandError: this installation is incomplete, or the dependencies cannot be had.
        """
        name, content = _own_wheel()
        held = {name: content}
        with _scratch(self.directory) as scratch:
            (scratch / name).write_bytes(content)
            if wheels is None:
                self._download(scratch, name)
            source = scratch if wheels is None else wheels
            try:
                found = sorted(source.glob("*.whl"))
                # An agent's wheel among them would be another version of what runs here.
                held |= {path.name: path.read_bytes() for path in found if not path.name.startswith("incident_rca-")}
            except OSError as exc:
                raise CommandError(f"{source} cannot be read: {exc.strerror}") from exc
        if len(held) == 1:
            raise CommandError(f"there are no wheels in {wheels}", exit_code=USAGE)
        try:
            text = plan.dockerfile(_package_file("Dockerfile"), version=__version__, revision=_revision())
            return plan.context(text, held)
        except ConfigError as exc:
            raise CommandError(exc.reason, exit_code=USAGE) from exc

    def keep_context(self, members: Mapping[str, bytes]) -> None:
        """Write the context's tarball and its checksum, and say where.

        Raises:
            CommandError: the file cannot be written.
        """
        self._keep(CONTEXT_FILE, lambda file: plan.write_tarball(members, file))

    def build(self, *, tag: str, base_image: str, wheels: Path | None, save: bool) -> None:
        """Make the context, build the image from it, and keep both.

        Raises:
            CommandError: a step failed; the hint is the end of what the program said.
        """
        for option, value in (("--tag", tag), ("--base-image", base_image)):
            _check_image_name(option, value)
        if shutil.which("docker") is None:
            raise CommandError(
                "the docker command is not installed here",
                hint="Install it, or make the context only (incident-rca image context) and build where Docker is.",
            )
        members = self.make_context(wheels)
        self.keep_context(members)
        with _scratch(self.directory) as scratch:
            for path, content in members.items():
                target = scratch / "context" / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            self.say(f"Building {tag} (the base image is pulled if it is not there)")
            created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            names = plan.tags(tag, __version__)
            arguments = plan.build_arguments(names, str(scratch / "context"), base_image=base_image, created=created)
            _run(["docker", *arguments], "docker build", BUILD_TIMEOUT)
            if save:
                self.say("Saving the image")
                saved = scratch / "image.tar"
                _run(["docker", *plan.save_arguments(names, str(saved))], "docker save", SAVE_TIMEOUT)
                self._keep(IMAGE_FILE, lambda file: _compress(saved, file))
        typer.echo(f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} built")

    def _download(self, directory: Path, wheel: str) -> None:
        installed = {d.name: d.version for d in metadata.distributions() if d.name}
        constraints = directory / "constraints.txt"
        constraints.write_text(plan.constraints(installed), encoding="utf-8")
        for architecture in plan.ARCHITECTURES:
            self.say(f"Downloading what the agent depends on ({architecture})")
            arguments = plan.download_arguments(str(directory / wheel), str(directory), str(constraints), architecture)
            hint = "Without a package index: put the wheels into a directory and name it with --wheels."
            _run([sys.executable, "-m", "pip", *arguments], "pip download", PIP_TIMEOUT, hint)
            bound = plan.bound_to_python(path.name for path in directory.iterdir())
            for python in plan.PYTHONS[1:] if bound else ():
                arguments = plan.further_download_arguments(bound, str(directory), architecture, python)
                _run([sys.executable, "-m", "pip", *arguments], "pip download", PIP_TIMEOUT, hint)

    def _keep(self, name: str, write: Callable[[IO[bytes]], None]) -> None:
        """Write a file and its checksum beside it; readers see the old file or the new one, whole."""
        target = self.directory / name
        try:
            with _scratch(self.directory) as scratch:
                made, line = scratch / name, scratch / (name + CHECKSUM_SUFFIX)
                with made.open("wb") as file:
                    write(file)
                with made.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                line.write_text(plan.checksum(digest, name), encoding="ascii")
                size = made.stat().st_size
                for path in (made, line):
                    path.chmod(0o644)  # the platform may run as another user than the one that builds
                    path.replace(self.directory / path.name)
        except OSError as exc:
            raise CommandError(f"{target} cannot be written: {exc.strerror}") from exc
        typer.echo(f"{target.absolute()}  {size / 1e6:.1f} MB  sha256:{digest}")


@contextlib.contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A temporary directory beside the results, so that they can be renamed into place."""
    with tempfile.TemporaryDirectory(dir=directory, prefix=".making-") as made:
        yield Path(made)


def _own_wheel() -> tuple[str, bytes]:
    """The agent's wheel, packed from the code that runs here: a checkout and an installed distribution give the same."""
    try:
        distribution = metadata.distribution("incident-rca")
    except metadata.PackageNotFoundError as exc:
        raise CommandError("incident-rca is not installed here", hint="In a checkout: make install.") from exc
    root = Path(connectors.__file__).parent
    found = [path for path in sorted(root.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    files = {f"connectors/{path.relative_to(root).as_posix()}": path.read_bytes() for path in found}
    licence = distribution.read_text("licenses/LICENSE") or ""
    return plan.agent_wheel(files, distribution.read_text("METADATA") or "", __version__, licence)


def _package_file(name: str) -> str:
    return Path(plan.__file__).with_name(name).read_text(encoding="utf-8")


def _revision() -> str:
    """The commit that is checked out; empty where the code is not in a checkout of its own or git is not there."""
    root = Path(connectors.__file__).parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return ""
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=30, check=False)  # noqa: S607 - the git that shutil.which found
    return done.stdout.strip() if done.returncode == 0 else ""


def _check_image_name(option: str, value: str) -> None:
    if value:
        try:
            DockerAgentConfig.from_mapping({"image": value})
        except ConfigError as exc:
            raise CommandError(f"{option}: {value!r} is not the name of an image", exit_code=USAGE) from exc


def _compress(source: Path, file: IO[bytes]) -> None:
    with source.open("rb") as read, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=6) as packed:
        shutil.copyfileobj(read, packed, 1 << 20)


def _run(command: Sequence[str], name: str, timeout: float, hint: str = "") -> None:
    """Run a program to its end.

    Raises:
        CommandError: it cannot be started, took longer than ``timeout`` seconds, or failed.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except OSError as exc:
        raise CommandError(f"{name} cannot be started: {exc.strerror}", hint=hint) from exc
    except subprocess.TimeoutExpired as exc:
        raise CommandError(f"{name} was given up after {timeout:g} s", hint=hint) from exc
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip().splitlines()[-LAST_LINES:]
        raise CommandError(f"{name} failed (exit code {done.returncode})", hint="\n".join([*said, *([hint] if hint else [])]))
