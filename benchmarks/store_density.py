"""The embedded metric store alone: bytes a sample, CPU-seconds per million samples, milliseconds for 24 hours of one series.

Data set A in the manner of performance.md 2d, scaled: agents x 100 series at 10 s (30 % percentages to 0.1, 20 % bytes, 30 % counters,
10 % constants, 10 % loads to 0.01). Every figure is this process's own CPU time; the rows to compare with are in performance.md.

    python -m benchmarks.store_density [--agents 4] [--hours 24] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from app.telemetry.embedded import EmbeddedMetricStore
from app.telemetry.store import Matcher, Row, Schema, SeriesKey

STEP_MS = 10_000
HOUR_MS = 3_600_000
BASE_MS = 1_789_948_800_000
SERIES = 100


def columns(rng: np.random.Generator, samples: int, size: int = SERIES) -> np.ndarray:
    values = np.empty((samples, size))
    for column in range(size):
        share = column / size
        if share < 0.3:
            noise = rng.normal(0, 2, samples)
            for index in range(1, samples):
                noise[index] += 0.9 * noise[index - 1]
            values[:, column] = np.clip(np.round(40 + noise, 1), 0, 100)
        elif share < 0.5:
            values[:, column] = np.round(8e9 + np.cumsum(rng.normal(0, 2**20, samples))) // 4096 * 4096
        elif share < 0.8:
            values[:, column] = np.cumsum(rng.poisson(1000 if column % 2 else 50, samples))
        elif share < 0.9:
            values[:, column] = column * 1000
        else:
            values[:, column] = np.round(np.abs(1 + np.cumsum(rng.normal(0, 0.05, samples))), 2)
    return values


def make(directory: Path) -> EmbeddedMetricStore:
    return EmbeddedMetricStore(directory, retention=30 * 86_400, rollup_retention=400 * 86_400, disk_budget=2**40)


def labels(agent: int, metric: int) -> SeriesKey:
    pairs = (("__name__", f"bench.metric.{metric}"), ("host.name", f"host-{agent}"), ("host.id", f"{agent:032x}"), ("os.type", "linux"))
    return SeriesKey(pairs, "1", "gauge")


async def ingest(store: EmbeddedMetricStore, schemas: list[Schema], data: list[np.ndarray], per_agent: int) -> float:
    """CPU-seconds per million samples; every agent waits for the durable answer before it sends again."""

    async def agent(number: int) -> None:
        values, schema = data[number % len(data)], schemas[number].id
        for index in range(per_agent):
            await store.append([Row(schema, BASE_MS + index * STEP_MS, values[index % len(values)])])

    before = time.process_time()
    await asyncio.gather(*(agent(number) for number in range(len(schemas))))
    return (time.process_time() - before) / (len(schemas) * per_agent * schemas[0].size) * 1e6


async def ingest_row(size: int, agents: int, rows: int) -> tuple[float, float]:
    """CPU-seconds per million samples with rows of ``size`` from ``agents`` at once, and rows per commit."""
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as directory:
        store = make(Path(directory))
        await store.open()
        schemas = [await store.register([labels(a, m) for m in range(size)]) for a in range(agents)]
        cpu = await ingest(store, schemas, [rng.normal(size=(8, size))], rows)
        commits = store.health().commits
        await store.close()
    return cpu, agents * rows / commits


async def density(agents: int, hours: int) -> dict[str, float]:
    rng = np.random.default_rng(42)
    data = [columns(rng, hours * 360) for _ in range(agents)]
    samples = agents * hours * 360 * SERIES
    now = BASE_MS + hours * HOUR_MS + 2 * HOUR_MS
    with tempfile.TemporaryDirectory() as directory:
        store = make(Path(directory))
        await store.open()
        schemas = [await store.register([labels(a, m) for m in range(SERIES)]) for a in range(agents)]
        await ingest(store, schemas, data, hours * 360)
        pauses: list[float] = []
        stop = threading.Event()

        async def probe() -> None:
            index = 0
            while not stop.is_set():
                start = time.perf_counter()
                await store.append([Row(schemas[0].id, now - HOUR_MS + index, data[0][0])])
                pauses.append((time.perf_counter() - start) * 1e3)
                index += 1
                await asyncio.sleep(0.01)

        probing = asyncio.create_task(probe())
        before = time.process_time()
        await store.maintain(now)
        sealing = (time.process_time() - before) / samples * 1e6
        stop.set()
        await probing
        times: list[float] = []
        for metric in range(0, SERIES, 3):
            for agent in range(min(agents, 3)):
                matchers = [Matcher("__name__", "=", f"bench.metric.{metric}"), Matcher("host.name", "=", f"host-{agent}")]
                start = time.perf_counter()
                (found,) = await store.select(matchers, BASE_MS, BASE_MS + hours * HOUR_MS - 1)
                times.append((time.perf_counter() - start) * 1e3)
                assert found.values.tobytes() == np.ascontiguousarray(data[agent][:, metric]).tobytes()
        await store.close()
        sizes = file_sizes(Path(directory))
    return {
        "chunk bytes a sample": sum(v for k, v in sizes.items() if k.startswith("day-")) / samples,
        "rollup bytes a sample": sum(v for k, v in sizes.items() if k.startswith("rollup-")) / samples,
        "index bytes a sample": sizes["index.db"] / samples,
        "head file, reused, MB": sizes["head.db"] / 1e6,
        "sealing and rollups, CPU-s per M samples": sealing,
        "append while sealing, median ms": statistics.median(pauses),
        "append while sealing, longest ms": max(pauses),
        "24 h of one series, median ms": statistics.median(times),
        "24 h of one series, longest ms": max(times),
    }


def file_sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.iterdir()}


async def index_memory(agents: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        store = make(Path(directory))
        await store.open()
        before = resident()
        start = time.process_time()
        for agent in range(agents):
            await store.register([labels(agent, metric) for metric in range(SERIES)])
        registering = (time.process_time() - start) / (agents * SERIES) * 1e6
        grown = resident() - before
        await store.close()
    return {"index memory, MB for 100,000 series": grown / (agents * SERIES) * 1e5, "registering, CPU-us a series": registering}


def resident() -> float:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


async def measure(agents: int, hours: int) -> dict[str, float]:
    figures = await index_memory(200)
    for size, count, rows in ((100, 200, 60), (100, 50, 120), (1000, 50, 30)):
        cpu, group = await ingest_row(size, count, rows)
        figures[f"append, {size} a row, {count} agents at once: CPU-s per M samples"] = cpu
        figures[f"append, {size} a row, {count} agents at once: rows a commit"] = group
    figures |= await density(agents, hours)
    figures["bytes a sample, all but the head"] = sum(figures[f"{part} bytes a sample"] for part in ("chunk", "rollup", "index"))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.agents, options.hours))
    if options.json:
        json.dump(figures, sys.stdout, indent=2)
        return
    for name, value in figures.items():
        print(f"{value:12.3f}  {name}")


if __name__ == "__main__":
    main()
