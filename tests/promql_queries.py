"""Queries of PromQL to compare two engines by: some picked by hand, some made at random."""

from __future__ import annotations

import random

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
