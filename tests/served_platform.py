"""A platform on a real socket in a thread of this process, and releases for Macs and Windows machines to be published in it."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import socket
import threading
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from app.main import create_app
from app.releases import build, release, signing, wheels
from app.releases.repository import PackageRepository
from app.releases.wheels import Target
from app.settings import Settings
from connectors._version import __version__
from connectors.core.package_manifest import MANIFEST_FILE, Manifest, PackageFile, encode

DAY = 86_400.0
ADMIN_KEY = "irca_test_" + "k" * 40
MAC_ARM = Target("macos", "aarch64")
MAC_INTEL = Target("macos", "x86_64")
WINDOWS = Target("windows", "x86_64")
LINUX = Target("linux", "x86_64", "glibc", "2.17")
KEY = signing.SigningKey.generate()
_TAGS = {MAC_ARM: "macosx_11_0_arm64", MAC_INTEL: "macosx_11_0_x86_64", WINDOWS: "win_amd64", LINUX: "manylinux2014_x86_64"}


@dataclass(frozen=True)
class Served:
    """Where the platform is, and where it keeps its data."""

    url: str
    data_dir: Path


@contextlib.contextmanager
def serve(data_dir: Path) -> Iterator[Served]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        app = create_app(Settings(data_dir=data_dir, public_url=url, admin_api_key=ADMIN_KEY))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="served-platform")
        thread.start()
        try:
            deadline = time.monotonic() + 30
            while not server.started:
                assert thread.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield Served(url, data_dir)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def provision(served: Served, system: str) -> str:
    """The enrolment token of a new server agent for that system."""
    request = urllib.request.Request(
        f"{served.url}/api/v1/agent/provision",
        json.dumps({"agent_type": "server", "environment_name": "desks", "config": {"os": system}}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {ADMIN_KEY}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())["agent_token"]


def served_script(served: Served, name: str) -> str:
    """The install script of that name as the platform fills it in."""
    with urllib.request.urlopen(f"{served.url}/install/{name}", timeout=10) as answer:
        return answer.read().decode()


def publish(data_dir: Path, version: str = __version__, *targets: Target, life: float = 30 * DAY, now: float | None = None) -> Manifest:
    """Publish a release with a bundle for each of the targets; the compiled dependency in it is a stand-in that runs nowhere."""
    moment = time.time() if now is None else now
    made = data_dir.parent / f"made-{time.monotonic_ns()}"
    made.mkdir()
    files = []
    for target in targets:
        file, content = _bundle(version, target)
        (made / file.name).write_bytes(content)
        files.append(file)
    (made / MANIFEST_FILE).write_bytes(encode(Manifest(version, 0.0, 0.0, build.UNSIGNED, tuple(files))))
    release.sign(made, KEY, now=moment, life=life)
    repository = PackageRepository(data_dir, clock=lambda: moment)
    signing.trust(repository.trusted_directory, KEY.public)
    return repository.publish(made, allow_downgrade=True)


@functools.cache
def _bundle(version: str, target: Target) -> tuple[PackageFile, bytes]:
    dependencies = dict([wheels.installed_wheel("annotated-types")])
    return build.bundle(version, target, {**dependencies, f"psutil-7.2.2-cp36-abi3-{_TAGS[target]}.whl": _stand_in()})


def _stand_in() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(zipfile.ZipInfo("psutil/__init__.py", (1980, 1, 1, 0, 0, 0)), "raise ImportError('a stand-in')\n")
    return packed.getvalue()
