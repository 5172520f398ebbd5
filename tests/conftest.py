"""Shared by every test: sockets are off unless asked for, the project's own environment variables are gone, and a missing real
component skips with its reason, or fails where ``IRCA_REQUIRE`` demands it (a comma-separated list of names, or ``all``)."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable

import pytest
import pytest_socket
from hypothesis import HealthCheck, settings

# The same examples at each run, however slow the machine is; `--hypothesis-profile=wide` looks for new ones.
settings.register_profile("steady", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("wide", max_examples=1000, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


def _docker() -> str:
    if not shutil.which("docker"):
        return "the docker command is not installed"
    done = subprocess.run(["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, timeout=30, check=False)
    return "" if done.returncode == 0 else "the Docker engine does not answer"


def _program(*names: str) -> Callable[[], str]:
    return lambda: "" if any(shutil.which(name) for name in names) else f"{names[0]} is not installed"


def _named(variable: str, what: str) -> Callable[[], str]:
    return lambda: "" if os.environ.get(variable) else f"{variable} names no {what}"


COMPONENTS: dict[str, Callable[[], str]] = {
    "docker": _docker,
    "base-image": _named("IRCA_TEST_BASE_IMAGE", "image with Python, a shell, cat and sleep"),
    "kubernetes": _named("KUBECONFIG", "cluster"),
    "kubectl": _program("kubectl"),
    "helm": _program("helm"),
    "postgresql": _named("IRCA_TEST_POSTGRESQL_URL", "database"),
    "prometheus": _program("prometheus"),
    "victoria-metrics": _program("victoria-metrics"),
    "chromium": _program("chromium", "chromium-browser", "google-chrome"),
    "systemd": _named("IRCA_TEST_SYSTEMD_HOST", "command that boots a host (up NAME, down NAME)"),
    "bullseye": _named("IRCA_TEST_BULLSEYE_IMAGE", "image of a bootable Debian 11"),
    "bullseye-executable": _named("IRCA_TEST_BULLSEYE_EXECUTABLE", "executable that was built on Debian 11"),
    "trixie": _named("IRCA_TEST_TRIXIE_IMAGE", "image of a bootable Debian 13"),
    "ruby": _program("ruby"),
}
_missing: dict[str, str] = {}


def missing(name: str) -> str:
    """Why the real component cannot be used here; empty when it can."""
    if name not in _missing:
        _missing[name] = COMPONENTS[name]()
    return _missing[name]


def pytest_configure(config: pytest.Config) -> None:
    with contextlib.suppress(ValueError):  # not the main thread
        # A shell that starts this in the background has it ignore SIGINT, and every process that a test starts would inherit that.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    kept = ("IRCA_TEST_", "IRCA_REQUIRE", "IRCA_SCREENSHOTS")
    for variable in [v for v in os.environ if v.startswith("IRCA_") and not v.startswith(kept)]:
        del os.environ[variable]
    for variable in ("PLATFORM_API_URL", "AGENT_TOKEN", "AGENT_TOKEN_FILE", "AGENT_CONFIG_FILE", "LOG_LEVEL", "LABELS"):
        os.environ.pop(variable, None)


_SLOWEST_FIRST = {"e2e": 0, "integration": 1}
"""Folders whose tests wait for real components: begun first, so that no worker is left with a long file at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what boots hosts as ``booted``: while one stands, the engine on a machine with cgroup v1 reads no container's statistics; put
    the slowest folders first; and try what fails against a real component once more: engines that many tests share have moods, and the
    summary names each such test with its first failure."""
    for item in items:
        components = {name for marker in item.iter_markers("requires") for name in marker.args}
        if "systemd" in components:
            item.add_marker("booted")
        if components:
            item.add_marker(pytest.mark.flaky(reruns=1))
    items.sort(key=lambda item: _SLOWEST_FIRST.get(item.path.parent.name, len(_SLOWEST_FIRST)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = os.environ.get("IRCA_REQUIRE", "").split(",")
    for marker in item.iter_markers("requires"):
        for name in marker.args:
            if why := missing(name):
                if "all" in required or name in required:
                    pytest.fail(f"{name} is required here, but {why}", pytrace=False)
                pytest.skip(why)
    if item.get_closest_marker("sockets") or item.get_closest_marker("requires"):
        pytest_socket.enable_socket()
        pytest_socket.socket_allow_hosts(["127.0.0.1", "::1", "localhost", "172.17.0.1"], allow_unix_socket=True)
    else:
        pytest_socket.disable_socket(allow_unix_socket=True)


@pytest.fixture
def free_port() -> int:
    """A port on loopback that nobody used a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


pytest_plugins = ["platform_fixtures", "package_fixtures"]
