from __future__ import annotations

import uuid

import pytest
from opamp_client import OpampAgent, credential_in
from platform_fixtures import START
from test_enrolment import enrolled, exchange, provision

from app.errors import ClusterUnknownError, TokenExpiredError, TokenRevokedError, TokenUsedUpError
from app.fleet.status import CLUSTER_VIEW, NODE_VIEW, REPLACED_FOR, Facts, Pod, Verdict, is_replaced, of_pods, settle
from app.fleet.views import Status
from tests.fake_platform import FakePlatform
from tests.running_agent import CountingAgent

YEAR = 365 * 86_400


def _pod(name: str, *, node: str = "worker-1", view: str = "cluster", cluster: str = "cluster-1") -> OpampAgent:
    return OpampAgent(
        uid=uuid.uuid4(),
        fingerprint=name,
        host=name,
        extra={"k8s.cluster.uid": cluster, "k8s.pod.name": name, "k8s.node.name": node},
        config={"view": view},
    )


class Fleet:
    """Pods of one kubernetes agent that beat as long as they live."""

    def __init__(self, parts, token: str) -> None:
        self.parts, self.token = parts, token
        self.credentials: dict[str, tuple[str, OpampAgent]] = {}

    async def start(self, name: str, **told) -> None:
        agent = _pod(name, **told)
        self.credentials[name] = await enrolled(self.parts, self.token, agent), agent
        await self.parts.fleet.flush()

    async def goodbye(self, *names: str) -> None:
        for name in names:
            await exchange(self.parts, *self.credentials.pop(name), goodbye=True)
        await self.parts.fleet.flush()
        await self.parts.fleet.sweep()

    def kill(self, *names: str) -> None:
        for name in names:
            del self.credentials[name]

    async def run(self, seconds: float) -> None:
        for _ in range(round(seconds / 10)):
            self.parts.clock.advance(10)
            if int(self.parts.clock.now - START) % 30 == 0:
                for credential, agent in self.credentials.values():
                    await exchange(self.parts, credential, agent)
                await self.parts.fleet.flush()
            await self.parts.fleet.sweep()

    async def agent(self, *, with_replaced: bool = False):
        (found,) = (await self.parts.fleet.list_agents()).items
        return await self.parts.fleet.get_agent(found.id, with_replaced=with_replaced)

    async def listed(self, *, with_replaced: bool = False) -> dict[str, str]:
        return {i.name: i.status.value for i in (await self.agent(with_replaced=with_replaced)).instances}

    async def alarms(self) -> list[tuple[str, str]]:
        events = (await self.parts.events.list_events(name="irca.instance.status_changed", limit=500, min_severity=13)).items
        return [(e.body.split()[0], e.attributes["irca.status"]) for e in reversed(events)]


@pytest.fixture
async def fleet(parts) -> Fleet:
    return Fleet(parts, await provision(parts, agent_type="kubernetes"))


async def test_a_rollout_leaves_one_healthy_pod_and_alarms_nobody(fleet):
    await fleet.start("agent-1")
    for generation in range(2, 5):
        await fleet.run(60)
        await fleet.start(f"agent-{generation}")
        await fleet.goodbye(f"agent-{generation - 1}")
    await fleet.run(60)
    agent = await fleet.agent()
    assert [(i.name, i.status) for i in agent.instances] == [("agent-4", Status.HEALTHY)]
    assert (agent.status, agent.status_reason, agent.replaced_pods) == (Status.HEALTHY, "", 3)
    assert await fleet.listed(with_replaced=True) == {
        "agent-4": "healthy",
        "agent-1": "archived",
        "agent-2": "archived",
        "agent-3": "archived",
    }
    assert await fleet.alarms() == []


async def test_a_pod_that_stops_before_its_successor_starts_is_folded_when_that_is_there(fleet):
    await fleet.start("agent-1")
    await fleet.goodbye("agent-1")
    assert (await fleet.agent()).status is Status.STOPPED
    await fleet.start("agent-2")
    await fleet.parts.fleet.sweep()
    assert await fleet.listed() == {"agent-2": "healthy"}
    assert (await fleet.listed(with_replaced=True))["agent-1"] == "archived"
    assert await fleet.alarms() == []


async def test_an_evicted_pod_alarms_nobody_while_another_watches_and_is_archived_by_itself(fleet):
    await fleet.start("agent-1")
    await fleet.start("agent-2")
    await fleet.run(60)
    fleet.kill("agent-1")
    await fleet.run(300)
    assert await fleet.listed() == {"agent-2": "healthy"}
    assert await fleet.listed(with_replaced=True) == {"agent-1": "offline", "agent-2": "healthy"}
    assert (await fleet.agent()).status is Status.HEALTHY
    await fleet.run(REPLACED_FOR)
    assert (await fleet.listed(with_replaced=True))["agent-1"] == "archived"
    assert await fleet.alarms() == []
    told = (await fleet.parts.events.list_events(name="irca.instance.status_changed", limit=50)).items
    assert [e.attributes["irca.status"] for e in told if e.attributes.get("irca.instance.replaced")] == ["archived", "offline", "degraded"]


async def test_a_pod_that_was_killed_is_folded_as_soon_as_its_silence_shows_and_its_agent_stays_healthy(fleet):
    await fleet.start("agent-1")
    await fleet.start("agent-2")
    await fleet.run(60)
    fleet.kill("agent-1")
    for _ in range(30):
        await fleet.run(10)
        assert (await fleet.agent()).status is Status.HEALTHY
    assert await fleet.listed() == {"agent-2": "healthy"}
    await fleet.start("agent-1")
    assert await fleet.listed() == {"agent-1": "healthy", "agent-2": "healthy"}


async def test_the_only_pod_that_falls_silent_is_an_alarm_and_is_folded_once_it_is_replaced(fleet):
    await fleet.start("agent-1")
    fleet.kill("agent-1")
    await fleet.run(200)
    assert await fleet.alarms() == [("agent-1", "degraded"), ("agent-1", "offline")]
    assert (await fleet.agent()).status is Status.OFFLINE
    await fleet.start("agent-2")
    assert (await fleet.agent()).status is Status.HEALTHY
    assert await fleet.listed() == {"agent-2": "healthy"}


async def test_when_all_pods_fall_silent_together_the_agent_is_offline_and_says_so(fleet):
    await fleet.start("agent-1")
    await fleet.start("agent-2")
    await fleet.run(60)
    fleet.kill("agent-1", "agent-2")
    await fleet.run(300)
    assert (await fleet.agent()).status is Status.OFFLINE
    assert await fleet.listed() == {"agent-1": "offline", "agent-2": "offline"}
    assert sorted(await fleet.alarms()) == [(name, status) for name in ("agent-1", "agent-2") for status in ("degraded", "offline")]


async def test_after_an_uninstallation_the_agent_is_stopped_and_what_was_archived_stays_so(fleet):
    await fleet.start("agent-1")
    await fleet.start("agent-2")
    await fleet.goodbye("agent-1")
    await fleet.start("agent-3")
    await fleet.goodbye("agent-2", "agent-3")
    await fleet.run(60)
    agent = await fleet.agent(with_replaced=True)
    assert agent.status is Status.STOPPED
    assert sorted(i.status.value for i in agent.instances) == ["archived", "stopped", "stopped"]
    assert (await fleet.agent()).replaced_pods == 1
    reasons = {i.name: i.status_reason for i in agent.instances}
    assert reasons["agent-1"] == "stopped in good order, as pods are when they are replaced"
    fresh = await fleet.parts.restarted()
    await fresh.fleet.sweep()
    assert sorted(i.status.value for i in (await fresh.fleet.list_instances(with_replaced=True)).items) == [
        "archived",
        "stopped",
        "stopped",
    ]
    assert await fleet.alarms() == []


async def test_an_agent_that_was_archived_whole_still_shows_its_last_pod(fleet):
    await fleet.start("agent-1")
    await fleet.start("agent-2")
    await fleet.goodbye("agent-1")
    await fleet.run(30)
    await fleet.goodbye("agent-2")
    fleet.parts.clock.advance(15 * 86_400)
    await fleet.parts.fleet.sweep()
    agent = await fleet.agent()
    assert (agent.status, [i.name for i in agent.instances], agent.replaced_pods) == (Status.ARCHIVED, ["agent-2"], 1)


async def test_scaling_down_is_no_loss_and_an_archived_pod_that_speaks_again_is_back(fleet):
    await fleet.start("agent-1")
    await fleet.start("agent-2")
    kept = fleet.credentials["agent-2"]
    await fleet.goodbye("agent-2")
    assert await fleet.listed() == {"agent-1": "healthy"}
    await exchange(fleet.parts, *kept)
    await fleet.parts.fleet.flush()
    assert await fleet.listed() == {"agent-1": "healthy", "agent-2": "healthy"}


async def test_a_standby_pod_is_healthy(fleet):
    await fleet.start("agent-1")
    await fleet.start("agent-2")
    await exchange(fleet.parts, *fleet.credentials["agent-2"], healthy=True)
    await fleet.run(120)
    assert await fleet.listed() == {"agent-1": "healthy", "agent-2": "healthy"}


async def test_a_nodes_pod_that_falls_silent_is_missed_until_its_node_has_left_the_cluster(fleet):
    await fleet.start("agent")
    for node in ("worker-1", "worker-2", "worker-3"):
        await fleet.start(f"node-{node}", node=node, view="node")
    await fleet.run(60)
    fleet.kill("node-worker-2")
    await fleet.run(200)
    agent = await fleet.agent()
    assert (agent.status, agent.status_reason) == (Status.DEGRADED, "the pod on worker-2 is offline")
    assert await fleet.alarms() == [("node-worker-2", "degraded"), ("node-worker-2", "offline")]
    fleet.parts.fleet.know_nodes(agent.id, ["worker-1", "worker-3"])
    assert (await fleet.agent()).status is Status.HEALTHY
    assert "node-worker-2" not in await fleet.listed()
    await fleet.run(REPLACED_FOR)
    assert (await fleet.listed(with_replaced=True))["node-worker-2"] == "archived"


async def test_nodes_that_cannot_be_read_are_not_taken_for_gone(fleet):
    await fleet.start("agent")
    await fleet.start("node-worker-1", view="node")
    fleet.kill("node-worker-1")
    await fleet.run(200)
    agent = await fleet.agent()
    fleet.parts.fleet.know_nodes(agent.id, [])
    fleet.parts.fleet.know_nodes("another", ["worker-9"])
    assert (await fleet.agent()).status is Status.DEGRADED


async def test_a_daemon_sets_rollout_and_its_removal_alarm_nobody(fleet):
    await fleet.start("agent")
    for node in ("worker-1", "worker-2"):
        await fleet.start(f"old-{node}", node=node, view="node")
    for node in ("worker-1", "worker-2"):
        await fleet.goodbye(f"old-{node}")
        assert (await fleet.agent()).status is Status.HEALTHY
        await fleet.start(f"new-{node}", node=node, view="node")
    assert sorted(await fleet.listed()) == ["agent", "new-worker-1", "new-worker-2"]
    await fleet.goodbye("new-worker-1", "new-worker-2")
    assert await fleet.listed() == {"agent": "healthy"}
    assert await fleet.alarms() == []


async def test_an_agent_whose_cluster_nobody_watches_is_degraded_though_its_node_pods_are_well(fleet):
    await fleet.start("agent")
    await fleet.start("node-worker-1", view="node")
    await fleet.goodbye("agent")
    agent = await fleet.agent()
    assert agent.status is Status.DEGRADED
    assert agent.status_reason.startswith("no pod watches the cluster now")
    assert await fleet.listed() == {"agent": "stopped", "node-worker-1": "healthy"}


async def test_replaced_pods_are_listed_and_counted_on_demand_only(fleet):
    await fleet.start("agent-1")
    await fleet.start("agent-2")
    await fleet.goodbye("agent-1")
    listed = fleet.parts.fleet.list_instances
    agent = await fleet.agent()
    assert [i.name for i in (await listed()).items] == ["agent-2"]
    assert [i.name for i in (await listed(agent_id=agent.id)).items] == ["agent-2"]
    assert [(i.name, i.replaced) for i in (await listed(with_replaced=True)).items] == [("agent-2", False), ("agent-1", True)]
    assert [i.name for i in (await listed(status=Status.ARCHIVED)).items] == ["agent-1"]
    assert (await listed(agent_id="another")).items == []
    [gone] = (await listed(status=Status.ARCHIVED)).items
    assert (await fleet.parts.fleet.get_instance(gone.id)).replaced
    assert (await fleet.parts.fleet.status_counts())[Status.HEALTHY] == 1


async def test_the_pods_of_other_types_of_agent_are_no_pods(parts):
    token = await provision(parts)
    agent = OpampAgent()
    credential = await enrolled(parts, token, agent)
    await exchange(parts, credential, agent, goodbye=True)
    await parts.fleet.flush()
    [view] = (await parts.fleet.list_agents()).items
    assert (view.status, view.replaced_pods, [i.name for i in view.instances]) == (Status.STOPPED, 0, ["web-1"])


HERE, THERE = NODE_VIEW + "here", NODE_VIEW + "there"


@pytest.mark.parametrize(
    ("pod", "living", "nodes", "replaced"),
    [
        (Pod(CLUSTER_VIEW, Status.OFFLINE), {CLUSTER_VIEW}, None, True),
        (Pod(CLUSTER_VIEW, Status.OFFLINE), {HERE}, {"here"}, False),
        (Pod(CLUSTER_VIEW, Status.STOPPED), {HERE}, None, False),
        (Pod(CLUSTER_VIEW, Status.STOPPED), set(), None, False),
        (Pod(CLUSTER_VIEW, Status.HEALTHY), {CLUSTER_VIEW}, None, False),
        (Pod(CLUSTER_VIEW, Status.PENDING), {CLUSTER_VIEW}, None, False),
        (Pod(CLUSTER_VIEW, Status.ARCHIVED), {HERE}, None, True),
        (Pod(HERE, Status.OFFLINE), {CLUSTER_VIEW, THERE}, None, False),
        (Pod(HERE, Status.OFFLINE), {CLUSTER_VIEW, THERE}, {"here", "there"}, False),
        (Pod(HERE, Status.OFFLINE), {CLUSTER_VIEW, THERE}, {"there"}, True),
        (Pod(HERE, Status.OFFLINE), {HERE}, {"here"}, True),
        (Pod(HERE, Status.STOPPED), {CLUSTER_VIEW}, {"here"}, True),
    ],
)
def test_a_pod_is_replaced_when_its_work_is_done_or_no_longer_there_to_do(pod, living, nodes, replaced):
    assert is_replaced(pod, living, nodes) is replaced


def test_a_replaced_pod_is_archived_a_quarter_of_an_hour_after_it_went_offline():
    def settled(silence: float) -> Verdict:
        offline = Verdict(Status.OFFLINE, "no heartbeat", silent=True)
        return settle(offline, Facts(START - silence, 30.0), START, Status.OFFLINE, {CLUSTER_VIEW}, Pod(CLUSTER_VIEW, Status.OFFLINE), None)

    assert (settled(1019).status, settled(1019).replaced) == (Status.OFFLINE, True)
    assert settled(1020) == Verdict(Status.ARCHIVED, "silent for 17 min, and another pod does its work", replaced=True)


def test_many_missed_nodes_are_named_shortly():
    pods = [Pod(CLUSTER_VIEW, Status.HEALTHY), *(Pod(f"{NODE_VIEW}n{n}", Status.OFFLINE) for n in range(5))]
    assert of_pods(pods, None) == (Status.DEGRADED, "the pods on n0, n1, n2 and 2 more are offline")
    assert of_pods([], None) == (Status.PENDING, "")


async def test_a_kubernetes_token_goes_on_enrolling_pods_of_its_cluster_after_its_expiry(parts):
    token = await provision(parts, agent_type="kubernetes")
    await enrolled(parts, token, _pod("agent-1"))
    parts.clock.advance(3 * YEAR)
    assert (await parts.fleet.principal(token)).kind == "enrolment"
    await enrolled(parts, token, _pod("agent-2"))
    fresh = await parts.restarted()
    await enrolled(fresh, token, _pod("agent-3"))
    with pytest.raises(TokenExpiredError, match="provision the environment again"):
        await exchange(parts, token, _pod("intruder", cluster="cluster-2"), full=True)
    refused = (await parts.events.list_events(name="irca.enrolment.refused")).items
    assert [e.attributes["irca.refusal"] for e in refused] == ["token-expired"]


async def test_before_its_expiry_another_cluster_is_refused_as_one_too_many(parts):
    token = await provision(parts, agent_type="kubernetes")
    await enrolled(parts, token, _pod("agent-1"))
    with pytest.raises(TokenUsedUpError, match="1 cluster and"):
        await exchange(parts, token, _pod("intruder", cluster="cluster-2"), full=True)


async def test_a_kubernetes_token_that_no_cluster_used_in_time_has_expired(parts):
    token = await provision(parts, agent_type="kubernetes")
    parts.clock.advance(31 * 86_400)
    with pytest.raises(TokenExpiredError):
        await parts.fleet.principal(token)
    with pytest.raises(TokenExpiredError):
        await exchange(parts, token, _pod("agent-1"), full=True)


async def test_revocation_ends_a_kubernetes_token_for_its_own_cluster_too(parts):
    token = await provision(parts, agent_type="kubernetes")
    await enrolled(parts, token, _pod("agent-1"))
    [agent] = (await parts.fleet.list_agents()).items
    [row] = (await parts.fleet.tokens.of_agent(agent.id)).items
    assert row.uses == 1
    await parts.fleet.enrolment.revoke_token(row.id)
    with pytest.raises(TokenRevokedError):
        await exchange(parts, token, _pod("agent-2"), full=True)


async def test_the_token_of_a_server_still_expires_for_the_machine_that_used_it(parts):
    token = await provision(parts)
    await enrolled(parts, token, OpampAgent())
    parts.clock.advance(31 * 86_400)
    with pytest.raises(TokenExpiredError):
        await exchange(parts, token, OpampAgent(uid=uuid.uuid4()), full=True)


async def test_a_pod_that_cannot_name_its_cluster_yet_is_asked_to_come_again_and_binds_nothing(parts):
    token = await provision(parts, agent_type="kubernetes")
    pod = _pod("agent-1", cluster="")
    for _ in range(3):
        with pytest.raises(ClusterUnknownError, match=r"k8s\.cluster\.uid") as refused:
            await exchange(parts, token, pod, full=True)
    assert (refused.value.retryable, refused.value.retry_after) == (True, 10.0)
    assert (await parts.fleet.list_instances()).items == []
    told = (await parts.events.list_events(name="irca.enrolment.refused")).items
    assert [e.attributes["irca.refusal"] for e in told] == ["cluster-unknown"], "once, not at every try"
    parts.clock.advance(601)
    with pytest.raises(ClusterUnknownError):
        await exchange(parts, token, pod, full=True)
    assert len((await parts.events.list_events(name="irca.enrolment.refused")).items) == 2
    pod.extra["k8s.cluster.uid"] = "cluster-1"
    assert credential_in(await exchange(parts, token, pod, full=True)) is not None


class _LatePod(CountingAgent):
    needed_resource = ("k8s.cluster.uid",)
    told = 0

    def resource(self):
        self.told += 1
        return {"host.name": "pod", **({"k8s.cluster.uid": "cluster-1"} if self.told > 2 else {})}


@pytest.mark.sockets
def test_an_agent_asks_for_its_cluster_at_each_heartbeat_until_it_is_told(tmp_path):
    platform = FakePlatform()
    agent = _LatePod(platform.url, "agent_test_token", {"state_dir": str(tmp_path / "state"), "request_timeout": 2})
    try:
        for _ in range(4):
            assert agent.heartbeat()
        described = [message.agent_description for _, message in platform.messages if message.HasField("agent_description")]
        clusters = [[a.value.string_value for a in one.non_identifying_attributes if a.key == "k8s.cluster.uid"] for one in described]
        assert clusters[0] == []
        assert clusters[-1] == ["cluster-1"]
        assert agent.told == 3, "once it is known nobody is asked again"
    finally:
        agent.runtime.close()
        platform.down()


async def test_a_foreign_client_in_a_cluster_must_name_it_too(parts):
    principal = await parts.fleet.principal(await provision(parts, agent_type="kubernetes"))
    with pytest.raises(ClusterUnknownError):
        await parts.fleet.resolve_instance(principal, {"service.name": "collector"})
    told = {"service.name": "collector", "k8s.cluster.uid": "cluster-1"}
    assert (await parts.fleet.resolve_instance(principal, told)).instance_id
