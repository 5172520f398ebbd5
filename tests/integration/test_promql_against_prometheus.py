"""The same samples and the same queries to a real Prometheus and to ours: label sets must be equal, numbers to 1e-9."""

from __future__ import annotations

import itertools
import json
import logging
import math
import random
import struct
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from types import SimpleNamespace

import cramjam
import httpx2
import numpy as np
import pytest
from fastapi import FastAPI
from listed_store import ListedStore, series
from promql_queries import HAND_PICKED, INSTANT_ONLY, generated

from app.api.prometheus_routes import router
from app.settings import Settings
from app.telemetry.promql.names import prometheus_label, prometheus_name
from app.telemetry.store import NAME

pytestmark = pytest.mark.requires("prometheus")

START = 1_790_000_040  # a multiple of a minute, so that steps, windows and samples meet at their edges
MINUTES = 100
STALE = struct.unpack("<d", (0x7FF0000000000002).to_bytes(8, "little"))[0]


END = START + MINUTES * 60


def data_set():
    """Counters with resets, late beginnings and gaps; gauges with NaN, infinities, stale markers and uneven times; a histogram."""
    rng = random.Random(2024)
    return [*_counters(rng), *_gauges(rng), *_histograms(rng)]


def _counters(rng):
    def counter(labels, *, first, step, reset=0.0, begin=START, jitter=0.0, scale=20, gap=0.0):
        value, samples = first, []
        for t in range(begin, END + 1, step):
            if rng.random() >= gap:
                samples.append((round(t + rng.uniform(0, jitter), 3), value))
            value = 0.0 if rng.random() < reset else value + rng.choice((0.0, rng.random() * scale, float(rng.randrange(scale + 1))))
        return series("http.requests", labels, samples, unit="{request}", kind="counter")

    for number, (instance, method) in enumerate(itertools.product(("a:1", "b:1", "c:2"), ("GET", "POST"))):
        labels = {"job": "api" if instance != "c:2" else "web", "instance": instance, "http.method": method, "code": "200"}
        yield counter(labels, first=rng.choice((0.0, 1e6)), step=15, reset=0.02 if number % 2 else 0.0)
        if method == "GET":
            yield counter({**labels, "code": "500"}, first=3.0, step=15, jitter=6.0, begin=START + 600 * number, scale=4, gap=0.1)
    yield counter({"job": "web", "instance": "d:1", "http.method": "GET", "code": "200"}, first=2.5, step=30, begin=START + 1800, scale=3)


def _gauges(rng):
    strange = {40: math.nan, 41: math.inf, 60: STALE, 61: STALE, 90: -math.inf, 120: STALE}
    for number, instance in enumerate(("a:1", "b:1", "c:2", "d:1")):
        base, zone = 1e9 * (number + 1), "xy"[number % 2]
        memory = [(t, base + rng.gauss(0, 1e7)) for t in range(START, END, 15)]
        yield series("node.memory.usage", {"instance": instance}, memory, unit="By")
        walk = [(t, rng.gauss(20 + number, 5)) for t in range(START + number, END, 30) if not 2400 < t - START < 3000 + 120 * number]
        if number in (1, 2):
            walk = [(t, strange.get(i, v)) for i, (t, v) in enumerate(walk)]
        yield series("node.temperature", {"instance": instance, "zone": zone}, walk, unit="Cel")
        info = {"instance": instance, "version": f"1.{number // 2}", "zone": zone}
        yield series("node.info", info, [(t, 1.0) for t in range(START, END, 60)])
        depth = [(t + rng.uniform(0, 7), float(rng.randrange(6))) for t in range(START, END, 15) if rng.random() > 0.2]
        yield series("queue.depth", {"instance": instance, "queue": "q1"}, depth)


def _histograms(rng):
    bounds = ("0.1", "0.5", "1", "+Inf")
    for instance in ("a:1", "b:1"):
        growth = np.cumsum([[rng.randrange(5) for _ in bounds] for _ in range(START, END, 15)], axis=1)
        for bound, counts in zip(bounds, np.cumsum(growth, axis=0).T.tolist(), strict=True):
            samples = zip(range(START, END, 15), counts, strict=True)
            yield series("http.latency_bucket", {"instance": instance, "le": bound}, samples, unit="s", kind="histogram")


def _varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number, payload):
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def write_request(part):
    """A remote-write request (prometheus.WriteRequest) of (labels, times, values)."""
    message = b""
    for labels, times, values in part:
        body = b"".join(_field(1, _field(1, k.encode()) + _field(2, v.encode())) for k, v in sorted(labels.items()))
        for t, v in zip(times.tolist(), values, strict=True):
            body += _field(2, b"\x09" + np.float64(v).tobytes() + b"\x10" + _varint(t))
        message += _field(1, body)
    return bytes(cramjam.snappy.compress_raw(message))


def _call(url, data=None, headers=()):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, dict(headers)), timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.fixture(scope="module")
def held():
    return data_set()


@pytest.fixture(scope="module")
def prometheus(held, tmp_path_factory):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory = tmp_path_factory.mktemp("prometheus")
    (directory / "prometheus.yml").write_text("global: {}\n")
    command = ["prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data", "--log.level=warn"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--web.enable-remote-write-receiver", "--storage.tsdb.retention.time=20y"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                if _call(f"{url}/-/ready")[0] == 200:
                    break
            except OSError:
                pass
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.1)
        headers = {"Content-Encoding": "snappy", "Content-Type": "application/x-protobuf", "X-Prometheus-Remote-Write-Version": "0.1.0"}
        for begin in range(START * 1000, (START + MINUTES * 60 + 60) * 1000, 600_000):
            part = []
            for one in held:
                inside = (one.times >= begin) & (one.times < begin + 600_000)
                if inside.any():
                    labels = {prometheus_label(k): v for k, v in one.labels.items() if k != NAME}
                    labels[NAME] = prometheus_name(one.labels[NAME], one.unit, one.kind)
                    part.append((labels, one.times[inside], one.values[inside]))
            if part:
                status, answer = _call(f"{url}/api/v1/write", write_request(part), headers)
                assert status in (200, 204), answer
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _comparable(data):
    """Numbers by label set and time."""
    if data["resultType"] in ("scalar", "string"):
        return {(): {data["result"][0]: data["result"][1]}}
    return {tuple(sorted(one["metric"].items())): dict(one["values"] if "values" in one else [one["value"]]) for one in data["result"]}


def _same_number(ours, theirs):
    if ours == theirs:
        return True
    try:
        a, b = float(ours), float(theirs)
    except ValueError:
        return False
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


def _difference(ours, theirs):
    """The first difference between two answers; empty when they agree."""
    if ours["status"] != theirs["status"]:
        return f"ours {ours['status']} ({ours.get('error')}), theirs {theirs['status']} ({theirs.get('error')})"
    if ours["status"] == "error":
        return "" if ours["errorType"] == theirs["errorType"] else f"ours {ours['errorType']}, theirs {theirs['errorType']}"
    if ours["data"]["resultType"] != theirs["data"]["resultType"]:
        return f"ours {ours['data']['resultType']}, theirs {theirs['data']['resultType']}"
    mine, other = _comparable(ours["data"]), _comparable(theirs["data"])
    if mine.keys() != other.keys():
        return f"only ours {sorted(mine.keys() - other.keys())[:2]}, only theirs {sorted(other.keys() - mine.keys())[:2]}"
    for labels, samples in other.items():
        if mine[labels].keys() != samples.keys():
            return f"times of {labels}: {sorted(mine[labels].keys() ^ samples.keys())[:4]}"
        for moment, number in samples.items():
            if not _same_number(mine[labels][moment], number):
                return f"{labels} at {moment}: ours {mine[labels][moment]}, theirs {number}"
    return ""


async def test_answers_are_those_of_prometheus_on_the_same_samples(prometheus, held):
    app = FastAPI()
    app.include_router(router)
    app.state.platform = SimpleNamespace(metrics=ListedStore(held), settings=Settings())
    queries = [line for line in HAND_PICKED.strip().splitlines() if line] + generated(150)
    requests = []
    for query in queries:
        requests += [("query", {"query": query, "time": moment}) for moment in (START + 3000, START + 4207.3)]
        requests.append(("query_range", {"query": query, "start": START - 120, "end": START + 6300, "step": 60}))
        requests.append(("query_range", {"query": query, "start": START + 1003.7, "end": START + 2500, "step": "37s"}))
    requests += [("query", {"query": query, "time": moment}) for query in INSTANT_ONLY for moment in (START + 3000, START + 2222.2)]
    differences, failures, samples = [], 0, 0
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://ours") as client:
        for path, parameters in requests:
            answer = await client.post(f"/prometheus/api/v1/{path}", data={k: str(v) for k, v in parameters.items()})
            ours = answer.json()
            status, body = _call(f"{prometheus}/api/v1/{path}", urllib.parse.urlencode(parameters).encode())
            theirs = json.loads(body)
            difference = _difference(ours, theirs) or ("" if status == answer.status_code else f"{answer.status_code} for {status}")
            failures += theirs["status"] == "error"
            samples += sum(map(len, _comparable(theirs["data"]).values())) if theirs["status"] == "success" else 0
            if difference:
                differences.append(f"{path} {parameters}: {difference}")
    logging.getLogger(__name__).info("compared %d answers with %d samples; %d were refusals", len(requests), samples, failures)
    assert not differences, f"{len(differences)} of {len(requests)} differ:\n" + "\n".join(differences[:40])
    assert len(requests) > 1000
    assert samples > 100_000
    assert failures < len(requests) / 4


async def test_sorted_answers_come_in_the_order_of_prometheus(prometheus, held):
    app = FastAPI()
    app.include_router(router)
    app.state.platform = SimpleNamespace(metrics=ListedStore(held), settings=Settings())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://ours") as client:
        for query in ("sort(node_memory_usage_bytes)", "sort_desc(node_memory_usage_bytes)", "topk(3, node_memory_usage_bytes)"):
            parameters = {"query": query, "time": str(START + 3000)}
            ours = (await client.get("/prometheus/api/v1/query", params=parameters)).json()
            theirs = json.loads(_call(f"{prometheus}/api/v1/query?{urllib.parse.urlencode(parameters)}")[1])
            assert [one["metric"] for one in ours["data"]["result"]] == [one["metric"] for one in theirs["data"]["result"]]
