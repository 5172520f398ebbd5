from __future__ import annotations

import asyncio
import itertools
import re
import time
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient

from app.fleet.funnel import DeploymentStep, ToldStep
from app.telemetry.hosts import host_view
from app.web.hosts import change_rows, differences, make_panel
from tests.page_host import GIB, MIB, host_changes, host_shapes, process_shapes, unit_shapes
from tests.page_platform import KEY, PagePlatform, identifier, make_app

WEB = identifier("web-1")
PAGE = f"/instances/{WEB}"
ROUGHLY = 0.3
"""Made-up counters begin with the window that is asked for, which makes their rates uncertain by a sample."""


@pytest.fixture
def platform(tmp_path):
    made = PagePlatform(tmp_path)
    made.metrics.shapes = [*host_shapes(), *unit_shapes(nightly_backup="failed", nginx="active"), *process_shapes(arguments=True)]
    return made


@pytest.fixture
def viewer(platform):
    with TestClient(make_app(platform), base_url="http://localhost:8000") as client:
        client.post("/sign-in", data={"api_key": KEY}, headers={"origin": "http://localhost:8000"})
        yield client


def tell(viewer, platform):
    viewer.portal.call(platform.events.record, host_changes(identifier("agent prod-web"), WEB))


def text_of(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def read(platform, **options):
    return asyncio.run(platform.hosts.read(WEB, **{"last_seen_at": None, "interval": 10, **options}))


def test_the_api_tells_the_host_as_its_agent_measured_it(viewer):
    host = viewer.get(f"/api/v1/instances/{WEB}/host").json()
    assert host["cpu"]["used"] == pytest.approx(0.4)
    assert host["cpu"]["logical_count"] == 8
    assert host["load"] == {"one": 3.42, "five": 2.9, "fifteen": 2.5}
    assert host["memory"] == {"used": 10 * GIB, "available": 6 * GIB, "cached": 4.5 * GIB, "buffers": 0.4 * GIB, "limit": 16 * GIB}
    assert (host["swap"]["used"], host["swap"]["limit"]) == (0.2 * GIB, 2 * GIB)
    assert [one["mountpoint"] for one in host["filesystems"]] == ["/var/lib/postgresql", "/", "/boot"], "the fullest first"
    assert host["filesystems"][0]["used"] == 465 * GIB
    assert host["filesystems"][0]["utilization"] == pytest.approx(465 / 480)
    assert {one["device"]: one["written_bytes"] / MIB for one in host["disks"]} == pytest.approx({"nvme0n1": 22.0, "sda": 0.5}, rel=ROUGHLY)
    assert host["disks"][0]["busy"] == pytest.approx(0.21, rel=ROUGHLY)
    eth0 = host["interfaces"][0]
    assert (eth0["name"], eth0["sent_bytes"] / MIB) == ("eth0", pytest.approx(9.0, rel=ROUGHLY))
    assert eth0["dropped"] == pytest.approx(1.0, rel=ROUGHLY), "both directions"
    assert host["unit_counts"] == {"active": 131, "failed": 1, "inactive": 42}
    assert [(one["name"], one["active_state"]) for one in host["units"]] == [
        ("nightly-backup.service", "failed"),
        ("nginx.service", "active"),
    ]
    assert [(one["pid"], one["name"]) for one in host["processes"]] == [(812, "postgres"), (4411, "java"), (1, "systemd")]
    assert host["connections"] == {"established": 87, "time_wait": 12, "udp": 9}
    assert (host["process_count"], host["open_files"], host["uptime_seconds"]) == (214, 4100, 1_234_567)


def test_the_api_has_hosts_of_server_agents_only(viewer):
    response = viewer.get(f"/api/v1/instances/{identifier('runner-1')}/host")
    assert response.status_code == 404
    assert "is of type docker" in response.json()["detail"]
    assert viewer.get("/api/v1/instances/nothing/host").status_code == 404


def test_the_number_of_queries_does_not_grow_with_the_host(platform):
    read(platform)
    before = platform.metrics.selects
    read(platform)
    few = platform.metrics.selects - before
    for number in range(100):
        labels = {"system.device": f"sd{number}", "disk.io.direction": "read"}
        platform.metrics.shapes.append(("system.disk.io", "By", "counter", labels, 1.0))
    before = platform.metrics.selects
    assert len(read(platform).disks) == 102
    assert platform.metrics.selects - before == few < 20


def test_a_host_that_sent_nothing_lately_says_so(platform, viewer):
    platform.metrics.shapes = []
    assert read(platform).sampled_at is None
    page = viewer.get(PAGE)
    assert page.status_code == 200
    assert "It has sent no metrics lately." in page.text


def test_a_host_that_fell_silent_is_shown_as_it_was_last_heard(platform):
    silent = datetime.now(UTC) - timedelta(hours=5)
    found = read(platform, last_seen_at=silent)
    assert abs(found.sampled_at - silent) < timedelta(seconds=15)
    assert found.filesystems


@pytest.mark.parametrize("interval", [None, "often", True, -1, float("nan")])
def test_an_interval_that_is_none_means_the_default(platform, interval):
    assert read(platform, interval=interval).uptime_seconds == 1_234_567


def test_metrics_that_cannot_be_read_do_not_hide_the_changes(platform, viewer):
    tell(viewer, platform)
    platform.metrics.broken = True
    page = viewer.get(PAGE)
    assert page.status_code == 200
    assert "The metrics cannot be read now: the disk is full" in page.text
    assert "openssl was upgraded" in page.text


def test_the_page_shows_resources_units_processes_and_identity(viewer):
    text = text_of(viewer.get(PAGE).text)
    for expected in (
        "Uptime 14 d",
        "Load 3.42 · 2.9 · 2.5",
        "CPU 40 %",
        "62.5 % · 10 GiB of 16 GiB",
        "96.9 % · 465 GiB of 480 GiB",
        "/dev/sda2 (vfat, read only)",
        "1 failed",
        "nightly-backup.service",
        "postgres 812 1.68 6.05 GiB",
        "--db.password=[redacted]",
        "87 established",
        "Debian GNU/Linux",
        "8f1c0a52d2e84a3f",
    ):
        assert expected in text, expected


def test_what_the_agent_does_not_report_is_not_on_the_page(platform, viewer):
    platform.metrics.shapes = [("system.uptime", "s", "gauge", {}, 60.0)]
    text = viewer.get(PAGE).text
    for absent in ("Top processes", "systemd units", "Filesystems", "Network interfaces", ">Swap<"):
        assert absent not in text, absent


def test_process_names_are_shown_without_a_column_for_arguments_that_are_not_reported(platform, viewer):
    platform.metrics.shapes = [*host_shapes(), *process_shapes()]
    text = viewer.get(PAGE).text
    assert "Top processes" in text
    assert "Command line" not in text


def test_units_that_are_all_well_are_only_counted(platform, viewer):
    platform.metrics.shapes = [*host_shapes(), *unit_shapes()]
    assert "None has failed since the agent started." in viewer.get(PAGE).text


def test_changes_stand_beside_newest_first_with_what_was_and_what_is(platform, viewer):
    tell(viewer, platform)
    page = viewer.get(PAGE).text
    changes = page[page.index('id="changes"') :]
    changes = changes[: changes.index("</section>")]
    places = [changes.index(text) for text in ("nightly-backup.service failed", "nginx.conf changed", "openssl was upgraded", "5433")]
    assert places == sorted(places)
    text = text_of(changes)
    assert "package version before: 3.0.14 after: 3.0.15" in text
    assert "unit state before: active (running) after: failed (failed)" in text
    assert "port address after: 0.0.0.0:5433" in text
    assert "aa" * 32 not in text, "hashes say nothing to a person"
    assert "-worker_connections 512;\n+worker_connections 4096;" in changes
    assert "&lt;b&gt;mallory" in changes
    assert "irca.instance.status_changed" not in changes, "what is no change of the host is among the events"


def test_the_host_alone_is_given_to_the_pages_refresh_and_others_are_sent_to_the_page(viewer):
    part = viewer.get(f"{PAGE}/host", headers={"hx-request": "true"})
    assert part.text.lstrip().startswith('<div class="host" id="host"')
    away = viewer.get(f"{PAGE}/host?range=1h", follow_redirects=False)
    assert (away.status_code, away.headers["location"]) == (303, f"{PAGE}?range=1h#host")


def test_pages_of_other_types_have_no_host(viewer):
    assert 'id="host"' not in viewer.get(f"/instances/{identifier('runner-1')}").text


def test_what_is_nearly_full_is_marked_and_not_by_colour_alone(platform):
    bars = {bar.title: bar for _, _, bar in make_panel(read(platform), []).filesystems}
    assert [bars[mount].look for mount in ("/var/lib/postgresql", "/", "/boot")] == ["offline", "healthy", "healthy"]
    assert "96.9 %" in bars["/var/lib/postgresql"].text


def test_the_parts_of_the_cpu_bar_lie_side_by_side(platform):
    parts = make_panel(read(platform), []).cpu
    assert [part.name for part in parts] == ["user", "system", "steal", "iowait"]
    for before, after in itertools.pairwise(parts):
        assert after.start == pytest.approx(before.start + before.width, abs=0.02)


def test_an_empty_host_makes_an_empty_panel():
    panel = make_panel(host_view(None, [], [], {}), [])
    assert (panel.facts, panel.cpu, panel.bars, panel.filesystems, panel.units) == ([], [], [], [], [])


def test_long_and_listed_values_of_a_change_are_readable():
    [one] = differences({"irca.x.members.before": ["a", "b"], "irca.x.members.after": "y" * 500})
    assert (one.what, one.before) == ("x members", "a, b")
    assert one.after.endswith("…")
    assert len(one.after) == 200
    assert change_rows([]) == []


def test_the_agents_page_shows_how_far_its_deployment_has_come(platform, viewer):
    agent = identifier("agent edge-berlin")
    text = text_of(viewer.get(f"/agents/{agent}").text)
    assert "Deployment Command issued" in text
    assert text.count("waiting") >= 4
    now = datetime.now(UTC)
    platform.fleet.told = [
        ToldStep(DeploymentStep.DOWNLOADED, "edge-1", now - timedelta(minutes=3)),
        ToldStep(DeploymentStep.FAILED, "edge-1", now - timedelta(minutes=2), "preflight systemd", "<i>this host has no systemd"),
    ]
    page = viewer.get(f"/agents/{agent}").text
    assert "preflight systemd failed" in text_of(page)
    assert "&lt;i&gt;this host has no systemd" in page


def test_a_deployment_that_came_to_its_end_long_ago_is_not_shown(platform, viewer):
    platform.fleet.told = [
        ToldStep(step, "web-1", datetime.fromtimestamp(time.time() - 9 * 86_400, UTC))
        for step in (DeploymentStep.ENROLLED, DeploymentStep.FIRST_METRIC)
    ]
    assert 'id="funnel"' not in viewer.get(f"/agents/{identifier('agent prod-web')}").text
