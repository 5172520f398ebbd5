from __future__ import annotations

import html
import math
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.auth.service import SESSION_COOKIE
from app.fleet.views import Status
from tests.page_clusters import UID, MadePod, MadeWorkload, synthetic_cluster
from tests.page_platform import KEY, PagePlatform, identifier, make_app

PAGE = f"/clusters/{UID}"
API = f"/api/v1/clusters/{UID}"
HTMX = {"HX-Request": "true"}
AGENT, LEADER = identifier("agent prod-cluster"), identifier("node-a")


@pytest.fixture
def site(tmp_path: Path) -> PagePlatform:
    return PagePlatform(tmp_path)


@pytest.fixture
def viewer(site: PagePlatform) -> Iterator[TestClient]:
    with TestClient(make_app(site), follow_redirects=False, raise_server_exceptions=False) as client:
        assert client.post("/sign-in", data={"api_key": KEY}).status_code == 303
        yield client


def _text(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def _linked(page: str) -> list[str]:
    return re.findall(r'id="link-[^>]+>([^<]+)</a>', page)


def _listed(page: str) -> list[str]:
    return re.findall(r'<th scope="row">(?:<a [^>]+>)?([^<\n]+)', page)


def test_the_clusters_are_listed_with_a_link_to_each(viewer, site):
    page = viewer.get("/clusters")
    assert f'href="{PAGE}"' in page.text
    assert UID in _text(page.text)
    site.fleet.agents = []
    assert "No cluster yet" in _text(viewer.get("/clusters").text)


def test_the_page_of_a_cluster_lists_its_workloads_problems_first_beside_its_changes(viewer):
    page = viewer.get(PAGE).text
    text = _text(page)
    names = _linked(page)
    assert names[:2] == ["import-2026-11-21", "thumbnails"]
    assert set(names[2:6]) == {"kube-proxy", "postgres", "checkout", "search"}
    assert len(names) == 27
    for expected in (
        "Nodes ready 4 of 5",
        "Pods running 40 (2 failed, 3 pending)",
        "2 nodes with problems: worker-2: MemoryPressure, worker-4: its kubelet does not answer",
        "6 workloads with problems, 2 of them down",
        "1 namespace at its quota: shop",
        "0 of 2 available: ImagePullBackOff (2 pods)",
        "19 deployments",
    ):
        assert expected in text, expected
    assert f'href="{PAGE}/workloads/deployment/shop/checkout"' in page
    assert f'data-samples="{PAGE}/objects"' in page
    assert f"agent={AGENT}&amp;topic=agent" in page
    changes = _text(page[page.index('id="changes"') :])
    assert "checkout rolls out registry.example.com/shop/checkout:2.5.0" in changes
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", page)


def test_nodes_and_namespaces_have_tables_of_their_own_with_bars(viewer):
    nodes = viewer.get(PAGE + "?view=nodes").text
    assert _listed(nodes) == ["worker-4", "worker-2", "control-plane-1", "worker-1", "worker-3"]
    for expected in ("3.1 of 4", "13.2 GiB of 16 GiB", "cordoned", "12 of 110"):
        assert expected in _text(nodes)
    namespaces = viewer.get(PAGE + "?view=namespaces").text
    assert _linked(namespaces)[:2] == ["batch", "media"]
    for expected in ("pods 20 of 20", "CPU requests 7.4 of 8", "no quota", "1.85", "Storage requests fast 320 GiB of 500 GiB"):
        assert expected in _text(namespaces), expected
    assert '<rect class="used" width="92.5"' in namespaces
    assert "gauge is-offline" in namespaces


def test_filters_and_order_are_deep_links(viewer):
    assert _linked(viewer.get(PAGE + "?problems=1&namespace=shop").text) == ["checkout", "search"]
    assert _linked(viewer.get(PAGE + "?kind=daemonset").text) == ["kube-proxy", "node-exporter"]
    page = viewer.get(PAGE + "?sort=restarts&search=shop").text
    assert _linked(page)[0] == "checkout"
    assert 'aria-sort="descending"' in page
    assert f"{PAGE}?search=shop&amp;sort=restarts&amp;order=asc" in page
    assert 'value="shop"' in viewer.get(PAGE + "?namespace=shop").text
    assert '<option value="shop" selected>' in viewer.get(PAGE + "?namespace=shop").text
    odd = viewer.get(PAGE + "?view=cellar&kind=toaster&sort=shoe-size&order=up&cursor=x").text
    assert _linked(odd) == _linked(viewer.get(PAGE).text)
    assert "None of the 27 workloads meets these filters" in _text(viewer.get(PAGE + "?search=nowhere").text)
    assert "None of the 5 nodes meets these filters" in _text(viewer.get(PAGE + "?view=nodes&search=nowhere").text)


def test_a_hundred_workloads_are_on_a_page_and_the_rest_on_the_next(viewer, site):
    site.metrics.cluster = synthetic_cluster(AGENT, LEADER, 600)
    first = viewer.get(PAGE + "?sort=name").text
    assert len(_linked(first)) == 100
    following = html.unescape(re.search(r'href="([^"]+)" rel="next"', first).group(1))
    second = viewer.get(following).text
    assert _linked(second) == [f"service-{n:04}" for n in range(100, 120)]
    assert "First page" in second


def test_the_tables_alone_are_for_the_pages_refresh(viewer):
    part = viewer.get(PAGE + "/objects?view=nodes", headers=HTMX)
    assert part.text.lstrip().startswith('<div id="objects"')
    assert len(_listed(part.text)) == 5
    whole = viewer.get(PAGE + "/objects?view=nodes")
    assert (whole.status_code, whole.headers["location"]) == (303, PAGE + "?view=nodes")
    assert viewer.get("/clusters/none/objects", headers=HTMX).status_code == 404


def test_what_the_agent_may_not_read_is_told_where_it_would_stand(viewer, site):
    site.metrics.cluster.failing = {"resourcequotas"}
    site.fleet.collectors = "kubernetes.resourcequotas: the agent's role lacks verb list on resource resourcequotas (API group core)"
    page = _text(viewer.get(PAGE + "?view=namespaces").text)
    assert "Quotas are not visible: the agent's role lacks verb list on resource resourcequotas" in page
    assert "not visible" not in _text(viewer.get(PAGE).text)


def test_a_silent_agent_a_cluster_without_data_and_a_store_in_trouble_are_told(viewer, site):
    agent = next(a for a in site.fleet.agents if a.environment_name == "prod-cluster")
    agent.status, agent.last_seen_at = Status.OFFLINE, datetime.now(UTC) - timedelta(hours=1)
    site.metrics.cluster.leaders = [(LEADER, -math.inf, (time.time() - 3605) * 1000)]
    page = _text(viewer.get(PAGE).text)
    assert "As last reported, 1 h ago" in page
    assert "27 all" in page
    site.metrics.cluster.leaders = [(LEADER, -math.inf, -math.inf)]
    assert "Nothing reported yet" in _text(viewer.get(PAGE).text)
    site.metrics.broken = True
    broken = viewer.get(PAGE)
    assert broken.status_code == 200
    assert "The cluster cannot be read now: the disk is full" in _text(broken.text)
    page = viewer.get(f"{PAGE}/workloads/deployment/shop/checkout")
    assert page.status_code == 200
    assert "The pods cannot be read now: the disk is full" in _text(page.text)


def test_a_table_without_objects_says_so(viewer, site):
    site.metrics.cluster.quotas, site.metrics.cluster.nodes = {}, []
    assert "No nodes The agent reports none." in _text(viewer.get(PAGE + "?view=nodes").text)


def test_a_workload_has_a_page_with_its_pods_containers_changes_and_images(viewer):
    page = viewer.get(f"{PAGE}/workloads/deployment/shop/checkout").text
    text = _text(page)
    assert next(name.strip() for name in _listed(page)) == "checkout-6c9f7d84b5-00001"
    for expected in (
        "1 of 3 available: CrashLoopBackOff",
        "Available 1 of 3",
        "app waiting: CrashLoopBackOff · last ended: Error (exit code 137)",
        "Images, as changes tell registry.example.com/shop/checkout:2.5.0",
        "checkout-6c9f7d84b5-00001 is in CrashLoopBackOff.",
        "irca.kubernetes.deployment.rollout",
    ):
        assert expected in text, expected
    assert "thumbnails" not in text
    assert len(_listed(viewer.get(f"{PAGE}/workloads/deployment/shop/checkout?problems=1").text)) == 2
    pods = _text(viewer.get(f"{PAGE}/workloads/statefulset/payments/postgres").text)
    assert "43.9 % of 2 GiB" in pods
    assert "no node fits it" in pods
    job = _text(viewer.get(f"{PAGE}/workloads/job/batch/import-2026-11-21").text)
    assert "Succeeded 0 of 1" in job
    several = _text(viewer.get(f"{PAGE}/workloads/pod/staging/debug-shell").text)
    assert "shell running" in several
    assert "proxy running" in several


def test_a_workload_that_is_gone_keeps_its_page_while_its_changes_are_known(viewer, site):
    site.metrics.cluster.workloads = [w for w in site.metrics.cluster.workloads if w.name != "thumbnails"]
    site.metrics.cluster.pods = [p for p in site.metrics.cluster.pods if not p.name.startswith("thumbnails")]
    page = _text(viewer.get(f"{PAGE}/workloads/deployment/media/thumbnails").text)
    assert "gone" in page
    assert "thumbnails-6c9f7d84b5-00000 cannot pull its image." in page
    missing = viewer.get(f"{PAGE}/workloads/deployment/media/nothing")
    assert missing.status_code == 404
    assert "There is no deployment nothing in media" in _text(missing.text)


@pytest.mark.parametrize("path", ["/clusters", PAGE, f"{PAGE}/workloads/deployment/shop/checkout"])
def test_whoever_is_not_signed_in_is_sent_to_sign_in(viewer, path):
    viewer.cookies.delete(SESSION_COOKIE)
    assert viewer.get(path).status_code == 303


def test_an_unknown_cluster_is_not_found(viewer):
    for path in ("/clusters/none", "/clusters/none/workloads/job/a/b"):
        assert viewer.get(path).status_code == 404


def test_a_workload_scaled_to_nothing_and_a_running_job_have_words_of_their_own(viewer, site):
    site.metrics.cluster.workloads = [
        MadeWorkload("deployment", "x", "idle", 0, 0),
        MadeWorkload("job", "x", "import", 2, 1, active=1),
        MadeWorkload("cronjob", "x", "nightly"),
    ]
    site.metrics.cluster.pods = [MadePod("idle-1", "x", phase="Succeeded")]
    text = _text(viewer.get(PAGE).text)
    for expected in ("scaled to 0 idle", "running import", "waiting nightly", "1 of 2", "0 active"):
        assert expected in text, expected


def test_the_agents_page_leads_to_its_cluster_and_shows_replaced_pods_on_demand(viewer, site):
    agent = next(a for a in site.fleet.agents if a.environment_name == "prod-cluster")
    page = viewer.get(f"/agents/{agent.id}").text
    assert f'href="{PAGE}"' in page
    assert "replaced pod" not in page
    agent.replaced_pods = 3
    page = viewer.get(f"/agents/{agent.id}")
    assert "3 replaced pods. Show them" in _text(page.text)
    assert "3 replaced pods listed too. Leave them out" in _text(viewer.get(f"/agents/{agent.id}?replaced=1").text)
    other = next(a for a in site.fleet.agents if a.agent_type == "server")
    assert "/clusters/" not in viewer.get(f"/agents/{other.id}").text


def test_the_api_lists_clusters_and_what_is_in_them_in_the_usual_envelope(viewer):
    [one] = viewer.get("/api/v1/clusters").json()["items"]
    assert (one["uid"], one["name"], one["agent_ids"]) == (UID, "prod-cluster", [AGENT])
    assert "collectors" not in one
    assert viewer.get(API).json() == one
    nodes = viewer.get(API + "/nodes", params={"limit": 2}).json()
    assert [n["name"] for n in nodes["items"]] == ["worker-4", "worker-2"]
    assert nodes["degraded"] == []
    rest = viewer.get(API + "/nodes", params={"limit": 4, "cursor": nodes["next_cursor"]}).json()
    assert (len(rest["items"]), rest["next_cursor"]) == (3, None)
    [shop] = viewer.get(API + "/namespaces", params={"search": "shop"}).json()["items"]
    assert shop["quotas"][0]["amounts"][0] == {"title": "pods", "unit": "{object}", "hard": 20.0, "used": 20.0}
    assert shop["cpu_usage"] == pytest.approx(1.85)
    found = viewer.get(API + "/workloads", params={"namespace": "shop", "problems_only": True, "sort": "name", "order": "desc"}).json()
    assert [w["name"] for w in found["items"]] == ["search", "checkout"]
    assert [w["name"] for w in viewer.get(API + "/workloads", params={"kind": "cronjob"}).json()["items"]] == ["nightly-report"]


def test_the_api_lists_pods_of_a_cluster_a_namespace_or_a_workload(viewer):
    def names(**asked) -> list[str]:
        return [p["name"] for p in viewer.get(API + "/pods", params=asked).json()["items"]]

    assert len(names(limit=100)) == 45
    assert len(names(namespace="payments")) == 8
    assert names(namespace="shop", kind="deployment", workload="inventory") == [f"inventory-6c9f7d84b5-{n:05x}" for n in range(2)]
    assert names(workload="postgres", problems_only=True) == ["postgres-2"]
    assert names(kind="pod") == ["debug-shell"]
    [one] = viewer.get(API + "/pods", params={"search": "nightly"}).json()["items"]
    assert (one["workload_kind"], one["workload_name"], one["containers"][0]["state"]) == ("cronjob", "nightly-report", "running")


def test_the_api_tells_what_is_not_visible_and_refuses_what_it_does_not_know(viewer, site):
    site.metrics.cluster.failing = {"resourcequotas"}
    site.fleet.collectors = "kubernetes.resourcequotas: forbidden"
    told = viewer.get(API + "/namespaces").json()["degraded"]
    assert told == [{"collector": "kubernetes.resourcequotas", "subject": "quotas", "reason": "forbidden"}]
    assert viewer.get(API + "/workloads", params={"kind": "toaster"}).status_code == 422
    assert viewer.get(API + "/nodes", params={"cursor": "x"}).json()["code"] == "invalid-request"
    for what in ("", "/nodes", "/namespaces", "/workloads", "/pods"):
        assert viewer.get(f"/api/v1/clusters/none{what}").status_code == 404
    document = viewer.get("/openapi.json").json()
    for what in ("nodes", "namespaces", "workloads", "pods"):
        assert document["paths"][f"/api/v1/clusters/{{uid}}/{what}"]["get"]["description"]
    viewer.cookies.clear()
    for what in ("/api/v1/clusters", API, API + "/nodes", API + "/namespaces", API + "/workloads", API + "/pods"):
        assert viewer.get(what).status_code == 401
