from __future__ import annotations

import asyncio
import json
import math
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI
from listed_store import ListedStore, series

from app.api.prometheus_routes import router
from app.errors import OverloadedError, StorageError
from app.settings import Settings

T = 1_700_000_000
HELD = [
    series("system.cpu.time", {"host.name": h, "cpu.mode": m}, [(T, 1.5), (T + 60, 2.0)], unit="s", kind="counter")
    for h in ("a", "b")
    for m in ("user", "idle")
]
HELD += [
    series("odd", {"i": "1"}, [(T, math.nan), (T + 30, math.inf), (T + 45.25, -math.inf), (T + 60, 1e-7)]),
    series("users", {"host.name": "b"}, [(T, 5.0)], unit="{user}", kind="updowncounter"),
    series("clash", {"a.b": "1", "a_b": "2"}, [(T, 5.0)]),
]
NAMES = ["clash", "odd", "system_cpu_time_seconds_total", "users"]


class Api:
    def __init__(self, store=None, **settings) -> None:
        self.app = FastAPI()
        self.app.include_router(router)
        self.store = store or ListedStore(HELD)
        self.app.state.platform = SimpleNamespace(metrics=self.store, settings=Settings(**settings))

    async def __call__(self, path, parameters=(), *, post=False, status=200):
        transport = httpx2.ASGITransport(app=self.app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test/prometheus/api/v1/") as client:
            pairs = parameters.items() if isinstance(parameters, dict) else parameters
            if post:
                form = {}
                for key, value in pairs:
                    form.setdefault(key, []).append(str(value))
                answer = await client.post(path, data=form)
            else:
                answer = await client.get(path, params=[(key, str(value)) for key, value in pairs])
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/json"
        body = answer.json()
        assert body["status"] == ("success" if status == 200 else "error")
        return body["data"] if status == 200 and "warnings" not in body else body


@pytest.fixture
def api():
    return Api()


@pytest.mark.parametrize("post", [False, True])
async def test_an_instant_query_answers_with_a_vector(api, post):
    found = await api("query", {"query": 'users{host_name="b"}', "time": T + 1}, post=post)
    assert found == {
        "resultType": "vector",
        "result": [{"metric": {"__name__": "users", "host_name": "b"}, "value": [T + 1, "5"]}],
    }


async def test_a_query_without_a_time_is_about_now(api):
    moment, number = (await api("query", {"query": "time()"}))["result"]
    assert float(number) == pytest.approx(moment)
    assert moment > T


async def test_scalars_and_texts_have_their_own_types(api):
    assert await api("query", {"query": "1.50", "time": T}) == {"resultType": "scalar", "result": [T, "1.5"]}
    assert await api("query", {"query": "'a\"b'", "time": T}) == {"resultType": "string", "result": [T, 'a"b']}


async def test_a_range_selector_answers_with_its_samples(api):
    found = await api("query", {"query": "odd[1m]", "time": T + 60})
    assert found["resultType"] == "matrix"
    assert found["result"][0]["values"] == [[T, "NaN"], [T + 30, "+Inf"], [T + 45.25, "-Inf"], [T + 60, "1e-7"]]
    assert (await api("query", {"query": "odd[1m]", "time": T - 1}))["result"] == []
    assert (await api("query", {"query": "odd[1s] offset 1s", "time": T + 30}))["result"] == []


@pytest.mark.parametrize("post", [False, True])
async def test_a_range_query_answers_with_a_matrix(api, post):
    parameters = {"query": "system_cpu_time_seconds_total", "start": T - 30, "end": T + 60, "step": "30s"}
    found = await api("query_range", parameters, post=post)
    assert found["resultType"] == "matrix"
    assert [one["metric"]["cpu_mode"] + one["metric"]["host_name"] for one in found["result"]] == ["idlea", "idleb", "usera", "userb"]
    assert found["result"][0]["values"] == [[T, "1.5"], [T + 30, "1.5"], [T + 60, "2"]]


async def test_a_number_over_a_range_is_a_matrix_without_labels(api):
    found = await api("query_range", {"query": "1", "start": T, "end": T + 0.5, "step": 0.25})
    assert found["result"] == [{"metric": {}, "values": [[T, "1"], [T + 0.25, "1"], [T + 0.5, "1"]]}]


async def test_every_float_reads_back_as_it_was_stored():
    rng = np.random.default_rng(3)
    values = np.concatenate(
        (rng.random(200), rng.integers(0, 2**63, 200).view(np.float64), [0.0, -0.0, 1e21, 123456789012345680.0, 5e-324, 0.1, 1e22, -2.0])
    )
    held = [series("x", {}, [(T + i, v) for i, v in enumerate(values)])]
    found = await Api(ListedStore(held))("query_range", {"query": "x", "start": T, "end": T + len(values) - 1, "step": 1})
    stale = values.view(np.uint64) == 0x7FF0000000000002
    for (moment, text), (i, value) in zip(
        found["result"][0]["values"], ((i, v) for i, v in enumerate(values) if not stale[i]), strict=True
    ):
        assert moment == T + i
        assert float(text) == value or (math.isnan(float(text)) and math.isnan(value))


async def test_times_may_be_rfc_3339_and_durations_may_be_written_out(api):
    parameters = {"query": "users", "start": "2023-11-14T22:13:20Z", "end": "2023-11-14T23:13:20.5+01:00", "step": "1m30s500ms"}
    assert (await api("query_range", parameters))["result"][0]["values"] == [[T, "5"]]


@pytest.mark.parametrize(
    ("path", "parameters", "reason"),
    [
        ("query", {"query": "sum("}, 'invalid parameter "query": parse error'),
        ("query", {}, "no expression found"),
        ("query", {"query": "1", "time": "soon"}, 'invalid parameter "time"'),
        ("query", {"query": "1", "time": "2023-11-14T22:13:20"}, 'invalid parameter "time"'),
        ("query", {"query": "1", "time": "nan"}, 'invalid parameter "time"'),
        ("query", {"query": "1", "time": "1e300"}, 'invalid parameter "time"'),
        ("query", {"query": "1", "timeout": "soon"}, 'invalid parameter "timeout"'),
        ("query", {"query": "1", "limit": "-1"}, 'invalid parameter "limit"'),
        ("query_range", {"query": "1", "end": "1", "step": "1"}, 'invalid parameter "start"'),
        ("query_range", {"query": "1", "start": "0", "end": "1"}, 'invalid parameter "step"'),
        ("query_range", {"query": "1", "start": "0", "end": "1", "step": "inf"}, 'invalid parameter "step"'),
        ("query_range", {"query": "1", "start": "0", "end": "1", "step": "0"}, "zero or negative"),
        ("query_range", {"query": "1", "start": "2", "end": "1", "step": "1"}, "before start"),
        ("query_range", {"query": "1", "start": "0", "end": "11000", "step": "1"}, "11,000 points"),
        ("query_range", {"query": "odd[5m]", "start": "0", "end": "1", "step": "1"}, "range vector"),
        ("series", {}, "no match"),
        ("series", {"match[]": "sum(odd)"}, 'invalid parameter "match[]"'),
        ("labels", {"start": "5", "end": "1"}, 'invalid parameter "end"'),
    ],
)
async def test_bad_input_is_a_400_in_the_shape_of_prometheus(api, path, parameters, reason):
    body = await api(path, parameters, status=400)
    assert body["errorType"] == "bad_data"
    assert reason in body["error"]


async def test_what_is_not_supported_is_a_422_that_names_it(api):
    body = await api("query", {"query": "deriv(odd[5m])"}, status=422)
    assert body == {"status": "error", "errorType": "execution", "error": "the function deriv() is not supported"}
    body = await api("query", {"query": "users * on () group_left () system_cpu_time_seconds_total", "time": T}, status=422)
    assert "many-to-many matching not allowed" in body["error"]


async def test_a_query_over_its_budget_is_a_422_and_one_over_its_time_a_503():
    held = [series("x", {}, [(T + i, 1.0) for i in range(2000)])]
    body = await Api(ListedStore(held), query_max_samples=1000)("query", {"query": "x[1h]", "time": T + 2000}, status=422)
    assert body["errorType"] == "execution"
    body = await Api()("query", {"query": "odd", "timeout": "0"}, status=503)
    assert body["errorType"] == "timeout"


async def test_a_store_that_does_not_answer_is_waited_for_no_longer_than_the_settings_say():
    class Slow(ListedStore):
        async def select(self, *args, **options):
            await asyncio.sleep(30)

        series = select

    api = Api(Slow(HELD), query_timeout=0.05)
    assert (await api("query", {"query": "odd", "timeout": "1h"}, status=503))["errorType"] == "timeout"
    assert (await api("series", {"match[]": "odd"}, status=503))["errorType"] == "timeout"


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (StorageError("disk"), 503, "unavailable"),
        (OverloadedError("busy", retry_after=3), 503, "unavailable"),
        (KeyError("x"), 500, "internal"),
    ],
)
async def test_a_store_that_fails_is_said_in_the_shape_of_prometheus(error, status, kind, caplog):
    class Broken(ListedStore):
        async def select(self, *args, **options):
            raise error

    body = await Api(Broken(HELD))("query", {"query": "odd"}, status=status)
    assert body["errorType"] == kind
    assert "KeyError" not in body["error"]
    assert bool(caplog.records) == (status == 500)


async def test_a_form_larger_than_bodies_may_be_is_refused():
    body = await Api(max_body_bytes=65_536)("query", {"query": "x" * 70_000}, post=True, status=413)
    assert body["errorType"] == "bad_data"


@pytest.mark.parametrize("post", [False, True])
async def test_series_are_listed_by_their_labels(api, post):
    found = await api("series", [("match[]", 'system_cpu_time_seconds_total{host_name="a"}'), ("match[]", "users")], post=post)
    assert found == [
        {"__name__": "system_cpu_time_seconds_total", "cpu_mode": "idle", "host_name": "a"},
        {"__name__": "system_cpu_time_seconds_total", "cpu_mode": "user", "host_name": "a"},
        {"__name__": "users", "host_name": "b"},
    ]
    assert await api("series", {"match[]": "users", "start": T + 1}) == []
    assert await api("series", {"match[]": '{"system.cpu.time","cpu.mode"="idle","host.name"="b"}'}) == [
        {"__name__": "system.cpu.time", "cpu.mode": "idle", "host.name": "b"}
    ]


async def test_a_limit_cuts_lists_and_results_and_says_so(api):
    body = await api("series", {"match[]": '{__name__!=""}', "limit": 2})
    assert len(body["data"]) == 2
    assert body["warnings"] == ["results truncated due to limit"]
    body = await api("query", {"query": "system_cpu_time_seconds_total", "time": T, "limit": 1})
    assert len(body["data"]["result"]) == 1
    assert body["warnings"]
    assert len(await api("labels", {"limit": 100})) == 5


@pytest.mark.parametrize("post", [False, True])
async def test_label_names_are_those_of_the_prometheus_view(api, post):
    assert await api("labels", post=post) == ["__name__", "a_b", "cpu_mode", "host_name", "i"]
    assert await api("labels", {"match[]": "users"}, post=post) == ["__name__", "host_name"]
    assert await api("labels", {"match[]": '{"system.cpu.time"}'}) == ["__name__", "cpu.mode", "host.name"]
    assert await api("labels", {"match[]": 'clash{a_b="1;2"}'}) == ["__name__", "a_b"]


async def test_label_values_are_found_by_either_spelling(api):
    assert await api("label/__name__/values") == NAMES
    assert await api("label/host_name/values") == ["a", "b"]
    assert await api("label/host.name/values") == ["a", "b"]
    assert await api("label/host_name/values", {"match[]": "users"}) == ["b"]
    assert await api("label/__name__/values", {"match[]": '{host_name="b"}'}) == ["system_cpu_time_seconds_total", "users"]
    assert await api("label/__name__/values", {"start": T + 61}) == []
    assert await api("label/a_b/values") == ["1;2"]
    assert await api("label/nothing/values") == []
    assert await api("label/host_name/values", {"match[]": "nothing"}) == []


async def test_metadata_tells_types_and_units(api):
    found = await api("metadata")
    assert sorted(found) == NAMES
    assert found["users"] == [{"type": "gauge", "help": "OpenTelemetry metric users", "unit": "{user}"}]
    assert found["system_cpu_time_seconds_total"][0]["type"] == "counter"
    assert list(await api("metadata", {"metric": "odd"})) == ["odd"]
    assert list(await api("metadata", {"limit": 1})) == ["clash"]
    twice = ListedStore([series("a.b", {}, [(T, 1)]), series("a_b", {}, [(T, 1)])])
    assert len((await Api(twice)("metadata"))["a_b"]) == 2
    assert len((await Api(twice)("metadata", {"limit_per_metric": 1}))["a_b"]) == 1


async def test_grafana_learns_which_api_this_is(api):
    assert (await api("status/buildinfo"))["version"] == "2.42.0"


async def test_ordered_answers_keep_their_order_and_others_are_sorted_by_labels(api):
    held = [series("x", {"i": str(i)}, [(T, v)]) for i, v in enumerate((2.0, 9.0, 4.0))]
    api = Api(ListedStore(held))

    async def order(query):
        return [one["metric"]["i"] for one in (await api("query", {"query": query, "time": T}))["result"]]

    assert await order("x") == ["0", "1", "2"]
    assert await order("sort(x)") == ["0", "2", "1"]
    assert await order("topk(2, x)") == ["1", "2"]
    assert json.dumps((await api("query_range", {"query": "sort(x)", "start": T, "end": T + 1, "step": 1}))["result"]).index('"0"') > 0


async def test_another_store_gets_another_engine(api):
    assert await api("label/__name__/values") == NAMES
    api.app.state.platform.metrics = ListedStore([series("only", {}, [(T, 1)])])
    assert await api("label/__name__/values") == ["only"]
