from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.fleet.funnel import DeploymentStep, StageState, ToldStep, funnel

ISSUED = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DOWNLOADED, INSTALLED, ENROLLED, FIRST_METRIC, FAILED = DeploymentStep


def told(step, seconds, host="web-1", **more):
    return ToldStep(step, host, ISSUED + timedelta(seconds=seconds), **more)


def of(*steps, agent_type="server"):
    return funnel("a1", agent_type, ISSUED, steps)


def states(stages):
    return {stage.name: stage.state.value for stage in stages}


def test_a_command_that_nobody_has_run_is_issued_and_no_more():
    found = of()
    assert states(found.stages) == {
        "issued": "reached",
        "downloaded": "waiting",
        "installed": "waiting",
        "enrolled": "waiting",
        "first_metric": "waiting",
    }
    assert found.stages[0].time == ISSUED
    assert (found.hosts, found.complete) == ([], False)


def test_a_run_that_went_well_is_complete():
    found = of(told(DOWNLOADED, 4), told(ENROLLED, 9), told(INSTALLED, 10), told(FIRST_METRIC, 12))
    assert set(states(found.stages).values()) == {"reached"}
    assert found.complete
    assert [stage.time - ISSUED for stage in found.stages] == [timedelta(seconds=n) for n in (0, 4, 10, 9, 12)]


def test_the_stage_at_which_it_stopped_and_the_failing_item_are_told():
    found = of(told(DOWNLOADED, 4), told(FAILED, 5, check="preflight exec", reason="/opt is mounted noexec"))
    assert states(found.stages)["installed"] == "failed"
    assert states(found.stages)["enrolled"] == "waiting"
    [host] = found.hosts
    assert (host.failure.check, host.failure.reason) == ("preflight exec", "/opt is mounted noexec")
    assert not found.complete


def test_a_failure_before_anything_else_fails_the_download():
    assert states(of(told(FAILED, 1, check="python", reason="none")).stages)["downloaded"] == "failed"


def test_a_later_run_that_goes_on_makes_the_failure_history():
    found = of(told(FAILED, 1, check="disk", reason="full"), told(DOWNLOADED, 60))
    assert found.hosts[0].failure is None
    assert states(found.stages)["downloaded"] == "reached"
    assert states(found.stages)["installed"] == "waiting"


def test_a_run_that_fails_on_a_host_that_is_connected_is_told_without_undoing_anything():
    found = of(told(DOWNLOADED, 1), told(INSTALLED, 2), told(ENROLLED, 3), told(FIRST_METRIC, 4), told(FAILED, 99, check="download"))
    assert set(states(found.stages).values()) == {"reached"}
    assert found.hosts[0].failure.check == "download"
    assert not found.complete


def test_stages_that_nobody_told_of_are_passed_once_a_later_one_is_reached():
    found = states(of(told(ENROLLED, 3)).stages)
    assert (found["downloaded"], found["installed"], found["enrolled"], found["first_metric"]) == ("passed", "passed", "reached", "waiting")


@pytest.mark.parametrize("agent_type", ["docker", "kubernetes"])
def test_types_without_an_installer_that_tells_have_no_such_stages(agent_type):
    assert list(states(of(agent_type=agent_type).stages)) == ["issued", "enrolled", "first_metric"]
    assert "downloaded" in states(of(told(DOWNLOADED, 1), agent_type=agent_type).stages), "unless one tells after all"


def test_each_host_has_its_own_funnel_and_the_furthest_one_stands_for_all():
    found = of(told(FAILED, 9, host="web-2", check="systemd"), told(ENROLLED, 3), told(FIRST_METRIC, 4))
    assert [host.host for host in found.hosts] == ["web-2", "web-1"]
    assert states(found.stages)["first_metric"] == "reached"
    assert not found.complete


steps = st.builds(
    ToldStep,
    st.sampled_from(DeploymentStep),
    st.sampled_from(["", "a", "b"]),
    st.integers(0, 5).map(lambda n: ISSUED + timedelta(seconds=n)),
    st.text(max_size=3),
    st.text(max_size=3),
)


@given(st.lists(steps, max_size=12), st.sampled_from(["server", "docker"]))
def test_whatever_is_told_the_stages_read_from_left_to_right(told_steps, agent_type):
    found = of(*told_steps, agent_type=agent_type)
    for host in found.hosts:
        order = [stage.state for stage in host.stages]
        reached = [place for place, state in enumerate(order) if state is StageState.REACHED]
        assert order[0] is StageState.REACHED
        assert order.count(StageState.FAILED) <= 1
        assert all(state in (StageState.REACHED, StageState.PASSED) for state in order[: reached[-1]])
        assert all(state in (StageState.WAITING, StageState.FAILED) for state in order[reached[-1] + 1 :])
        assert (StageState.FAILED not in order) or host.failure is not None
    assert {host.host for host in found.hosts} == {one.host for one in told_steps}
