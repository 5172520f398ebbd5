"""The server agent's resident memory and CPU a minute, with TLS and spool at a 10 s interval, beside others of its kind in one window.

The agent runs as a host has it: from the platform's bundle, with all default collectors and change watchers. Beside it run, where they are
installed: node_exporter and glances, asked every 10 s, and netdata, collecting every 10 s. None of them pushes, spools or encrypts.
"""

from __future__ import annotations

import contextlib
import io
import re
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trustme
from ingest import KEY, platform, provision
from processes import Measured, answers, free_port, peer, running, wait_for

from app.releases.build import own_bundle


@dataclass
class Footprint:
    """Resident memory in MB, CPU seconds a minute, seconds from start to first data on the platform."""

    rss_mb: float
    cpu_s_per_min: float
    first_data_s: float = 0.0


def measure(window: float = 60.0) -> tuple[Footprint, dict[str, Footprint]]:
    """Our agent, and the others by name, side by side in one window."""
    folder, port = Path(tempfile.mkdtemp(prefix="irca-bench-")), free_port()
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    (folder / "chain.pem").write_bytes(b"".join(p.bytes() for p in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    argv, env = platform(port, folder, IRCA_TLS_CERTIFICATE=str(folder / "chain.pem"), IRCA_TLS_KEY=str(folder / "key.pem"))
    with running(argv, env, folder):
        wait_for(lambda: answers(f"https://localhost:{port}/readyz", context), "start of the platform")
        token = provision(port, "bench", "https", context)
        agent_env = {
            "PLATFORM_API_URL": f"https://localhost:{port}",
            "AGENT_TOKEN": token,
            "CA_FILE": str(folder / "ca.pem"),
            "STATE_DIR": str(folder / "agent"),
            "MALLOC_ARENA_MAX": "1",  # as the unit has it
            "MALLOC_TRIM_THRESHOLD_": "65536",
        }
        agent_command = installed(folder / "installed")
        with running([*agent_command, "check", "--type", "server"], {**agent_env, "STATE_DIR": str(folder / "warm")}, folder) as warm:
            warm.popen.wait(60)  # files in the page cache, as on a machine where it was installed
        started = time.monotonic()
        with running([*agent_command, "run", "--type", "server"], agent_env, folder) as agent:
            wait_for(lambda: _has_data(port, context), "arrival of first data")
            first = time.monotonic() - started
            with contextlib.ExitStack() as stack:
                others = dict(_others(stack, folder))
                window_of = _window([agent, *(other for other, _ in others.values())], window, [url for _, url in others.values() if url])
            mine, *theirs = window_of
            return Footprint(*mine, first), {name: Footprint(*figures) for name, figures in zip(others, theirs, strict=True)}


def installed(directory: Path) -> list[str]:
    """The command of an agent installed as the install script does it: the bundle's wheels, unpacked and compiled, and nothing else."""
    subprocess.run([sys._base_executable, "-m", "venv", "--without-pip", str(directory)], check=True, timeout=120)  # noqa: SLF001 - the interpreter behind this environment's
    packages = next(directory.glob("lib/python3*/site-packages"))
    with tarfile.open(fileobj=io.BytesIO(own_bundle()[1])) as bundle:
        for member in bundle.getmembers():
            if content := bundle.extractfile(member):
                zipfile.ZipFile(io.BytesIO(content.read())).extractall(packages)
    python = str(directory / "bin" / "python")
    subprocess.run([python, "-I", "-m", "compileall", "-q", str(packages)], check=True, timeout=120)
    launcher = directory / "bin" / "incident-rca-agent"
    launcher.write_text(
        f"import sys\n\nsys.path.insert(0, {str(packages)!r})\nfrom connectors.cli import main\n\nsys.exit(main())\n", encoding="utf-8"
    )
    return [python, "-I", str(launcher)]


def _others(stack: contextlib.ExitStack, folder: Path) -> Iterator[tuple[str, tuple[Measured, str]]]:
    """Each peer that is installed, running, with the address that is to be asked every 10 s (empty: it collects by itself)."""
    if exporter := peer("prometheus-node-exporter", "node_exporter"):
        port = free_port()
        process = stack.enter_context(running([exporter, f"--web.listen-address=127.0.0.1:{port}"], folder=folder))
        url = f"http://127.0.0.1:{port}/metrics"
        wait_for(lambda: answers(url), "start of node_exporter")
        yield "node_exporter", (process, url)
    if glances := peer("glances"):
        port = free_port()
        argv = [glances, "-w", "--disable-webui", "-B", "127.0.0.1", "-p", str(port), "-t", "10", "--disable-check-update"]
        process = stack.enter_context(running(argv, folder=folder))
        url = f"http://127.0.0.1:{port}/api/4/all"
        wait_for(lambda: answers(url), "start of glances")
        yield "glances", (process, url)
    if netdata := peer("netdata"):
        home, port = folder / "netdata", free_port()
        for name in ("cache", "lib", "log", "run"):
            (home / name).mkdir(parents=True)
        configuration = home / "netdata.conf"
        directories = "\n".join(f"    {name} = {home / part}" for name, part in (("cache", "cache"), ("lib", "lib"), ("log", "log")))
        configuration.write_text(
            f"[global]\n    run as user = root\n[db]\n    mode = ram\n    update every = 10\n[directories]\n{directories}\n"
            f"[web]\n    bind to = 127.0.0.1:{port}\n[ml]\n    enabled = no\n"
        )
        environment = {"NETDATA_LISTENER_PORT": str(port), "NETDATA_PIPENAME": str(home / "run" / "pipe")}
        process = stack.enter_context(
            running([netdata, "-D", "-c", str(configuration), "-P", str(home / "run" / "pid")], environment, folder)
        )
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/api/v1/info"), "start of netdata")
        yield "netdata", (process, "")


def _window(measured: list[Measured], seconds: float, asked: list[str]) -> list[tuple[float, float]]:
    time.sleep(10)  # warm
    before = [m.cpu_seconds() for m in measured]
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        for url in asked:
            answers(url)
        time.sleep(10)
    spent = time.monotonic() - begun
    return [(m.rss_mb(), (m.cpu_seconds() - b) / spent * 60) for m, b in zip(measured, before, strict=True)]


def _has_data(port: int, context: ssl.SSLContext) -> bool:
    """Whether the platform has taken in a first point, by its own count: queries remember for a second that a name is unknown."""
    request = urllib.request.Request(f"https://localhost:{port}/metrics", headers={"authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=5, context=context) as response:
        counted = re.search(rb'irca_otlp_items_accepted_total\{signal="metrics"\} (\S+)', response.read())
    return counted is not None and float(counted[1]) > 0


if __name__ == "__main__":
    mine, others = measure()
    print(f"server agent: {mine.rss_mb:.1f} MB, {mine.cpu_s_per_min:.3f} CPU s/min, first data after {mine.first_data_s:.2f} s")
    for name, figures in others.items():
        print(f"{name}: {figures.rss_mb:.1f} MB, {figures.cpu_s_per_min:.3f} CPU s/min")
