"""The HTTP interface against its own OpenAPI document: whatever is sent, no server error, and every answer in one of the two shapes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings

from app.main import create_app
from app.settings import Settings

pytestmark = [pytest.mark.sockets, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
KEY = "a-preset-admin-key-for-tests"


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("openapi")
    server = uvicorn.Server(uvicorn.Config(create_app(Settings(data_dir=folder, admin_api_key=KEY)), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, name="platform")
    thread.start()
    while not server.started:
        time.sleep(0.05)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    # The live stream never ends by itself; pages are not part of the programmatic interface.
    yield (
        schemathesis.openapi.from_url(f"{url}/openapi.json")
        .include(path_regex="^/(api|prometheus|healthz|readyz|metrics)")
        .exclude(path="/api/v1/live")
    )
    server.should_exit = True
    thread.join(20)


def test_whatever_is_sent_is_answered_in_good_order(api):
    # Operations are walked by hand: schemathesis' pytest plugin does not know this version of pytest.
    tried = 0
    for result in api.get_all_operations():
        operation = result.ok()
        tried += 1

        @given(case=operation.as_strategy())
        @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def answered(case):
            response = case.call(headers={"Authorization": f"Bearer {KEY}"}, timeout=30)
            assert response.status_code < 500 or response.status_code == 503, response.text
            if response.status_code >= 400:
                problem = response.json()
                if case.path.startswith("/prometheus") and response.headers["content-type"] == ["application/json"]:
                    assert problem["status"] == "error"
                else:
                    assert response.headers["content-type"] == ["application/problem+json"]
                    assert problem["status"] == response.status_code

        answered()
    assert tried > 20
