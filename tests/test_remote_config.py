from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.core import generation
from connectors.core.errors import ConfigError
from connectors.core.opamp import ConfigOffer, ConfigState
from connectors.core.remote_config import (
    REMOTE_CONFIG_FILE,
    Candidate,
    Overlay,
    RemoteConfig,
    Standing,
    Trial,
)
from connectors.core.telemetry import CollectorResult
from tests.configured_agent import APPLIED, APPLYING, FAILED, ConfigurationDesk, TrialAgent, TrialConfig, options, running
from tests.fake_platform import FakePlatform

ROOT = Path(__file__).resolve().parent.parent
sockets = pytest.mark.sockets


def offer(values: object, digest: bytes = b"h1") -> ConfigOffer:
    return ConfigOffer(digest, {"agent.json": json.dumps(values).encode()})


def remote(tmp_path: Path, local: TrialConfig | None = None, check=lambda _config: None) -> RemoteConfig:
    return RemoteConfig(tmp_path, local or TrialConfig(), check, lambda: 1000.0)


# Laying options over others


def test_an_overlay_changes_what_it_names_and_nothing_else():
    local = TrialConfig(log_level="debug", value=2.0, labels={"team": "a"})
    laid = local.overlaid({"value": 3, "labels": {"team": "b"}})
    assert (laid.value, laid.labels, laid.log_level) == (3.0, {"team": "b"}, "debug")
    assert local.value == 2.0


def test_locked_options_stay_as_the_host_set_them_but_must_be_valid():
    local = TrialConfig(value=2.0, locked_options=("value",))
    laid = local.overlaid({"value": 3, "level": 4})
    assert (laid.value, laid.level) == (2.0, 4)
    with pytest.raises(ConfigError, match="value must be a number"):
        local.overlaid({"value": "x"})


@pytest.mark.parametrize("key", ["state_dir", "ca_file", "locked_options", "custom_prometheus_hosts", "where"])
def test_what_belongs_to_the_host_or_the_deployment_cannot_be_set_remotely(key):
    value = [] if key in ("locked_options", "custom_prometheus_hosts") else "x"
    with pytest.raises(ConfigError, match=f"{key} can only be set where the agent is deployed") as caught:
        TrialConfig().overlaid({key: value})
    assert caught.value.field == key


@pytest.mark.parametrize("key", ["agent_token", "platform_url", "custom_exec", "command", "token_file"])
def test_what_is_no_option_cannot_be_set_remotely(key):
    with pytest.raises(ConfigError, match=f"unknown option '{key}'"):
        TrialConfig().overlaid({key: "x"})


def test_no_type_lets_remote_configuration_move_it_to_another_engine_or_kubelet():
    from connectors.docker.config import DockerAgentConfig
    from connectors.kubernetes.config import K8sAgentConfig

    assert not DockerAgentConfig.options()["docker_host"].remote
    for name in ("view", "lease_name", "kubelet_address", "kubelet_ca_file", "kubelet_insecure"):
        assert not K8sAgentConfig.options()[name].remote


# Where it stands, on disk


def test_an_offer_is_a_candidate_on_disk_before_it_is_tried(tmp_path):
    config = remote(tmp_path).offered(offer({"value": 5}), ["two"])
    assert config is not None
    assert config.value == 5.0
    path = tmp_path / REMOTE_CONFIG_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    kept = json.loads(path.read_text())
    assert kept == {
        "good": None,
        "candidate": {"hash": b"h1".hex(), "values": {"value": 5}, "failing": ["two"], "starts": 1},
        "refusal": None,
    }


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"level": 10}', "level must be at most 9, not 10"),
        (b'{"colour": 1}', "unknown option 'colour'"),
        (b'{"state_dir": "/tmp"}', "state_dir can only be set"),
        (b"{", "agent.json is not JSON"),
        (b"[" * 100_000, "agent.json is not JSON"),
        (b"[1]", "must hold an object"),
        (b"\xff", "agent.json is not JSON"),
    ],
)
def test_what_is_not_valid_is_refused_with_the_reason_and_nothing_is_tried(tmp_path, body, reason):
    made = remote(tmp_path)
    assert made.offered(ConfigOffer(b"h1", {"agent.json": body})) is None
    assert (made.status.hash, made.status.state) == (b"h1", ConfigState.FAILED)
    assert reason in made.status.reason
    assert made.candidate is None


def test_a_configuration_without_the_agents_file_is_refused_and_one_without_files_takes_all_back(tmp_path):
    made = remote(tmp_path)
    assert made.offered(ConfigOffer(b"h1", {"other.yaml": b""})) is None
    assert made.status.reason == "the offered configuration has no file agent.json"
    assert made.offered(ConfigOffer(b"h2", {})) == TrialConfig()
    assert made.judged(made.candidate, "") is None
    assert made.status.state is ConfigState.APPLIED


def test_what_the_agent_cannot_work_with_is_refused_with_the_option(tmp_path):
    def check(config):
        raise ConfigError("there is no such thing", field="value")

    made = remote(tmp_path, check=check)
    assert made.offered(offer({"value": 2})) is None
    assert made.status.reason == "value: there is no such thing"


def test_what_was_refused_is_not_tried_again_until_it_changes(tmp_path):
    made = remote(tmp_path)
    made.offered(offer({"value": 2}))
    assert made.judged(made.candidate, "two: it is sick") == TrialConfig()
    assert made.offered(offer({"value": 2})) is None
    again = remote(tmp_path)
    assert again.begin() == TrialConfig()
    assert again.offered(offer({"value": 2})) is None
    assert again.status.reason == "two: it is sick"
    assert again.offered(offer({"value": 2}, b"h2")) is not None


def test_after_a_failure_the_last_good_one_is_back_and_may_be_offered_again(tmp_path):
    made = remote(tmp_path)
    made.offered(offer({"value": 2}))
    made.judged(made.candidate, "")
    made.offered(offer({"value": 3}, b"h2"))
    back = made.judged(made.candidate, "bad")
    assert back is not None
    assert back.value == 2.0
    assert made.status.state is ConfigState.FAILED
    assert made.offered(offer({"value": 2})) is None
    assert (made.status.hash, made.status.state) == (b"h1", ConfigState.APPLIED)


def test_another_offer_takes_the_place_of_one_on_trial_and_a_late_verdict_on_that_says_nothing(tmp_path):
    made = remote(tmp_path)
    made.offered(offer({"value": 2}))
    late = made.candidate
    config = made.offered(offer({"value": 3}, b"h2"))
    assert config is not None
    assert config.value == 3.0
    assert made.judged(late, "bad") is None
    assert made.status == made.status.__class__(b"h2", ConfigState.APPLYING)
    assert made.offered(offer({"level": 99}, b"h3")) == TrialConfig(), "what was on trial is left for the last good one"


def test_going_back_to_the_good_one_ends_a_trial(tmp_path):
    made = remote(tmp_path)
    made.offered(offer({"value": 2}))
    made.judged(made.candidate, "")
    made.offered(offer({"value": 3}, b"h2"))
    back = made.offered(offer({"value": 2}))
    assert back is not None
    assert back.value == 2.0
    assert made.status.state is ConfigState.APPLIED


def test_a_candidate_that_was_never_proven_is_tried_once_more_and_then_dropped(tmp_path):
    made = remote(tmp_path)
    made.offered(offer({"value": 2}), ["two"])
    second = remote(tmp_path)
    assert second.begin().value == 2.0
    assert second.candidate == Candidate(Overlay(b"h1", {"value": 2}), frozenset({"two"}), 2)
    third = remote(tmp_path)
    assert third.begin() == TrialConfig()
    assert third.status.state is ConfigState.FAILED
    assert third.status.reason == "the agent ended 2 times while it was tried"
    assert remote(tmp_path).begin() == TrialConfig()


def test_what_was_good_but_no_longer_fits_is_refused_and_the_local_configuration_counts(tmp_path):
    made = remote(tmp_path)
    made.offered(offer({"value": 2}))
    made.judged(made.candidate, "")
    document = json.loads((tmp_path / REMOTE_CONFIG_FILE).read_text())
    document["good"]["values"] = {"an_option_of_another_version": 1}
    (tmp_path / REMOTE_CONFIG_FILE).write_text(json.dumps(document))
    later = remote(tmp_path)
    assert later.begin() == TrialConfig()
    assert later.status.state is ConfigState.FAILED
    assert "an_option_of_another_version" in later.status.reason


def test_a_candidate_that_no_longer_fits_at_the_start_gives_way_to_the_good_one(tmp_path):
    made = remote(tmp_path)
    made.offered(offer({"value": 2}))
    made.judged(made.candidate, "")
    made.offered(offer({"value": 3}, b"h2"))

    def check(config):
        if config.value == 3.0:
            raise ConfigError("not any more", field="value")

    later = remote(tmp_path, check=check)
    assert later.begin().value == 2.0
    assert (later.status.hash, later.status.reason) == (b"h2", "value: not any more")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"good": 1, "candidate": null, "refusal": null}', b"\xff"])
def test_a_damaged_file_is_set_aside(tmp_path, content):
    (tmp_path / REMOTE_CONFIG_FILE).write_bytes(content)
    made = remote(tmp_path)
    assert made.begin() == TrialConfig()
    assert made.status.state is ConfigState.UNSET
    assert (tmp_path / f"{REMOTE_CONFIG_FILE}.corrupt-1000").read_bytes() == content


def test_a_file_that_cannot_be_read_or_written_leaves_the_local_configuration_in_use(tmp_path):
    (tmp_path / REMOTE_CONFIG_FILE).mkdir()
    made = remote(tmp_path)
    assert made.begin() == TrialConfig()
    assert made.offered(offer({"value": 2})) is None
    assert made.status.reason == "it could not be kept in the state directory"


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("offer"), st.integers(0, 3), st.booleans()),
            st.tuples(st.just("verdict"), st.booleans()),
            st.just(("start",)),
        ),
        max_size=12,
    )
)
def test_whatever_happens_what_is_good_was_proven_and_the_disk_knows_it(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("state")
    made, proven = remote(folder), {None}
    made.begin()
    for step in steps:
        if step[0] == "offer":
            made.offered(offer({"level": step[1] if step[2] else 99}, f"{step[1]}{step[2]}".encode()))
        elif step[0] == "verdict":
            if step[1] and made.candidate:
                proven.add(made.candidate.overlay.hash)
            made.judged(made.candidate, "" if step[1] else "bad")
        else:
            made = remote(folder)
            made.begin()
        good = made._standing.good
        assert (good and good.hash) in proven
        assert remote(folder)._standing == made._standing


def test_a_standing_without_anything_tells_nothing():
    assert Standing().status.state is ConfigState.UNSET
    assert Standing().proven() == Standing()


# The trial


def test_a_trial_is_open_until_every_part_was_heard():
    trial = Trial(["collect", "custom/a"], frozenset(), 10.0)
    assert trial.verdict(0.0) is None
    trial.heard("collect", [CollectorResult("one", 0.1)])
    assert trial.verdict(9.0) is None
    trial.heard("custom/a", [CollectorResult("custom/a", 0.1)])
    assert trial.verdict(99.0) == ""


def test_a_new_failure_ends_it_and_an_old_one_does_not():
    trial = Trial(["collect"], frozenset({"one"}), 10.0)
    trial.heard("collect", [CollectorResult("one", 0.1, "as ever"), CollectorResult("two", 0.1, "it is sick")])
    assert trial.verdict(0.0) == "two: it is sick"
    tolerant = Trial(["collect"], frozenset({"one"}), 10.0)
    tolerant.heard("collect", [CollectorResult("one", 0.1, "as ever")])
    assert tolerant.verdict(0.0) == ""


def test_what_is_not_heard_in_time_fails_by_name():
    assert Trial(["b", "a"], frozenset(), 10.0).verdict(10.0) == "a, b: not done in time"


# A running agent


@pytest.fixture
def platform():
    made = FakePlatform()
    yield made
    made.down()


@pytest.fixture
def desk(platform):
    return ConfigurationDesk(platform)


def agent_of(platform, tmp_path, **more):
    return TrialAgent(platform.url, "agent_test_token", options(tmp_path / "state", **more))


@sockets
def test_a_good_configuration_is_applied_told_and_kept(platform, desk, tmp_path):
    agent = agent_of(platform, tmp_path)
    with running(agent) as codes:
        platform.wait(lambda: 1.0 in platform.values("test.value"))
        desk.push(b"h1", {"value": 7, "log_level": "warning", "request_timeout": 3, "heartbeat_interval": 6, "spool_max_age": 1000})
        assert desk.wait(b"h1", APPLIED) == ""
        assert [status[1] for status in desk.statuses] == [APPLYING, APPLIED]
        assert 7.0 in platform.values("test.value")
        assert (desk.effective["value"], desk.effective["log_level"]) == (7.0, "warning")
        assert agent.runtime._transport.timeout == 3.0
        sent = len(platform.values("test.value"))
        platform.wait(lambda: len(platform.values("test.value")) > sent)
        assert platform.values("test.value")[-1] == 7.0
    assert codes == [0]
    assert desk.offered <= 2
    again = agent_of(platform, tmp_path)
    with running(again):
        begun = len(platform.messages)
        platform.wait(lambda: len(platform.messages) > begun)
        status = platform.messages[begun][1].remote_config_status
        assert (status.last_remote_config_hash, status.status) == (b"h1", APPLIED)
        assert desk.effective["value"] == 7.0


@sockets
def test_a_configuration_under_which_a_collector_fails_is_rolled_back_and_explained(platform, desk, tmp_path):
    agent = agent_of(platform, tmp_path)
    with running(agent):
        desk.push(b"h1", {"value": 5})
        desk.wait(b"h1", APPLIED)
        desk.push(b"h2", {"value": 6, "sick": ["two"]})
        assert desk.wait(b"h2", FAILED) == "two: it is sick"
        platform.wait(lambda: desk.effective["value"] == 5.0)
        platform.wait(lambda: platform.values("test.value")[-1] == 5.0)
        desk.always, before = True, desk.offered
        platform.wait(lambda: desk.offered > before + 1)
        assert desk.told(b"h2", FAILED), "what failed is not tried again"
        assert agent.runtime.status().state == "healthy"


@sockets
def test_a_collector_that_failed_before_is_not_held_against_the_configuration(platform, desk, tmp_path):
    with running(agent_of(platform, tmp_path, sick=("one",))):
        platform.wait(lambda: platform.values("test.value") != [])
        desk.push(b"h1", {"value": 5})
        assert desk.wait(b"h1", APPLIED) == ""


@sockets
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"mode": "broken"}, "nothing works"),
        ({"mode": "dead"}, "watch: RuntimeError: the watch cannot go on"),
        ({"mode": "impossible"}, "there is no such mode"),
        ({"mode": "fragile"}, "a fault of the type's own"),
        ({"level": 12}, "level must be at most 9, not 12"),
        ({"custom_commands": ["rm"]}, "no command 'rm' is declared"),
        ({"custom_prometheus": {"meta": "http://169.254.169.254/latest"}}, "is not on loopback"),
    ],
)
def test_a_bad_configuration_fails_with_the_reason_and_the_agent_works_on(platform, desk, tmp_path, values, reason):
    agent = agent_of(platform, tmp_path)
    with running(agent) as codes:
        platform.wait(lambda: platform.values("test.value") != [])
        desk.push(b"h1", values)
        assert reason in desk.wait(b"h1", FAILED)
        sent = len(platform.values("test.value"))
        platform.wait(lambda: len(platform.values("test.value")) > sent + 1)
        assert agent.runtime.status().state == "healthy"
        assert not codes
    assert codes == [0]


@sockets
def test_a_configuration_that_collects_nothing_in_time_is_rolled_back(platform, desk, tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "PROVE_WITHIN", 0.5)
    with running(agent_of(platform, tmp_path)):
        desk.push(b"h1", {"mode": "hanging", "value": 9})
        assert desk.wait(b"h1", FAILED) == "collect: not done in time"
        time.sleep(4)
        assert 9.0 not in platform.values("test.value"), "what the old generation gathers late is not sent"


@sockets
def test_the_agent_that_is_replaced_lets_go_of_what_it_opened(platform, desk, tmp_path):
    before = TrialAgent.closed
    with running(agent_of(platform, tmp_path)):
        desk.push(b"h1", {"value": 5})
        desk.wait(b"h1", APPLIED)
        assert TrialAgent.closed == before + 1
    assert TrialAgent.closed == before + 2


@sockets
def test_an_offer_to_an_agent_that_does_not_run_yet_is_tried_when_it_does(platform, desk, tmp_path):
    agent = agent_of(platform, tmp_path)
    desk.push(b"h1", {"value": 5})
    assert agent.heartbeat()
    with running(agent):
        desk.wait(b"h1", APPLIED)
        platform.wait(lambda: 5.0 in platform.values("test.value"))


def process(platform, tmp_path):
    argv = [sys.executable, "-m", "tests.configured_agent", platform.url, str(tmp_path / "state")]
    return subprocess.Popen(argv, cwd=ROOT, env={"PATH": os.defpath}, stderr=subprocess.PIPE)


@sockets
def test_an_agent_killed_by_its_new_configuration_tries_it_once_more_and_then_drops_it(platform, desk, tmp_path):
    desk.push(b"h1", {"mode": "killed"})
    codes = []
    for _ in range(2):
        with process(platform, tmp_path) as killed:
            killed.communicate(timeout=30)
            codes.append(killed.returncode)
    assert codes == [-signal.SIGKILL] * 2
    with process(platform, tmp_path) as third:
        reason = desk.wait(b"h1", FAILED)
        platform.wait(lambda: 1.0 in platform.values("test.value"))
        third.terminate()
        third.communicate(timeout=30)
        assert third.returncode == 0
    assert reason == "the agent ended 2 times while it was tried"


@sockets
def test_an_agent_killed_from_outside_during_the_trial_proves_it_after_the_next_start(platform, desk, tmp_path):
    state = tmp_path / "state" / REMOTE_CONFIG_FILE
    with process(platform, tmp_path) as first:
        desk.push(b"h1", {"mode": "hanging", "value": 4})
        platform.wait(lambda: desk.told(b"h1", APPLYING))
        first.kill()
        first.communicate(timeout=30)
    assert json.loads(state.read_text())["candidate"]["starts"] == 1
    with process(platform, tmp_path) as second:
        assert desk.wait(b"h1", APPLIED) == ""
        second.terminate()
        second.communicate(timeout=30)
    assert json.loads(state.read_text())["good"]["values"]["value"] == 4
