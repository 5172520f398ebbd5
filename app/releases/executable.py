"""The agent as a program that needs no Python: a directory made by PyInstaller, in a tarball.

A directory and not PyInstaller's single file: that one unpacks itself into a temporary directory at each start, which fails where
``/tmp`` is mounted noexec, is slower, and leaves a second process resident.
"""

from __future__ import annotations

import os
import platform
import re
import stat
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import connectors
from app.errors import ReleaseError
from app.releases.archive import gzipped_tar
from connectors.core.package_manifest import PRODUCT

BUILD_TIMEOUT = 900.0
_CHECK_FAILED = 3
"""The agent's exit code when it runs but a preflight check fails."""
_LAST_LINES = 12
_ELF = b"\x7fELF"
_GLIBC = re.compile(rb"\0GLIBC_([0-9]+)\.([0-9]+)(?:\.[0-9]+)?(?=\0)")

_EXCLUDED = (
    "app",
    "connectors.api",
    "connectors.docker",
    "connectors.kubernetes",
    "connectors.core.opamp_pb2",
    "docker",
    "lightkube",
    "google",
    "opentelemetry",
    "cryptography",
    "fastapi",
    "starlette",
    "pydantic",
    "numpy",
    "yaml",
    "typing_extensions",
    "setuptools",
    "pkg_resources",
    "pip",
    "tkinter",
    "unittest",
    "pydoc",
    "doctest",
    "pdb",
    "lib2to3",
    "distutils",
    "ensurepip",
    "idlelib",
    "turtle",
    "curses",
    "readline",
    "test",
    "xmlrpc",
    "multiprocessing",
    "asyncio",
    "decimal",
    "_decimal",
    "_codecs_cn",
    "_codecs_hk",
    "_codecs_iso2022",
    "_codecs_jp",
    "_codecs_kr",
    "_codecs_tw",
)

_ENTRY = """\
import os
import sys

# PyInstaller's loader points this at the libraries beside the program; what the agent starts must have the host's own.
original = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
if original is not None:
    os.environ["LD_LIBRARY_PATH"] = original
else:
    os.environ.pop("LD_LIBRARY_PATH", None)

# Its OpenSSL looks for authorities where the system keeps them that it was built on; systems differ.
bundles = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem")
if "SSL_CERT_FILE" not in os.environ and "SSL_CERT_DIR" not in os.environ:
    for bundle in bundles:
        if os.path.exists(bundle):
            os.environ["SSL_CERT_FILE"] = bundle
            break

from connectors.cli import main

sys.exit(main())
"""


def build_executable(directory: Path, scratch: Path) -> tuple[Path, str]:
    """Make the program in ``directory`` for the kind of host that this is.

    Returns:
        The tarball, and the oldest glibc that it runs on (empty outside of Linux, or where it needs none).

    Raises:
        ReleaseError: PyInstaller is not installed, fails or takes too long, or what it made does not start.
    """
    entry, made = scratch / "entry.py", scratch / "dist"
    entry.write_text(_ENTRY, encoding="utf-8")
    # The agent's code must come from here whatever stands in the caller's directory; PyInstaller's own children need to find it, too.
    source = str(Path(connectors.__file__).parents[1])
    own = {"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "315532800", "PYINSTALLER_CONFIG_DIR": str(scratch / "cache"), "PYTHONPATH": source}
    environment = {**os.environ, **own}
    _run([sys.executable, *arguments(str(entry), str(scratch), source)], scratch, environment)
    program = made / PRODUCT / (f"{PRODUCT}.exe" if os.name == "nt" else PRODUCT)
    # It must find the type of agent that it exists for; that nothing answers at this address is a failed check of the host, not of it.
    tried = {**os.environ, "AGENT_TOKEN": "none", "STATE_DIR": str(scratch / "state")}
    _run([str(program), "check", "--type", "server", "--platform-url", "http://127.0.0.1:9"], scratch, tried, accepted=(0, _CHECK_FAILED))
    path = directory / f"{PRODUCT}-executable.tar.gz"
    with path.open("wb") as file:
        pack(made / PRODUCT, file)
    return path, least_glibc(made / PRODUCT) if platform.system() == "Linux" else ""


def arguments(entry: str, scratch: str, source: str) -> list[str]:
    """Arguments of Python that have PyInstaller make the program of ``entry`` below ``scratch``; ``source`` holds :mod:`connectors`."""
    places = ["--distpath", f"{scratch}/dist", "--workpath", f"{scratch}/work", "--specpath", scratch, "--paths", source]
    # The factory imports agent types by name, which no analysis sees.
    found = [word for name in ("connectors.core", "connectors.server") for word in ("--collect-submodules", name)]
    excluded = [word for name in _EXCLUDED for word in ("--exclude-module", name)]
    strip = ["--strip"] if platform.system() == "Linux" else []
    shape = ["--onedir", "--name", PRODUCT, "--noconfirm", "--noupx", "--log-level", "WARN", *strip]
    return ["-m", "PyInstaller", *shape, *places, *found, *excluded, entry]


def least_glibc(directory: Path) -> str:
    """The highest version of glibc's symbols that a program or library below ``directory`` asks for; empty where none does."""
    versions = [
        (int(found[1]), int(found[2]))
        for path in directory.rglob("*")
        if path.is_file() and (content := path.read_bytes()).startswith(_ELF)
        for found in _GLIBC.finditer(content)
    ]
    return ".".join(map(str, max(versions))) if versions else ""


def pack(directory: Path, file: IO[bytes]) -> None:
    """Write ``directory`` as a gzipped tarball, the same bytes for the same files; links are followed.

    Raises:
        ReleaseError: it holds something that is no file.
    """
    with gzipped_tar(file) as archive:
        for path in sorted(directory.rglob("*")):
            if path.is_dir():
                continue
            if not path.is_file():
                raise ReleaseError(f"{path} is no file")
            member = tarfile.TarInfo(f"{PRODUCT}/{path.relative_to(directory).as_posix()}")
            found = path.stat()
            member.size, member.mode = found.st_size, 0o755 if found.st_mode & stat.S_IXUSR else 0o644
            with path.open("rb") as content:
                archive.addfile(member, content)


def _run(command: Sequence[str], directory: Path, environment: dict[str, str], accepted: Sequence[int] = (0,)) -> None:
    name = "PyInstaller" if "PyInstaller" in command else Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=BUILD_TIMEOUT,
            check=False,
        )
    except OSError as exc:
        raise ReleaseError(f"{name} cannot be started: {exc.strerror}") from exc
    except subprocess.TimeoutExpired as exc:
        raise ReleaseError(f"{name} was given up after {BUILD_TIMEOUT:g} s") from exc
    if done.returncode not in accepted:
        said = done.stdout.decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
        raise ReleaseError("\n".join([f"{name} failed (exit code {done.returncode})", *said]))
