from __future__ import annotations

import gzip
import json
import zlib

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest, ExportMetricsServiceResponse
from otlp_platform import JSON, PROTOBUF, Platform, T, metrics, values

from app.errors import OverloadedError, StorageError
from app.telemetry import instruments
from connectors.core.telemetry import Event, encode_events


@pytest.fixture
def platform():
    return Platform()


async def test_metrics_are_stored_and_answered_with_an_empty_response(platform):
    answer = await platform.post(metrics(2.5))
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"", PROTOBUF)
    assert values(platform.store) == [2.5, 2.5]
    assert {time_ms for _, time_ms in platform.store.samples} == {T // 10**6}
    labels = dict(next(iter(platform.store.samples))[0])
    assert (labels["instance"], labels["agent"], labels["host.name"]) == ("instance-1", "agent-1", "a")


async def test_the_paths_are_known_below_a_mount_too(platform):
    assert (await platform.post(metrics(), "/below/v1/metrics")).status == 200
    assert platform.store.samples


async def test_a_layout_seen_before_is_recognised_and_stored_under_the_same_schema(platform):
    recognised = instruments.OTLP_LAYOUTS.labels("recognised")
    before = recognised._value.get()
    for n in range(4):
        assert (await platform.post(metrics(float(n), T + n * 10**10))).status == 200
    assert recognised._value.get() - before == 3
    assert len(platform.store.schemas) == 1
    assert values(platform.store) == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_two_credentials_do_not_share_layouts(platform):
    await platform.post(metrics(1.0))
    await platform.post(metrics(2.0), token="enrolment")
    assert {dict(labels)["instance"] for labels, _ in platform.store.samples} == {"instance-1", "i-a"}


async def test_a_request_sent_again_changes_nothing(platform):
    for _ in range(3):
        assert (await platform.post(metrics(2.5))).status == 200
    assert values(platform.store) == [2.5, 2.5]


@pytest.mark.parametrize("path", ["/v1/metrics", "/v1/logs"])
@pytest.mark.parametrize(("content_type", "empty"), [(PROTOBUF, b""), (JSON, b"{}"), ("application/json; charset=utf-8", b"{}")])
async def test_an_empty_body_is_an_empty_request(platform, path, content_type, empty):
    answer = await platform.post(b"", path, content_type=content_type)
    assert (answer.status, answer.body) == (200, empty)
    assert (await platform.post(b"" if content_type == PROTOBUF else b"{}", path, content_type=content_type)).status == 200
    assert not platform.store.appends


@pytest.mark.parametrize(("encoding", "fold"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_compressed_bodies_are_taken(platform, encoding, fold):
    assert (await platform.post(fold(metrics()), encoding=encoding)).status == 200
    assert values(platform.store) == [1.0, 1.0]


async def test_json_is_answered_in_json_with_partial_success(platform):
    points = [{"asInt": "5", "timeUnixNano": str(T)}, {"asInt": "6"}]
    document = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "m", "gauge": {"dataPoints": points}}]}]}]}
    answer = await platform.post(json.dumps(document).encode(), content_type=JSON)
    assert (answer.status, answer.headers["content-type"]) == (200, JSON)
    assert json.loads(answer.body) == {"partialSuccess": {"rejectedDataPoints": "1", "errorMessage": "1 rejected: no time (first: 'm')"}}
    assert values(platform.store) == [5.0]


async def test_protobuf_is_answered_in_protobuf_with_partial_success(platform):
    request = ExportMetricsServiceRequest.FromString(metrics())
    request.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points[0].time_unix_nano = 0
    answer = await platform.post(request.SerializeToString())
    partial = ExportMetricsServiceResponse.FromString(answer.body).partial_success
    assert (answer.status, partial.rejected_data_points) == (200, 1)
    assert "no time" in partial.error_message
    assert values(platform.store) == [1.0]


async def test_a_request_of_bad_points_only_is_answered_200_with_all_of_them_rejected(platform):
    answer = await platform.post(metrics(at=T + 10 * 86_400 * 10**9))
    assert ExportMetricsServiceResponse.FromString(answer.body).partial_success.rejected_data_points == 2
    assert (answer.status, platform.store.appends) == (200, 0)


async def test_logs_are_recorded_once_by_id_and_answered(platform):
    body = encode_events([Event("deploy", {"v": "2"}, time_unix_nano=T)], T)
    for _ in range(2):
        answer = await platform.post(body, "/v1/logs")
        assert (answer.status, answer.body) == (200, b"")
    (event,) = platform.events.values()
    assert (event.name, event.instance_id) == ("deploy", "instance-1")


async def test_rejected_log_records_are_counted(platform):
    body = encode_events([Event("a", time_unix_nano=5), Event("b", time_unix_nano=T)], T)
    answer = await platform.post(body, "/v1/logs")
    assert ExportLogsServiceResponse.FromString(answer.body).partial_success.rejected_log_records == 1
    assert [event.name for event in platform.events.values()] == ["b"]


@pytest.mark.parametrize("path", ["/v1/metrics", "/v1/logs"])
@pytest.mark.parametrize("content_type", [PROTOBUF, JSON])
async def test_a_malformed_body_is_answered_400_with_a_status_in_its_encoding(platform, path, content_type):
    answer = await platform.post(b"\xff\xff\xff", path, content_type=content_type)
    code, message = answer.problem()
    assert (answer.status, answer.headers["content-type"], code) == (400, content_type, 3)
    assert message.startswith("malformed-body: ")
    assert not platform.store.samples
    assert not platform.events


async def test_a_body_cut_short_stores_nothing(platform):
    body = metrics(points=[str(i) for i in range(50)])
    assert (await platform.post(body[:-4])).status == 400
    assert not platform.store.samples


async def test_a_token_that_is_refused_is_answered_401_with_the_reason(platform):
    answer = await platform.post(metrics(), token="expired")
    assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Bearer error="token-expired"')
    assert answer.problem()[0] == 16
    assert answer.problem()[1].startswith("token-expired: ")
    assert (await platform.post(metrics(), token="")).status == 401
    assert not platform.store.samples


async def test_other_methods_are_answered_405(platform):
    answer = await platform.post(b"", method="GET")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


async def test_other_paths_are_answered_404(platform):
    assert (await platform.post(b"", "/v1/traces")).status == 404


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/x-protobuf-not"])
async def test_other_content_types_are_answered_415_in_json(platform, content_type):
    answer = await platform.post(metrics(), content_type=content_type)
    assert (answer.status, answer.headers["content-type"]) == (415, JSON)
    assert answer.problem()[1].startswith("unsupported-media-type: ")


async def test_other_encodings_are_answered_415(platform):
    assert (await platform.post(metrics(), encoding="zstd")).status == 415


async def test_a_body_too_large_is_answered_413(platform):
    assert (await platform.post(bytes(200_001))).status == 413
    assert (await platform.post(gzip.compress(bytes(400_001)), encoding="gzip")).status == 413


@pytest.mark.parametrize(("failure", "wait"), [(StorageError(), "5"), (OverloadedError(retry_after=3), "3")])
async def test_a_store_that_cannot_take_it_is_answered_503_with_retry_after(platform, failure, wait):
    platform.store.failure = failure
    for body in (metrics(1.0), metrics(2.0)):
        answer = await platform.post(body)
        assert (answer.status, answer.headers["retry-after"]) == (503, wait)
        assert answer.problem()[0] == 14
    platform.store.failure = None
    assert (await platform.post(metrics(1.0))).status == 200
    assert values(platform.store) == [1.0, 1.0]


async def test_a_failing_store_is_answered_503_for_a_recognised_layout_too(platform):
    await platform.post(metrics(1.0))
    platform.store.failure = StorageError()
    assert (await platform.post(metrics(2.0, T + 10**10))).status == 503
    assert values(platform.store) == [1.0, 1.0]


async def test_a_client_that_asks_too_often_is_answered_429_with_retry_after(platform):
    answer = await platform.post(metrics(), token="busy")
    assert (answer.status, answer.headers["retry-after"], answer.problem()[0]) == (429, "7", 8)


async def test_too_many_requests_at_once_are_answered_503():
    platform = Platform(max_in_flight=0)
    answer = await platform.post(metrics())
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


async def test_an_unforeseen_failure_is_answered_500_without_its_detail_and_logged(platform, caplog):
    answer = await platform.post(metrics(), token="broken")
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert "secret detail" in caplog.text


async def test_tokens_do_not_reach_the_log(platform, caplog):
    caplog.set_level("DEBUG")
    await platform.post(metrics(), token="agent_prod_verysecret")
    assert "verysecret" not in caplog.text
    assert "token-unknown" in caplog.text


async def test_with_an_enrolment_token_each_resource_says_whose_it_is(platform):
    assert (await platform.post(metrics(hosts=("a", "b", "a")), token="enrolment")).status == 200
    assert platform.resolved == [{"host.name": "a"}, {"host.name": "b"}]
    assert {(dict(labels)["host.name"], dict(labels)["instance"]) for labels, _ in platform.store.samples} == {("a", "i-a"), ("b", "i-b")}


async def test_an_instance_that_was_split_off_gets_series_of_its_own_though_the_layout_is_known(platform):
    await platform.post(metrics(1.0), token="enrolment")
    await platform.post(metrics(2.0, T + 10**10), token="enrolment")
    platform.instances["a"] = "i-new"
    await platform.post(metrics(3.0, T + 2 * 10**10), token="enrolment")
    by_instance = {}
    for (labels, _), value in platform.store.samples.items():
        by_instance.setdefault(dict(labels)["instance"], set()).add(value)
    assert by_instance == {"i-a": {1.0, 2.0}, "i-new": {3.0}}


async def test_a_resource_that_holds_nothing_creates_no_instance(platform):
    empty = ExportMetricsServiceRequest()
    empty.resource_metrics.add()
    assert (await platform.post(empty.SerializeToString(), token="enrolment")).status == 200
    logs = ExportLogsServiceRequest()
    logs.resource_logs.add().scope_logs.add()
    assert (await platform.post(logs.SerializeToString(), "/v1/logs", token="enrolment")).status == 200
    assert platform.resolved == []


async def test_points_of_different_times_are_stored_in_rows_of_one_time_each_and_recognised_again(platform):
    def two(first, second):
        return metrics(1.0, first, "m1") + metrics(2.0, second, "m2")

    before = instruments.OTLP_LAYOUTS.labels("recognised")._value.get()
    for n in range(3):
        assert (await platform.post(two(T + n * 10**10, T + n * 10**10 + 10**9))).status == 200
    assert len(platform.store.samples) == 12
    assert instruments.OTLP_LAYOUTS.labels("recognised")._value.get() - before == 2


async def test_a_large_body_is_decoded_beside_the_event_loop(platform):
    points = [f"point-{i:04}" for i in range(2_000)]
    body = metrics(points=points)
    assert len(body) > 65_536
    assert (await platform.post(body)).status == 200
    assert len(platform.store.samples) == 2_000


async def test_word_of_new_samples_goes_to_the_live_stream_after_they_are_stored(platform):
    async with platform.live.subscribe() as queue:
        for n in range(2):
            await platform.post(metrics(at=T + n * 10**10))
            message = queue.get_nowait()
            assert message.topic == "samples"
            assert message.data == {"instance_id": "instance-1", "agent_id": "agent-1", "time_ms": T // 10**6 + n * 10_000, "points": 2}
        platform.store.failure = StorageError()
        await platform.post(metrics(at=T + 9 * 10**10))
        assert queue.empty()


async def test_requests_items_and_bytes_are_counted(platform):
    def counts():
        return [
            instruments.OTLP_REQUESTS.labels("metrics", "200")._value.get(),
            instruments.OTLP_REQUESTS.labels("metrics", "400")._value.get(),
            instruments.OTLP_ACCEPTED.labels("metrics")._value.get(),
            instruments.OTLP_REJECTED.labels("metrics")._value.get(),
            instruments.OTLP_BYTES.labels("metrics")._value.get(),
        ]

    before = counts()
    good, bad = metrics(), metrics(at=1)
    for body in (good, bad, b"\xff"):
        await platform.post(body)
    assert [after - b for after, b in zip(counts(), before, strict=True)] == [2, 1, 2, 2, len(good) + len(bad)]


async def test_what_is_counted_can_be_shown(platform):
    await platform.post(metrics())
    names = {family.name for family in instruments.collect()}
    assert {"irca_otlp_requests", "irca_otlp_items_accepted", "irca_otlp_items_rejected", "irca_otlp_layouts"} <= names
