"""`make bench`: the first rows of the budgets, from one run, ours beside the rivals that are installed.

Rivals are found on the path: Debian's ``prometheus-node-exporter``, ``netdata`` and ``victoria-metrics``, PyPI's ``glances[web]``; a
column without its rival says so. Compare
ratios, not absolute figures: machines differ, and neighbours make noise.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import agent_footprint  # noqa: E402 - the path above comes first
import console  # noqa: E402
import docker_collect  # noqa: E402
import heartbeats  # noqa: E402
import ingest  # noqa: E402
import kubernetes  # noqa: E402
import store_density  # noqa: E402
from agent_footprint import Footprint  # noqa: E402


@dataclass
class Line:
    """One row: what was measured, ours, the bound it is held to, and the rival's figure of the same run."""

    what: str
    ours: float
    bound: float
    at_most: bool = True
    rival: str = ""

    def text(self) -> str:
        """The row as printed; a missed bound says so."""
        kept = self.ours <= self.bound if self.at_most else self.ours >= self.bound
        sign = "<=" if self.at_most else ">="
        return f"{self.what:<58} {self.ours:>10.3f}  {sign} {self.bound:<9.2f} {'kept' if kept else 'NOT YET':<8} {self.rival}"


def rivals(others: Mapping[str, Footprint], figure: Callable[[Footprint], float], ours: float) -> str:
    """Every other's figure and our ratio to it."""
    found = [rival(name, figure(other), ours) for name, other in others.items()]
    missing = [name for name in ("node_exporter", "glances", "netdata") if name not in others]
    return "; ".join([*found, *(f"{name} is not installed" for name in missing)])


def rival(name: str, figure: float | None, ours: float) -> str:
    """The rival's figure and our ratio to it."""
    return f"{name} {figure:.3f}, ratio {ours / figure:.2f}" if figure else f"{name} is not installed"


def main() -> None:
    """Measure and print; the exit code does not judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter windows: for trying the benchmarks out, not for figures to quote")
    quick = parser.parse_args().quick
    lines: list[Line] = []

    def add(line: Line) -> None:
        lines.append(line)
        print(line.text(), flush=True)

    print(f"{'what':<58} {'ours':>10}  {'required':<12} {'':<8} beside it in this run")
    mine, others = agent_footprint.measure(20 if quick else 60)
    add(
        Line(
            "server agent, TLS and spool, 10 s: resident MB",
            mine.rss_mb,
            30,
            rival=rivals(others, lambda o: o.rss_mb, mine.rss_mb),
        )
    )
    add(
        Line(
            "  its CPU seconds a minute",
            mine.cpu_s_per_min,
            0.10,
            rival=rivals(others, lambda o: o.cpu_s_per_min, mine.cpu_s_per_min),
        )
    )
    add(Line("  seconds from start to first data on the platform", mine.first_data_s, 1.0))
    rounds = 10 if quick else 40
    for agents, batch in ((24, 1000), (64, 100)):
        ours = ingest.ours(agents, batch, rounds)
        victoria = ingest.victoria_metrics(agents, batch, rounds)
        bound = 4.0 if batch == 100 else victoria or 2.54
        add(Line(f"ingest, {batch} a batch: CPU-s per million samples", ours, bound, rival=rival("VictoriaMetrics", victoria, ours)))
    add(Line("heartbeats a second and core", heartbeats.measure(beats=100 if quick else 400), 5000, at_most=False))
    density = asyncio.run(store_density.density(*((2, 6) if quick else (4, 24))))
    stored = sum(density[f"{part} bytes a sample"] for part in ("chunk", "rollup", "index"))
    add(Line("bytes a sample once sealed, rollups and index included", stored, 2.0))
    add(Line("a series over 24 h from the store, without HTTP: median ms", density["24 h of one series, median ms"], 10.0))
    console_rows(add, quick)
    docker_rows(add)
    kubernetes_rows(add, quick)


def console_rows(add: Callable[[Line], None], quick: bool) -> None:
    """The console's rows; `benchmarks/console.py` prints one for each page."""
    page, answer, stall = console.worst(console.SMALL if quick else console.FULL, 5 if quick else console.ROUNDS)
    add(Line("slowest page with 10,000 instances: median ms", page.median_ms, console.REQUIRED_MS, rival=page.ask))
    add(Line("  slowest list of the API", answer.median_ms, console.REQUIRED_MS, rival=answer.ask))
    add(Line("  longest stall when a group is configured: ms", stall.median_ms, console.STALL_MS))


def docker_rows(add: Callable[[Line], None]) -> None:
    """The docker agent's rows, or why there are none."""
    if not (os.environ.get("IRCA_BENCH_IMAGE") or os.environ.get("IRCA_TEST_BASE_IMAGE")):
        print("docker agent at 50 containers: not measured; needs an engine and IRCA_BENCH_IMAGE or IRCA_TEST_BASE_IMAGE")
        return
    (docker,) = docker_collect.measure([50])
    add(Line("docker agent at 50 containers: resident MB", docker.rss_mb, 60))
    add(
        Line(
            "  seconds of a round",
            docker.round_s,
            10,
            rival=f"its CPU {docker.agent_cpu_ms:.0f} ms, the engine's {docker.engine_cpu_ms or 0:.0f} ms",
        )
    )


def kubernetes_rows(add: Callable[[Line], None], quick: bool) -> None:
    """The kubernetes agent's rows, or why there are none."""
    if why := kubernetes.missing():
        print(f"kubernetes agent at 1,000 pods: not measured; {why}")
        return
    found = kubernetes.measure(1000, 30 if quick else 300)
    add(Line("kubernetes agent at 1,000 pods: resident MB", found.rss_mb, 100, rival=f"{found.points} points a round"))
    add(Line("  its CPU seconds a minute", found.cpu_s_per_min, 4))
    add(
        Line(
            "  requests to the API server a minute",
            found.requests_per_min,
            10,
            rival=f"beside {found.lease_per_min:.0f} that keep its Lease, with 1 replica",
        )
    )


if __name__ == "__main__":
    main()
