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


HAND_PICKED = """
http_requests_total
http_requests_total{code="500"}
http_requests_total{code!="500",http_method=~"G.*"}
http_requests_total{code!~"5..",instance=~"a:1|b:1"}
{__name__=~"node_.*_bytes|queue_depth"}
{__name__!~"http.*",instance="a:1"}
http_requests_total{nothing="",job="api"}
http_requests_total{nothing="x"}
http_requests_total{nothing!="x",job="web"}
node_temperature_celsius
node_temperature_celsius offset 10m
node_temperature_celsius offset -5m
node_memory_usage_bytes @ 1790002000
node_memory_usage_bytes @ start()
node_memory_usage_bytes @ end() offset 90s
rate(http_requests_total[5m] @ 1790003000)
rate(http_requests_total[5m] offset 7m)
rate(http_requests_total[1m])
rate(http_requests_total[5m])
rate(http_requests_total[37s])
rate(http_requests_total[15s])
rate(http_requests_total[30m])
increase(http_requests_total[5m])
increase(http_requests_total[1h])
increase(http_requests_total[90s])
delta(node_memory_usage_bytes[10m])
delta(node_temperature_celsius[10m])
irate(http_requests_total[5m])
irate(http_requests_total[1m])
idelta(node_memory_usage_bytes[5m])
changes(queue_depth[10m])
changes(node_temperature_celsius[20m])
resets(http_requests_total[30m])
resets(queue_depth[5m])
avg_over_time(node_temperature_celsius[10m])
min_over_time(node_temperature_celsius[10m])
max_over_time(node_temperature_celsius[10m])
sum_over_time(node_temperature_celsius[10m])
sum_over_time(node_memory_usage_bytes[3m])
count_over_time(node_temperature_celsius[10m])
count_over_time(http_requests_total[1m])
last_over_time(node_temperature_celsius[10m])
present_over_time(node_temperature_celsius[2m])
stddev_over_time(queue_depth[10m])
stdvar_over_time(node_memory_usage_bytes[10m])
stdvar_over_time(node_temperature_celsius[10m])
quantile_over_time(0.9, queue_depth[10m])
quantile_over_time(0.25, node_temperature_celsius[15m])
quantile_over_time(2, queue_depth[10m])
quantile_over_time(-1, queue_depth[10m])
quantile_over_time(scalar(queue_depth{instance="a:1"}) / 5, node_memory_usage_bytes[10m])
absent_over_time(node_temperature_celsius{instance="a:1"}[2m])
absent_over_time(nonexistent{a="b"}[2m])
absent(nonexistent)
absent(nonexistent{job="x",instance=~"y",zone="z"})
absent(nonexistent{job="x",job="y",zone="z"})
absent(http_requests_total)
absent(sum(nonexistent))
absent(node_temperature_celsius{instance="d:1"})
sum(rate(http_requests_total[5m]))
sum by (job) (rate(http_requests_total[5m]))
sum without (instance, code) (rate(http_requests_total[5m]))
sum by (http_method, code) (http_requests_total)
sum by (nothing) (http_requests_total)
avg by (zone) (node_temperature_celsius)
avg(node_memory_usage_bytes)
min by (zone) (node_temperature_celsius)
max without (zone) (node_temperature_celsius)
max(node_temperature_celsius)
count by (code) (http_requests_total)
count(nonexistent)
sum(nonexistent)
group by (job) (http_requests_total)
stddev(node_memory_usage_bytes)
stdvar by (zone) (node_temperature_celsius)
stddev by (zone) (queue_depth or node_temperature_celsius)
quantile(0.5, node_memory_usage_bytes)
quantile by (zone) (0.9, node_temperature_celsius)
quantile(-0.1, queue_depth)
quantile(1.1, queue_depth)
topk(2, node_memory_usage_bytes)
bottomk(2, node_memory_usage_bytes)
topk by (job) (1, rate(http_requests_total[10m]))
topk(0, node_memory_usage_bytes)
topk(100, node_memory_usage_bytes)
topk(1.9, node_memory_usage_bytes)
count_values("depth", queue_depth)
count_values by (zone) ("v", round(node_temperature_celsius))
node_memory_usage_bytes / 1024 / 1024
node_memory_usage_bytes / 0
2 ^ queue_depth
queue_depth % 4
-queue_depth
-(1 + 2)
-7 % 3
node_temperature_celsius % 7
queue_depth % 0
queue_depth atan2 node_temperature_celsius
queue_depth > 2
queue_depth >= bool 2
2 < queue_depth
3 == queue_depth
3 != bool queue_depth
queue_depth == queue_depth
queue_depth != 3
node_temperature_celsius > 20 < 25
1 < bool 2
1 + 2 * 3 ^ 2 - 4 / 8 % 3
time()
time() - 1790000000
pi() * 2
vector(1)
vector(time())
scalar(node_memory_usage_bytes{instance="a:1"})
scalar(node_memory_usage_bytes)
node_memory_usage_bytes / on (instance) group_left (version) node_info
node_info * on (instance) group_right (version) node_memory_usage_bytes
http_requests_total / ignoring (code, http_method, job) group_left node_info
http_requests_total * on (instance) group_left (version, zone) node_info
http_requests_total * on (instance) node_info
node_info * on (zone) node_temperature_celsius
node_temperature_celsius * on (zone) group_left () node_info
node_temperature_celsius - ignoring (zone) queue_depth
node_temperature_celsius - on (instance) queue_depth
node_temperature_celsius > on (instance) queue_depth
node_temperature_celsius > bool on (instance) queue_depth
node_temperature_celsius < ignoring (zone, queue) queue_depth
http_requests_total{code="500"} / ignoring (code) http_requests_total{code="200"}
http_requests_total / on (instance, http_method) group_left http_requests_total{code="200"}
http_requests_total{code="500"} == bool ignoring (code) http_requests_total{code="200"}
queue_depth and on (instance) node_temperature_celsius
queue_depth and on (instance) (node_temperature_celsius > 22)
queue_depth unless on (instance) (node_temperature_celsius > 22)
queue_depth or node_temperature_celsius
queue_depth > 3 or on (instance) node_temperature_celsius
queue_depth and ignoring (queue) node_memory_usage_bytes
http_requests_total unless http_requests_total{code="500"}
queue_depth or vector(1)
queue_depth or on () vector(1)
nonexistent or on () vector(0)
abs(node_temperature_celsius - 22)
ceil(node_temperature_celsius)
floor(node_temperature_celsius)
round(node_temperature_celsius)
round(node_temperature_celsius, 0.25)
round(-node_temperature_celsius, 5)
clamp(node_temperature_celsius, 18, 22)
clamp(node_temperature_celsius, 22, 18)
clamp_min(node_temperature_celsius, 20)
clamp_max(node_temperature_celsius, scalar(queue_depth{instance="b:1"}) * 10)
sqrt(node_temperature_celsius)
exp(queue_depth)
ln(queue_depth)
log2(node_memory_usage_bytes)
log10(node_memory_usage_bytes)
sgn(node_temperature_celsius - 21)
sin(queue_depth)
deg(acos(queue_depth / 5))
timestamp(node_temperature_celsius)
timestamp(queue_depth offset 3m)
timestamp((queue_depth))
timestamp(queue_depth + 1)
timestamp(vector(1))
label_replace(node_info, "major", "v$1", "version", "([0-9]+)\\\\..*")
label_replace(node_info, "zone", "", "zone", "x")
label_replace(node_info, "port", "${p}-$1x-$$", "instance", ".*:(?P<p>\\\\d+)")
label_replace(node_info, "__name__", "renamed", "instance", ".*")
label_replace(node_info, "instance", "same", "zone", ".*")
label_replace(node_info, "bad-name", "x", "zone", ".*")
label_replace(node_info, "a", "$1", "nothing", "(.*)")
label_join(node_info, "both", "/", "instance", "zone", "nothing")
label_join(node_info, "zone", ",")
histogram_quantile(0.9, http_latency_seconds_bucket)
histogram_quantile(0.5, rate(http_latency_seconds_bucket[5m]))
histogram_quantile(0.05, rate(http_latency_seconds_bucket[5m]))
histogram_quantile(0.99, sum by (le) (rate(http_latency_seconds_bucket[10m])))
histogram_quantile(1.5, http_latency_seconds_bucket)
histogram_quantile(-1, http_latency_seconds_bucket)
histogram_quantile(0, http_latency_seconds_bucket)
histogram_quantile(1, http_latency_seconds_bucket)
histogram_quantile(0.9, http_latency_seconds_bucket{le!="+Inf"})
histogram_quantile(0.9, http_latency_seconds_bucket{le="+Inf"})
histogram_quantile(0.9, http_latency_seconds_bucket > 100)
histogram_quantile(scalar(queue_depth{instance="a:1"}) / 4, http_latency_seconds_bucket)
histogram_quantile(0.9, node_memory_usage_bytes)
sort(node_memory_usage_bytes)
sort_desc(node_temperature_celsius)
max_over_time(rate(http_requests_total[1m])[10m:1m])
avg_over_time(sum(rate(http_requests_total[1m]))[10m:37s])
rate(http_requests_total[5m:1m])
increase(http_requests_total{code="200"}[10m:15s] offset 2m)
sum_over_time(queue_depth[5m:])
min_over_time(rate(http_requests_total[2m])[10m:2m] @ 1790003000)
count_over_time((queue_depth > 2)[10m:30s])
last_over_time(queue_depth[30s:1m])
avg_over_time(max_over_time(queue_depth[2m])[10m:1m])
quantile_over_time(0.5, (node_temperature_celsius offset 1m)[10m:1m] offset 1m)
absent_over_time((queue_depth > 100)[5m:1m])
sum(rate(http_requests_total{code="500"}[5m])) / sum(rate(http_requests_total[5m]))
(sum by (instance) (rate(http_requests_total[5m])) > 0.1) * on (instance) group_left (version) node_info
{__name__=~"node_info|queue_depth"} + 1
rate({__name__=~"node_memory_usage_bytes|queue_depth"}[5m])
sum by (__name__) ({__name__=~"node_.*"})
max without () (node_info)
queue_depth{instance=~".+"} * Inf
queue_depth - NaN
1 / 0
0x10 + 1e-3
"""
INSTANT_ONLY = ("queue_depth[2m]", "node_temperature_celsius[5m]", '"a string"', "queue_depth[3m:20s]", "http_requests_total[1m] offset 5m")


def generated(count):
    """Random well-typed queries; some of them must fail, on both sides alike."""
    rng = random.Random(7)
    selectors = (
        *("http_requests_total", 'http_requests_total{code="500"}', "node_temperature_celsius", "node_memory_usage_bytes", "queue_depth"),
        *("node_info", 'http_requests_total{job="api",http_method!="POST"}', "queue_depth offset 2m", "http_latency_seconds_bucket"),
    )
    labels = ("instance", "job", "zone", "code", "http_method", "queue", "le")

    def span():
        return rng.choice(("45s", "1m", "90s", "2m", "5m", "17m", "1h"))

    def some():
        return ", ".join(rng.sample(labels, rng.randrange(3)))

    def vector(depth):
        roll = rng.randrange(9) if depth else 0
        if roll < 2:
            return rng.choice(selectors)
        if roll < 4:
            function = rng.choice(("rate", "increase", "delta", "irate", "idelta", "avg_over_time", "min_over_time", "max_over_time"))
            function = rng.choice((function, "sum_over_time", "count_over_time", "last_over_time", "stddev_over_time", "changes", "resets"))
            plain = [one for one in selectors if "offset" not in one]
            ranged = (
                f"{rng.choice(plain)}[{span()}]" if rng.random() < 0.7 else f"({vector(depth - 1)})[{span()}:{rng.choice(('30s', '1m'))}]"
            )
            return f"{function}({ranged}{rng.choice(('', '', ' offset 1m', ' @ end()'))})"
        if roll < 6:
            operator = rng.choice(("sum", "avg", "min", "max", "count", "stddev", "group", "quantile"))
            parameter = "0.7, " if operator == "quantile" else ""
            return f"{operator} {rng.choice(('by', 'without'))} ({some()}) ({parameter}{vector(depth - 1)})"
        if roll < 7:
            function = rng.choice(
                ("abs({})", "ceil({})", "-{}", "clamp_max({}, 30)", "round({}, 0.5)", "sgn({})", "sqrt({})", "timestamp({})")
            )
            return function.format(vector(depth - 1))
        operator = rng.choice(("+", "-", "*", "/", "%", ">", "<=", "== bool", "and", "or", "unless"))
        if operator not in ("and", "or", "unless") and rng.random() < 0.4:
            return f"({vector(depth - 1)}) {operator} {rng.choice(('2', '0.5', '1000', 'time()'))}"
        matching = rng.choice(("", "", f"on ({some()})", f"ignoring ({some()})"))
        if matching and operator not in ("and", "or", "unless"):
            matching += rng.choice(("", f" group_left ({rng.choice(('', 'version', 'zone'))})"))
        return f"({vector(depth - 1)}) {operator} {matching} ({vector(depth - 1)})"

    return [vector(3) for _ in range(count)]


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
