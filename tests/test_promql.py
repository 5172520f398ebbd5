from __future__ import annotations

import contextlib
import math
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from listed_store import ListedStore, series

from app.errors import QueryTooLargeError, UnsupportedQueryError
from app.telemetry.promql.engine import QueryEngine
from app.telemetry.promql.errors import QueryExecutionError, QuerySyntaxError, QueryTimeoutError
from app.telemetry.promql.model import Allowance, Limits, RangeVector, Scalar, String, Vector
from app.telemetry.promql.parse import parse, parse_selector, value_type

STALE = struct.unpack("<d", (0x7FF0000000000002).to_bytes(8, "little"))[0]
PLENTY = Allowance(10.0, 10_000_000)


def labels_text(labels):
    return ",".join(f"{key}={value}" for key, value in labels)


async def at(held, query, moment, allowance=PLENTY):
    """The value of an instant query: a number, a text, or values by labels."""
    result = await QueryEngine(ListedStore(held)).instant(query, round(moment * 1000), allowance, lambda answer: answer)
    value = result.value
    if isinstance(value, Scalar):
        return float(value.values[0])
    if isinstance(value, String):
        return value.value
    assert isinstance(value, Vector)
    return {labels_text(one): float(v[0]) for one, v, there in zip(value.labels, value.values, value.present, strict=True) if there[0]}


async def over(held, query, start, end, step):
    """The value of a range query: values by time by labels."""
    engine = QueryEngine(ListedStore(held))
    result = await engine.range(query, start * 1000, end * 1000, step * 1000, PLENTY, lambda answer: answer)
    times = (result.grid.times // 1000).tolist()
    return {
        labels_text(one): {t: float(v) for t, v, there in zip(times, values, present, strict=True) if there}
        for one, values, present in zip(result.value.labels, result.value.values, result.value.present, strict=True)
    }


GAUGE = [series("g", {"i": "1"}, [(0, 1.0), (60, 2.0), (120, STALE), (180, 4.0)]), series("g", {"i": "2"}, [(30, 7.0)])]
COUNTER = [series("c", {}, [(t, v) for t, v in zip(range(0, 100, 10), (0, 5, 10, 15, 2, 4, 6, 8, 10, 12), strict=True)], kind="counter")]


async def test_an_instant_selector_takes_the_latest_sample_within_five_minutes_both_ends_included():
    assert await at(GAUGE, "g", 30) == {"__name__=g,i=1": 1.0, "__name__=g,i=2": 7.0}
    assert await at(GAUGE, 'g{i="2"}', 330) == {"__name__=g,i=2": 7.0}
    assert await at(GAUGE, 'g{i="2"}', 330.001) == {}
    assert await at(GAUGE, 'g{i="2"}', 29.999) == {}


async def test_a_stale_marker_ends_a_series_until_its_next_sample():
    assert await over(GAUGE, 'g{i="1"}', 0, 240, 60) == {"__name__=g,i=1": {0: 1.0, 60: 2.0, 180: 4.0, 240: 4.0}}
    assert await at(GAUGE, "count_over_time(g[5m])", 200) == {"i=1": 3.0, "i=2": 1.0}


async def test_offset_and_at_modifiers_move_the_time_looked_at():
    assert await at(GAUGE, 'g{i="1"} offset 2m', 180) == {"__name__=g,i=1": 2.0}
    assert await at(GAUGE, 'g{i="1"} offset -1m', 0) == {"__name__=g,i=1": 2.0}
    assert await over(GAUGE, 'g{i="1"} @ 60', 120, 180, 60) == {"__name__=g,i=1": {120: 2.0, 180: 2.0}}
    assert await over(GAUGE, 'g{i="1"} @ start()', 0, 60, 60) == {"__name__=g,i=1": {0: 1.0, 60: 1.0}}
    assert await over(GAUGE, 'g{i="1"} @ end() offset 1m', 60, 120, 60) == {"__name__=g,i=1": {60: 2.0, 120: 2.0}}
    assert await at(GAUGE, "max_over_time(max_over_time(g[1m] @ end())[2m:1m] @ 120)", 180) == {"i=1": 4.0}


async def test_rate_counts_resets_and_extrapolates_to_the_ends_of_the_window():
    # 0..90 s: 15 up to the reset, then 12 from zero, the reset itself counted from zero: 15 + 12 = 27 over 90 of 90 seconds
    assert await at(COUNTER, "increase(c[90s])", 90) == {"": pytest.approx(27.0)}
    assert await at(COUNTER, "rate(c[90s])", 90) == {"": pytest.approx(0.3)}
    # the window begins 10 s before the first sample, but the counter was zero there: no extrapolation to before
    assert await at(COUNTER, "increase(c[100s])", 90) == {"": pytest.approx(27.0)}
    # the window ends 5 s behind the last sample, less than 1.1 intervals: all of it is extrapolated
    assert await at(COUNTER, "increase(c[45s])", 95) == {"": pytest.approx(8 * 45 / 40)}
    # 20 s behind: only half an interval is
    assert await at(COUNTER, "increase(c[60s])", 110) == {"": pytest.approx(8 * (40 + 0 + 5) / 40)}
    assert await at(COUNTER, "rate(c[5s])", 92) == {}
    assert await at(COUNTER, "irate(c[1m])", 90) == {"": pytest.approx(0.2)}
    assert await at(COUNTER, "irate(c[1m])", 40) == {"": pytest.approx(0.2)}
    assert await at(COUNTER, "idelta(c[1m])", 40) == {"": pytest.approx(-13.0)}
    assert await at(COUNTER, "resets(c[90s])", 90) == {"": 1.0}
    assert await at(COUNTER, "changes(c[90s])", 90) == {"": 9.0}


async def test_a_mean_does_not_overflow_where_the_sum_does():
    huge = [series("h", {"i": str(i)}, [(0, 1.5e308), (10, 1.5e308)]) for i in range(2)]
    assert await at(huge, "avg(h)", 10) == {"": pytest.approx(1.5e308)}
    assert await at(huge, 'avg_over_time(h{i="1"}[1m])', 10) == {"i=1": pytest.approx(1.5e308)}


async def test_a_long_window_at_many_steps_gives_the_same_as_each_step_alone():
    rng = np.random.default_rng(5)
    held = [series("x", {}, [(t, v) for t, v in zip(range(0, 60_000, 15), rng.random(4000), strict=True)])]
    found = await over(held, "quantile_over_time(0.3, x[6h])", 0, 59_900, 60)
    deviations = await over(held, "stddev_over_time(x[6h])", 0, 59_900, 60)
    values = held[0].values
    for moment in (0, 60, 21_600, 40_020, 59_880):
        inside = values[max(0, -(-(moment - 21_600) // 15)) : moment // 15 + 1]
        assert found[""][moment] == pytest.approx(np.quantile(inside, 0.3), rel=1e-12)
        assert deviations[""][moment] == pytest.approx(inside.std(), rel=1e-9, abs=1e-12)


@given(
    samples=st.dictionaries(st.integers(0, 40), st.floats(-100, 100), min_size=1),
    size=st.integers(1, 30),
    function=st.sampled_from(["sum", "min", "max", "count", "last", "avg", "stdvar"]),
)
async def test_over_time_functions_are_what_a_loop_over_the_window_gives(samples, size, function):
    held = [series("x", {}, samples.items())]
    found = await over(held, f"{function}_over_time(x[{size}s])", 0, 60, 1)
    plain = {
        "sum": sum,
        "min": min,
        "max": max,
        "count": len,
        "last": lambda inside: inside[-1],
        "avg": np.mean,
        "stdvar": np.var,
    }[function]
    expected = {}
    for moment in range(61):
        inside = [samples[t] for t in sorted(samples) if moment - size <= t <= moment]
        if inside:
            expected[moment] = pytest.approx(float(plain(inside)), rel=1e-9, abs=1e-9)
    (values,) = found.values()
    assert values == expected


async def test_series_of_shared_times_and_series_of_their_own_are_answered_alike():
    shared = series("s", {"i": "1"}, [(0, 1), (10, 2)])
    twin = series("s", {"i": "2"}, [(0, 3), (10, 4)])
    twin = type(twin)(twin.labels, twin.unit, twin.kind, shared.times, twin.values)
    assert await at([shared, twin, series("s", {"i": "3"}, [(5, 9)])], "sum_over_time(s[8s])", 10) == {"i=1": 2.0, "i=2": 4.0, "i=3": 9.0}


async def test_a_query_by_otel_name_gets_names_as_they_were_stored():
    held = [series("system.cpu.time", {"host.name": "a", "cpu.mode": "user"}, [(0, 3.0)], unit="s", kind="counter")]
    translated = {"__name__=system_cpu_time_seconds_total,cpu_mode=user,host_name=a": 3.0}
    stored = {"__name__=system.cpu.time,cpu.mode=user,host.name=a": 3.0}
    assert await at(held, 'system_cpu_time_seconds_total{host_name="a"}', 0) == translated
    assert await at(held, '{host_name="a"}', 0) == translated
    assert await at(held, '{"host.name"="a"}', 0) == translated
    assert await at(held, '{"system.cpu.time","host.name"="a"}', 0) == stored
    assert await at(held, '{__name__="system.cpu.time",host_name=~"a|b"}', 0) == stored
    assert await at(held, 'sum by ("host.name") ({"system.cpu.time"})', 0) == {"host.name=a": 3.0}
    assert await at(held, "sum by (host_name) (system_cpu_time_seconds_total)", 0) == {"host_name=a": 3.0}


async def test_a_metric_that_appears_is_found_after_a_moment_and_known_ones_at_once():
    clock = [100.0]
    store = ListedStore(GAUGE)
    engine = QueryEngine(store, clock=lambda: clock[0])

    async def count(query):
        return await engine.instant(query, 60_000, PLENTY, lambda answer: len(answer.value.labels))

    assert await count("g") == 2
    store.held.append(series("new", {"label": "x"}, [(50, 1.0)]))
    assert await count("new") == 0
    clock[0] += 2
    assert await count("new") == 1
    store.held.append(series("newer", {}, [(50, 1.0)]))
    clock[0] += 11
    assert await count("newer") == 1


async def test_the_store_is_asked_once_for_what_a_query_needs_twice():
    store = ListedStore(GAUGE)
    await QueryEngine(store).instant("g / g + g offset 1m", 60_000, PLENTY, lambda answer: answer)
    assert len(store.asked) == 2


async def test_a_query_that_touches_too_much_is_refused():
    held = [series("x", {"i": str(i)}, [(t, 1.0) for t in range(100)]) for i in range(10)]
    with pytest.raises(QueryTooLargeError):
        await at(held, "x", 100, Allowance(10, 500))
    with pytest.raises(QueryTooLargeError, match="too many samples"):
        await at(held, "x + x offset 1s", 99, Allowance(10, 1000))
    with pytest.raises(QueryTooLargeError, match="1,000,000 steps"):
        await at(held, "sum_over_time(x[290000y:1ms])", 99)
    assert len(await at(held, "sum_over_time(x[290000y] offset -1000y)", 99)) == 10
    sparse = [series("x", {"i": str(i)}, [(0, 1.0)]) for i in range(10)]
    engine = QueryEngine(ListedStore(sparse))
    with pytest.raises(QueryTooLargeError, match="10 series at 301 steps"):
        await engine.range("x", 0, 300_000, 1000, Allowance(10, 3000), lambda answer: answer)


async def test_a_query_that_takes_too_long_is_refused():
    with pytest.raises(QueryTimeoutError, match="timed out"):
        await at(GAUGE, "g", 60, Allowance(0.0, 1000))
    limits = Limits(Allowance(-1.0, 1000))
    with pytest.raises(QueryTimeoutError, match="longer than"):
        limits.check_deadline()
    assert time.monotonic() > limits.deadline


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("deriv(g[5m])", r"deriv\(\)"),
        ("predict_linear(g[5m], 60)", r"predict_linear\(\)"),
        ("limitk(1, g)", r"limitk\(\)"),
        ("day_of_week()", r"day_of_week\(\)"),
        ('g{a="1" or b="2"}', "'or' between label matchers"),
        ("g + fill(0) g", "fill"),
        ("g @ -5", "1970"),
        ("g @ 1e20", "too large"),
        ("g[3000000y]", "too large"),
        ("g offset 500000000w", "too large"),
        ("g offset Inf", "the parser failed"),
        ('label_replace(g, "a", "$1", "i", "[[:digit:]]")', "POSIX"),
        ('label_replace(g, "a", "$1", "i", "(a)(?i)b")', "regular expression"),
    ],
)
async def test_an_unsupported_construct_is_named(query, named):
    with pytest.raises(UnsupportedQueryError, match=named):
        await at(GAUGE, query, 60)


@pytest.mark.parametrize(
    "query", ["", "g +", "nonsense(g)", "rate(g)", '{a=""}', 'g{a=~"("}', "1 == 2", "g[5m] + 1", "sum(g", "a + bool b", "topk(g, g)"]
)
def test_what_is_not_promql_is_refused(query):
    with pytest.raises(QuerySyntaxError, match="parse error"):
        parse(query)


WORDS = ["g", "rate", "sum by (i)", "(", ")", "{", "}", "[5m]", "[1m:]", "offset 1m", "@ 5", "start()", "-", "+", "*", "== bool", "and on"]
WORDS += ["group_left", "'a'", r"`b\`", '"c"', "=~", ",", "1e9", "Inf", ":"]


@given(words=st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=14))
def test_whatever_is_asked_is_parsed_or_refused(words):
    with contextlib.suppress(QuerySyntaxError, UnsupportedQueryError):
        parse(" ".join(words))


@pytest.mark.parametrize(
    "query",
    ["(" * 300_000, "(" * 20_000 + "g" + ")" * 20_000, "-" * 20_000 + "g", "g+" * 20_000 + "g", "g or " * 600 + "g", "g^" * 20_000 + "g"],
)
def test_a_query_of_monstrous_depth_or_length_is_refused_and_does_not_end_the_process(query):
    with pytest.raises(QuerySyntaxError, match="parse error"):
        parse(query)


@pytest.mark.parametrize("query", ["(" * 99 + "g" + ")" * 99, "g" + " + g" * 110, "sum(" * 99 + "g" + ")" * 99, "-" * 100 + "g"])
async def test_the_deepest_allowed_queries_are_answered(query):
    assert await at(GAUGE, query, 60)


def test_the_deepest_text_that_is_let_through_leaves_the_parser_alive():
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from app.telemetry.promql.parse import parse\n"
        "for q in ('g+' * 499 + 'g', '-' * 499 + 'g', 'g^' * 499 + 'g', '(-' * 99 + 'g' + ')' * 99):\n"
        "    try: parse(q)\n"
        "    except Exception as error: print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) <= {"QuerySyntaxError"}


async def test_raw_strings_keep_their_backslashes_and_quotes():
    held = [series("g", {"i": 'a.b"c\\'}, [(0, 1.0)])]
    assert len(await at(held, r'g{i=~`a\.b"c\\`}  # a `comment` "here', 0)) == 1
    assert len(await at(held, 'g{i=~"a\\\\.b.*"}', 0)) == 1
    assert await at(held, "`one\\two`", 0) == "one\\two"


async def test_label_replace_expands_groups_as_go_does():
    held = [series("g", {"i": "host:90"}, [(0, 1.0)])]

    async def replaced(replacement, pattern="(?P<h>[a-z]+):([0-9]+)"):
        found = await at(held, f'label_replace(g, "d", "{replacement}", "i", "{pattern}")', 0)
        return dict(pair.split("=") for pair in next(iter(found)).split(",")).get("d", "")

    assert await replaced("$2-${h}-$h") == "90-host-host"
    assert await replaced("$2x$$$9${2}x") == "$90x"
    assert await replaced("a$") == "a$"
    assert await replaced("$nothing") == ""
    assert await replaced("x", "host") == ""
    with pytest.raises(QueryExecutionError, match="invalid destination label name"):
        await at(held, 'label_replace(g, "a.b", "x", "i", ".*")', 0)
    with pytest.raises(QueryExecutionError, match="invalid destination label name"):
        await at(held, 'label_join(g, "a.b", ",", "i")', 0)
    with pytest.raises(QueryExecutionError, match="invalid regular expression"):
        await at(held, 'label_replace(g, "a", "x", "i", "(")', 0)


async def test_ambiguous_matches_are_refused():
    held = [series("a", {"x": str(i), "y": "1"}, [(0, 1.0)]) for i in range(2)]
    held += [series("b", {"x": str(i), "y": "1"}, [(0, 2.0)]) for i in range(2)] + [series("d", {"y": "1", "z": "z"}, [(0, 4.0)])]
    for query, reason in (
        ("a * on (y) b", "duplicate series for the match group .* right"),
        ("d * on (y) group_right d * on (y) group_right () b", None),
        ("a * on (y) group_right () b", "left hand-side"),
        ("a * on (y) d", "many-to-one matching must be explicit"),
        ("label_replace(a, 'x', 'same', '', '')", "same labelset"),
        ("a * on (y) group_left (x) d", "grouping labels must ensure unique matches"),
        ("-{__name__=~'a|b'}", "same labelset"),
        ("rate({__name__=~'a|b'}[5m:1s] offset -10s)", "same labelset"),
        ("count_values('a b', a)", "invalid label name"),
        ("topk(NaN, a)", "int64"),
    ):
        if reason is None:
            assert await at(held, query, 0)
        else:
            with pytest.raises(QueryExecutionError, match=reason):
                await at(held, query, 0)


async def test_rows_that_become_equal_at_different_times_are_one_series():
    held = [series("g", {"i": "1"}, [(0, 1.0), (30, STALE)]), series("g", {"i": "2"}, [(60, 2.0)])]
    assert await over(held, "label_replace(g, 'i', '', '', '')", 0, 60, 30) == {"__name__=g": {0: 1.0, 60: 2.0}}


async def test_a_matrix_is_only_for_instant_queries_and_a_text_too():
    result = await QueryEngine(ListedStore(GAUGE)).instant("g[1m]", 60_000, PLENTY, lambda answer: answer)
    assert isinstance(result.value, RangeVector)
    for query in ("g[1m]", "'text'", "g[5m:1m]"):
        with pytest.raises(QuerySyntaxError, match="must be Scalar or instant Vector"):
            await over(GAUGE, query, 0, 60, 30)


async def test_a_range_query_has_a_step_an_end_behind_its_start_and_no_more_than_11000_points():
    for start, end, step, reason in ((0, 60, 0, "zero or negative"), (60, 0, 1, "before start"), (0, 11_000, 1, "11,000 points")):
        with pytest.raises(QuerySyntaxError, match=reason):
            await over(GAUGE, "g", start, end, step)
    assert await over(GAUGE, "vector(1)", 0, 10_999, 1)


def test_only_plain_selectors_select_series():
    assert [m.value for m in parse_selector('g{i="1"}')] == ["g", "1"]
    for text in ("g offset 5m", "g @ 5", "sum(g)", "1"):
        with pytest.raises(QuerySyntaxError, match="not a series selector"):
            parse_selector(text)


def test_every_expression_has_a_type():
    for query, expected in (
        ("1", "scalar"),
        ("-1 + time()", "scalar"),
        ("scalar(g)", "scalar"),
        ("'a'", "string"),
        ("g[1m]", "matrix"),
        ("g[1m:]", "matrix"),
        ("1 + g", "vector"),
        ("-g", "vector"),
        ("sum(g)", "vector"),
    ):
        assert value_type(parse(query)) == expected


async def test_arithmetic_of_numbers_is_that_of_float64():
    assert math.isnan(await at([], "0 / 0", 0))
    assert await at([], "-1 / 0", 0) == -math.inf
    assert await at([], "-7 % 3", 0) == -1.0
    assert await at([], "2 ^ 3 ^ 0.5 > bool 3", 0) == 1.0
    assert await at([], "pi()", 0) == math.pi
    assert math.isnan(await at([], "scalar(g)", 0))


async def test_nothing_in_gives_nothing_out():
    for query in ("g", "sum(g)", "topk(1, g)", "quantile(0.5, g)", "count_values('v', g)", "g + g", "abs(g)", "rate(g[5m])"):
        assert await at([], query, 0) == {}
    for query in ("histogram_quantile(0.5, g)", "sort(g)", "g and g", "round(g)", "sum by (a) (g) or g", "g > 1", "absent(vector(1))"):
        assert await at([], query, 0) == {}
    assert await at([], "absent(g{a='1'})", 0) == {"a=1": 1.0}


async def test_values_become_labels_without_exponents():
    held = [series("x", {"i": str(i)}, [(0, v)]) for i, v in enumerate((1e21, 0.1, math.nan, math.inf, -math.inf, 0.1, 3.0))]
    assert await at(held, "count_values('v', x)", 0) == {
        "v=1000000000000000000000": 1.0,
        "v=0.1": 2.0,
        "v=NaN": 1.0,
        "v=+Inf": 1.0,
        "v=-Inf": 1.0,
        "v=3": 1.0,
    }


FIVE = [
    series("m", {"i": i, "z": z}, [(0, v)])
    for i, z, v in (("1", "x", 1.0), ("2", "x", 4.0), ("3", "y", 2.5), ("4", "y", -3.0), ("5", "y", math.nan))
]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sum by (z) (m > -9)", {"z=x": 5.0, "z=y": -0.5}),
        ("avg by (z) (m > -9)", {"z=x": 2.5, "z=y": -0.25}),
        ("min by (z) (m)", {"z=x": 1.0, "z=y": -3.0}),
        ("max without (i) (m)", {"z=x": 4.0, "z=y": 2.5}),
        ("count by (z) (m)", {"z=x": 2.0, "z=y": 3.0}),
        ("group(m)", {"": 1.0}),
        ("stdvar by (z) (m > 0)", {"z=x": 2.25, "z=y": 0.0}),
        ("stddev(m > 0 < 5)", {"": pytest.approx(math.sqrt(1.5))}),
        ("quantile(0.5, m > -9)", {"": 1.75}),
        ("quantile by (z) (0, m > -9)", {"z=x": 1.0, "z=y": -3.0}),
        ("quantile(7, m)", {"": math.inf}),
        ("quantile(-7, m)", {"": -math.inf}),
        ("sum without (i) (topk by (z) (1, m))", {"z=x": 4.0, "z=y": 2.5}),
        ("sum without (i) (bottomk by (z) (1, m))", {"z=x": 1.0, "z=y": -3.0}),
        ("count(topk(5, m))", {"": 5.0}),
        ("clamp(m{i='2'}, 0, 3)", {"i=2,z=x": 3.0}),
        ("clamp(m, 3, 0)", {}),
        ("clamp_min(m{i='4'}, 0)", {"i=4,z=y": 0.0}),
        ("clamp_max(m{i='2'}, 3)", {"i=2,z=x": 3.0}),
        ("round(m{i='3'})", {"i=3,z=y": 3.0}),
        ("round(m{i='3'}, 2)", {"i=3,z=y": 2.0}),
        ("sgn(m{i='4'})", {"i=4,z=y": -1.0}),
        ("-m{i='4'}", {"i=4,z=y": 3.0}),
        ("timestamp(m{i='1'})", {"i=1,z=x": 0.0}),
        ("timestamp(m{i='1'} + 1)", {"i=1,z=x": 60.0}),
        ("vector(scalar(m{i='1'}))", {"": 1.0}),
        ("2 - m{i='1'}", {"i=1,z=x": 1.0}),
        ("m{i='1'} == 1", {"__name__=m,i=1,z=x": 1.0}),
        ("3 > bool m{i='1'}", {"i=1,z=x": 1.0}),
        ("m{i='1'} < bool m", {"i=1,z=x": 0.0}),
        ("m >= on (i, z) m > 3", {"i=2,z=x": 4.0}),
        ("m and on (i) m{i='1'}", {"__name__=m,i=1,z=x": 1.0}),
        ("m{z='x'} unless m{i='1'}", {"__name__=m,i=2,z=x": 4.0}),
        ("m{i='1'} or m{i='2'}", {"__name__=m,i=1,z=x": 1.0, "__name__=m,i=2,z=x": 4.0}),
        ("m{z='x'} / on (z) group_left (n) label_replace(m{i='2'}, 'n', 'k', '', '')", {"i=1,n=k,z=x": 0.25, "i=2,n=k,z=x": 1.0}),
        ("m{i='2'} / on (z) group_right () m{z='x'}", {"i=1,z=x": 4.0, "i=2,z=x": 1.0}),
        ("label_join(m{i='1'}, 'j', '-', 'z', 'i')", {"__name__=m,i=1,j=x-1,z=x": 1.0}),
        ("sort_desc(m{z='x'})", {"__name__=m,i=2,z=x": 4.0, "__name__=m,i=1,z=x": 1.0}),
        ("max_over_time(m{i='1'}[2m] offset -1m)", {"i=1,z=x": 1.0}),
        ("last_over_time(m{i='1'}[2m])", {"__name__=m,i=1,z=x": 1.0}),
        ("present_over_time(m{i='1'}[2m])", {"i=1,z=x": 1.0}),
        ("absent_over_time(m{i='1',z='x'}[10s])", {"i=1,z=x": 1.0}),
        ("absent_over_time(m{i='1'}[1m])", {}),
        ("absent(m{i='1',i='2',z!='x'})", {"": 1.0}),
        ("sum_over_time(vector(2)[3m:1m])", {"": 8.0}),
        ("sum_over_time(vector(2)[10s:1h] offset 5s)", {}),
        ("delta(m{i='1'}[2m])", {}),
    ],
)
async def test_functions_and_operators_give_what_prometheus_gives(query, expected):
    assert await at(FIVE, query, 60) == expected


def buckets(counts, **labels):
    return [series("h_bucket", {**labels, "le": le}, [(0, v)], kind="histogram") for le, v in counts.items()]


@pytest.mark.parametrize(
    ("phi", "counts", "expected"),
    [
        (0.5, {"1": 10, "2": 30, "+Inf": 40}, 1.5),
        (0.25, {"1": 10, "2": 30, "+Inf": 40}, 1.0),
        (0.1, {"1": 10, "2": 30, "+Inf": 40}, 0.4),
        (0.9, {"1": 10, "2": 30, "+Inf": 40}, 2.0),
        (0.5, {"-1": 30, "2": 30, "+Inf": 40}, -1.0),
        (0.5, {"1": 10, "2": 30}, math.nan),
        (0.5, {"+Inf": 30}, math.nan),
        (0.5, {"1": 0, "+Inf": 0}, math.nan),
        (0.5, {"1": 10, "2": 8, "4": 30, "+Inf": 30}, 2.5),
        (0.5, {"1": 10, "1.0": 20, "2": 60, "+Inf": 60}, 1.0),
        (-1, {"1": 10, "+Inf": 10}, -math.inf),
        (2, {"1": 10, "+Inf": 10}, math.inf),
        (math.nan, {"1": 10, "+Inf": 10}, math.nan),
    ],
)
async def test_a_histogram_quantile_is_interpolated_within_its_bucket(phi, counts, expected):
    held = [*buckets(counts, i="1"), series("h_bucket", {"le": "wide"}, [(0, 1.0)])]
    found = await at(held, f"histogram_quantile({phi}, h_bucket)", 0)
    assert found == {"i=1": pytest.approx(expected, nan_ok=True)}


async def test_a_histogram_whose_buckets_come_and_go_is_computed_step_by_step():
    held = buckets({"1": 10, "+Inf": 40}, i="1")
    held += [series("h_bucket", {"i": "1", "le": "2"}, [(60, 30.0)])]
    found = await over(held, "histogram_quantile(0.5, h_bucket)", 0, 420, 60)
    assert found == {
        "i=1": {**dict.fromkeys((0,), 1.0), **dict.fromkeys(range(60, 301, 60), 1.5), 360: pytest.approx(math.nan, nan_ok=True)}
    }
