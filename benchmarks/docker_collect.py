"""The docker agent with 50 and 200 containers: its resident memory, and time and CPU of one round, its own and the engine's.

Needs a Docker engine and an image that runs without arguments for long (``IRCA_BENCH_IMAGE``), or one with ``sleep``
(``IRCA_TEST_BASE_IMAGE``). What it starts it removes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

PREFIX = "irca-bench-docker"


@dataclass
class Figures:
    """Of one round, medians: seconds of wall time, CPU milliseconds of the agent and of the engine; resident megabytes of the agent."""

    containers: int
    measured: int
    round_s: float
    agent_cpu_ms: float
    engine_cpu_ms: float | None
    rss_mb: float
    points: int
    degraded: str


def main() -> None:
    """Measure and print; the exit code does not judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--containers", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside:
        print(json.dumps(asdict(_rounds(chosen.rounds))))
        return
    for figures in measure(chosen.containers, chosen.rounds):
        engine = "unknown" if figures.engine_cpu_ms is None else f"{figures.engine_cpu_ms:.0f} ms"
        print(
            f"{figures.measured}/{figures.containers} containers: round {figures.round_s:.2f} s, CPU {figures.agent_cpu_ms:.0f} ms, "
            f"engine's CPU {engine}, resident {figures.rss_mb:.1f} MB, {figures.points} points {figures.degraded}",
            flush=True,
        )


def measure(sizes: list[int], rounds: int = 6) -> list[Figures]:
    """Figures for each number of containers, in a process of its own each: an agent's as it would be after a few rounds."""
    found = []
    try:
        running = 0
        for size in sorted(sizes):
            _start(range(running, size))
            running = size
            time.sleep(3)
            with tempfile.TemporaryDirectory(prefix="irca-bench-") as folder:
                command, environment = (
                    [sys.executable, __file__, "--inside", "--rounds", str(rounds)],
                    {**os.environ, "PYTHONPATH": str(ROOT)},
                )
                done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=600, check=False)
                assert done.returncode == 0, done.stderr.decode()
                found.append(Figures(**{**json.loads(done.stdout), "containers": size}))
    finally:
        _remove()
    return found


def _start(numbers: range) -> None:
    image = os.environ.get("IRCA_BENCH_IMAGE") or os.environ["IRCA_TEST_BASE_IMAGE"]
    command = [] if os.environ.get("IRCA_BENCH_IMAGE") else ["sleep", "3600"]

    def start(number: int) -> None:
        options = ["--detach", "--name", f"{PREFIX}-{number}", "--label", "com.docker.compose.project=bench"]
        subprocess.run(["docker", "run", *options, image, *command], check=True, capture_output=True, timeout=120)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(start, numbers))


def _remove() -> None:
    listed = subprocess.run(["docker", "ps", "-aq", "--filter", f"name=^{PREFIX}-"], check=True, capture_output=True, text=True, timeout=60)
    left = listed.stdout.split()
    for first in range(0, len(left), 20):
        subprocess.run(["docker", "rm", "--force", *left[first : first + 20]], check=True, capture_output=True, timeout=300)


def _rounds(rounds: int) -> Figures:
    from connectors.agent_factory import AgentFactory
    from connectors.core.telemetry import metric_payloads

    agent = AgentFactory.create_agent("docker", "http://localhost:8000", "token-123", {"state_dir": str(Path("state").resolve())})
    runtime = agent.runtime  # with spool, transport and all that an agent at work has loaded
    walls, own, engine = [], [], []
    for _ in range(rounds):
        begun, cpu, theirs = time.monotonic(), _cpu(), _engine_cpu()
        collection = agent.collect_metrics()
        walls.append(time.monotonic() - begun)
        runtime._append(collection)  # noqa: SLF001 - what the collect loop does
        own.append(_cpu() - cpu)
        after = _engine_cpu()
        engine.append(after - theirs if after is not None and theirs is not None else None)
        time.sleep(1)
    assert list(metric_payloads(collection, 900 * 1024))
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    measured = sum(any(m.name == "container.memory.usage" for m in r.metrics) for r in collection.resources)
    degraded = "; ".join(result.reason for result in collection.collectors if not result.ok)
    theirs = [spent for spent in engine[1:] if spent is not None]
    runtime.close()
    return Figures(
        0,
        measured,
        _median(walls[1:]),
        _median(own[1:]) * 1000,
        _median(theirs) * 1000 if theirs else None,
        resident,
        collection.point_count,
        degraded,
    )


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _engine_cpu() -> float | None:
    """CPU seconds of all processes named dockerd and containerd; None where they are not seen from here."""
    from connectors.docker.host import HostCollector, process_metrics

    processes = HostCollector(dict, "/proc")._engine_processes()  # noqa: SLF001 - the same processes as the collector's
    metrics = list(process_metrics(processes, os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")))
    return sum(point.value for point in metrics[0].points) if metrics else None


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
