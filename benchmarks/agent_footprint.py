"""The server agent's resident memory and CPU a minute, with TLS and spool at a 10 s interval, beside node_exporter scraped as often."""

from __future__ import annotations

import re
import ssl
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import trustme
from ingest import KEY, platform, provision
from processes import PYTHON, Measured, answers, free_port, peer, running, wait_for


@dataclass
class Footprint:
    """Resident memory in MB, CPU seconds a minute, seconds from start to first data on the platform."""

    rss_mb: float
    cpu_s_per_min: float
    first_data_s: float = 0.0


def measure(window: float = 60.0) -> tuple[Footprint, Footprint | None]:
    """Our agent and node_exporter (None where it is not installed), side by side in one window."""
    folder, port = Path(tempfile.mkdtemp(prefix="irca-bench-")), free_port()
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    (folder / "chain.pem").write_bytes(b"".join(p.bytes() for p in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    argv, env = platform(port, folder, IRCA_TLS_CERTIFICATE=str(folder / "chain.pem"), IRCA_TLS_KEY=str(folder / "key.pem"))
    exporter = peer("prometheus-node-exporter", "node_exporter")
    exporter_port = free_port()
    with running(argv, env, folder):
        wait_for(lambda: answers(f"https://localhost:{port}/readyz", context), "start of the platform")
        token = provision(port, "bench", "https", context)
        agent_env = {
            "PLATFORM_API_URL": f"https://localhost:{port}",
            "AGENT_TOKEN": token,
            "CA_FILE": str(folder / "ca.pem"),
            "STATE_DIR": str(folder / "agent"),
            "PYTHONPATH": env["PYTHONPATH"],
        }
        with running(
            [PYTHON, "-m", "connectors.cli", "check", "--type", "server"], {**agent_env, "STATE_DIR": str(folder / "warm")}, folder
        ) as warm:
            warm.popen.wait(60)  # files in the page cache and bytecode, as on a machine where it was installed
        started = time.monotonic()
        with running([PYTHON, "-m", "connectors.cli", "run", "--type", "server"], agent_env, folder / "") as agent:
            wait_for(lambda: _has_data(port, context), "arrival of first data")
            first = time.monotonic() - started
            if exporter is None:
                return Footprint(*_window([agent], window, None)[0], first), None
            with running([exporter, f"--web.listen-address=127.0.0.1:{exporter_port}"], folder=folder) as rival:
                wait_for(lambda: answers(f"http://127.0.0.1:{exporter_port}/metrics"), "start of node_exporter")
                mine, theirs = _window([agent, rival], window, f"http://127.0.0.1:{exporter_port}/metrics")
                return Footprint(*mine, first), Footprint(*theirs)


def _window(measured: list[Measured], seconds: float, scrape: str | None) -> list[tuple[float, float]]:
    time.sleep(10)  # warm
    before = [m.cpu_seconds() for m in measured]
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        if scrape:
            answers(scrape)
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
    mine, theirs = measure()
    print(f"server agent: {mine.rss_mb:.1f} MB, {mine.cpu_s_per_min:.3f} CPU s/min, first data after {mine.first_data_s:.2f} s")
    if theirs:
        print(f"node_exporter: {theirs.rss_mb:.1f} MB, {theirs.cpu_s_per_min:.3f} CPU s/min")
