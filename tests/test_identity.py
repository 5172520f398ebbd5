from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.core import files, machine
from connectors.core.errors import StateError
from connectors.core.identity import Credential, StateDirectory, token_digest, uuid7, uuid_text
from connectors.core.machine import Machine, machine_fingerprint, this_machine
from connectors.core.secret import Secret

ROOT = Path(__file__).resolve().parent.parent
HERE, THERE = (Machine(each * 64, each * 64, each * 64) for each in "ab")


@pytest.fixture
def state(tmp_path):
    made = StateDirectory(tmp_path / "state", lambda: 1_700_000_000.0)
    yield made
    made.close()


@given(now=st.floats(0, 1e11), entropy=st.binary(min_size=10, max_size=10))
def test_new_identities_are_valid_uuids_of_version_seven_ordered_by_time(now, entropy):
    made = uuid.UUID(uuid7(now, lambda _: entropy))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == int(now * 1000) % (1 << 48)
    assert uuid_text(made.bytes) == str(made)


def test_an_identity_is_kept_between_runs(state):
    first, events = state.identity(HERE)
    again, more = state.identity(HERE)
    assert first == again
    assert (events, more) == ([], [])
    assert uuid.UUID(first.instance_id).bytes == first.uid


def test_a_copied_state_directory_gives_a_new_identity_and_says_so(state):
    old, _ = state.identity(HERE)
    state.keep_credential(Credential("https://p", "d", Secret("secret-of-the-original")))
    new, (event,) = state.identity(THERE)
    assert new.instance_id != old.instance_id
    assert event.name == "irca.agent.identity.cloned"
    assert event.attributes["irca.agent.identity.old_id"] == old.instance_id
    kept = state.credential("https://p", "d")
    assert not kept.current, "nothing is sent under the original's credential"
    assert kept.copied.reveal() == "secret-of-the-original", "it is good for asking for one of its own"
    assert state.identity(THERE) == (new, [])


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{}", b'{"instance_id": "x", "fingerprint": "y", "created_at": 1}', b"null"])
def test_a_damaged_identity_is_quarantined_and_said(state, content):
    (state.path / "identity.json").write_bytes(content)
    fresh, (event,) = state.identity(HERE)
    assert event.name == "irca.agent.identity.quarantined"
    assert (state.path / "identity.json.corrupt-1700000000").read_bytes() == content
    assert state.identity(HERE) == (fresh, [])


def test_a_fingerprint_that_is_no_digest_counts_as_damage(state):
    known, _ = state.identity(HERE)
    (state.path / "identity.json").write_text(json.dumps({"instance_id": known.instance_id, "fingerprint": "short", "created_at": 1}))
    assert state.identity(HERE)[1][0].name == "irca.agent.identity.quarantined"


def test_the_platforms_new_uuid_is_kept(state):
    first, _ = state.identity(HERE)
    uid = uuid.uuid4()
    adopted = state.adopt(first, uid.bytes)
    assert adopted.instance_id == str(uid)
    assert state.identity(HERE) == (adopted, [])


def test_a_credential_is_readable_for_its_owner_only_whatever_the_umask(state):
    before = os.umask(0)
    try:
        state.keep_credential(Credential("https://p", "d", Secret("one"), Secret("two")))
    finally:
        os.umask(before)
    path = state.path / "credential"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    kept = state.credential("https://p", "d")
    assert (kept.current.reveal(), kept.candidate.reveal()) == ("one", "two")
    assert path.stat().st_mode & 0o777 == 0o600
    assert "one" not in repr(kept)
    state.forget_credential()
    state.forget_credential()
    assert not state.credential("https://p", "d").current


def test_a_credential_is_never_shown_to_another_platform_or_used_under_another_token(state):
    state.keep_credential(Credential("https://p", "d", Secret("one")))
    assert not state.credential("https://other", "d").current
    assert not state.credential("https://p", "e").current


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b"\xff"])
def test_a_damaged_credential_counts_as_none(state, content):
    (state.path / "credential").write_bytes(content)
    assert not state.credential("https://p", "d").current


def test_a_second_agent_on_the_same_state_directory_is_kept_out(state):
    with pytest.raises(StateError, match=rf"another agent \(process {os.getpid()}\) is running on"):
        StateDirectory(state.path, lambda: 0.0)
    state.close()
    StateDirectory(state.path, lambda: 0.0).close()


def test_the_lock_goes_with_a_killed_process(tmp_path):
    program = (
        "from pathlib import Path; from connectors.core.identity import StateDirectory;"
        f" state = StateDirectory(Path({str(tmp_path)!r}), lambda: 0.0); print('ready', flush=True); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    with pytest.raises(StateError, match=f"process {process.pid}"):
        StateDirectory(tmp_path, lambda: 0.0)
    process.kill()
    process.communicate()
    StateDirectory(tmp_path, lambda: 0.0).close()


def test_a_directory_that_cannot_be_made_or_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be made: Not a directory"):
        StateDirectory(tmp_path / "file" / "state", lambda: 0.0)
    (tmp_path / "taken" / "agent.lock").mkdir(parents=True)
    with pytest.raises(StateError, match="cannot be written: Is a directory"):
        StateDirectory(tmp_path / "taken", lambda: 0.0)


def test_files_that_are_directories_are_clear_errors(state):
    for name in ("identity.json", "credential"):
        (state.path / name).mkdir()
    with pytest.raises(StateError, match=r"identity\.json cannot be read"):
        state.identity(HERE)
    with pytest.raises(StateError, match=r"credential cannot be read"):
        state.credential("https://p", "d")
    with pytest.raises(StateError, match="cannot be written"):
        state.keep_credential(Credential("https://p", "d"))
    with pytest.raises(StateError, match="cannot be removed"):
        state.forget_credential()


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomically(path, b"old")

    def full(descriptor, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_moved_aside_in_one_second_get_numbers(tmp_path):
    names = []
    for _ in range(3):
        (tmp_path / "x").write_text("")
        names.append(files.move_aside(tmp_path / "x", 5.9).name)
    assert names == ["x.corrupt-5", "x.corrupt-5-1", "x.corrupt-5-2"]


def test_the_fingerprint_is_stable_and_a_digest():
    assert machine_fingerprint(environ={}) == machine_fingerprint(environ={})
    assert re.fullmatch("[0-9a-f]{64}", machine_fingerprint(environ={}))


def test_the_environment_goes_before_the_types_answer_and_that_before_the_machines():
    own = machine_fingerprint(environ={})
    named = machine_fingerprint("node-uid", {})
    given_ = machine_fingerprint("node-uid", {"AGENT_MACHINE_ID": "pod-7"})
    assert len({own, named, given_}) == 3
    assert machine_fingerprint(" pod-7 ", {}) == given_


@pytest.fixture
def host(monkeypatch):
    """Sets what this machine is: its id, name, physical cards and container; gives the machine that this makes."""

    def make(own="a" * 32, name="web-1", cards=("52:54:00:00:00:01",), container=""):
        monkeypatch.setattr(machine, "_linux_machine_id", lambda: own)
        monkeypatch.setattr(machine.socket, "gethostname", lambda: name)
        monkeypatch.setattr(machine, "_card_addresses", lambda platform: cards)
        monkeypatch.setattr(machine, "_container_id", lambda: container)
        return this_machine(environ={}, platform="linux")

    return make


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"name": "web-2"}, id="renamed"),
        pytest.param({"cards": ("52:54:00:00:00:09",)}, id="another card"),
        pytest.param({"cards": ("52:54:00:00:00:01", "52:54:00:00:00:02"), "name": "web-2"}, id="renamed, with a card more"),
        pytest.param({"cards": ()}, id="without its card"),
    ],
)
def test_a_host_that_was_renamed_or_got_another_card_is_the_same_machine(state, host, changed):
    before, _ = state.identity(host())
    state.keep_credential(Credential("https://p", "d", Secret("own")))
    after, events = state.identity(host(**changed))
    assert (after.instance_id, after.fingerprint) == (before.instance_id, before.fingerprint)
    assert events == []
    assert state.credential("https://p", "d").current


def test_a_host_may_change_one_thing_after_the_other(state, host):
    first, _ = state.identity(host())
    state.identity(host(name="web-2"))
    last, events = state.identity(host(name="web-2", cards=("52:54:00:00:00:09",)))
    assert (last.instance_id, events) == (first.instance_id, [])


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"name": "web-2", "cards": ("52:54:00:00:00:02",)}, id="a cloned virtual machine"),
        pytest.param({"own": "b" * 32}, id="a machine with the name of the one before"),
        pytest.param({"name": "1f0c", "cards": (), "container": "c" * 64}, id="a container of the machine's image"),
    ],
)
def test_a_copy_with_nothing_of_the_originals_own_is_another_machine(state, host, changed):
    original, _ = state.identity(host())
    copy, (event,) = state.identity(host(**changed))
    assert copy.instance_id != original.instance_id
    assert copy.fingerprint != original.fingerprint
    assert event.name == "irca.agent.identity.cloned"


@pytest.mark.parametrize("own", ["a" * 32, ""], ids=["with the image's machine id", "without machine id"])
def test_containers_of_one_committed_image_are_told_apart_and_one_that_is_restarted_is_not(state, host, own):
    first, _ = state.identity(host(own=own, name="0a1b", container="1" * 64))
    assert state.identity(host(own=own, name="0a1b", container="1" * 64)) == (first, [])
    recreated, events = state.identity(host(own=own, name="0a1b", container="2" * 64))
    assert (recreated.instance_id, events) == (first.instance_id, []), "its volume and its name are what it was given"
    copy, (event,) = state.identity(host(own=own, name="9f8e", container="3" * 64))
    assert copy.fingerprint != first.fingerprint
    assert event.name == "irca.agent.identity.cloned"


def test_containers_with_one_name_and_no_machine_id_are_two_machines(host):
    first, second = (host(own="", name="web", cards=(), container=each * 64) for each in "12")
    assert first.fingerprint != second.fingerprint


def test_an_identity_from_before_there_were_marks_is_kept_and_completed(state, host):
    now = host()
    old = {"instance_id": str(uuid.uuid4()), "fingerprint": now.former, "created_at": 1.0}
    (state.path / "identity.json").write_text(json.dumps(old))
    kept, events = state.identity(now)
    assert (kept.instance_id, events) == (old["instance_id"], [])
    renamed, events = state.identity(host(name="web-2"))
    assert (renamed.instance_id, renamed.fingerprint, events) == (kept.instance_id, now.former, [])


def test_a_container_without_machine_id_keeps_its_identity_from_before_there_were_marks(state, host):
    now = host(own="", name="0a1b", container="1" * 64)
    assert now.fingerprint != now.former
    old = {"instance_id": str(uuid.uuid4()), "fingerprint": now.former, "created_at": 1.0}
    (state.path / "identity.json").write_text(json.dumps(old))
    assert state.identity(now)[0].instance_id == old["instance_id"]


def test_marks_that_cannot_be_written_keep_nobody_from_starting(state, host, monkeypatch):
    before, _ = state.identity(host())

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("connectors.core.identity.write_atomically", full)
    after, events = state.identity(host(name="web-2"))
    assert (after.instance_id, events) == (before.instance_id, [])


def test_an_adopted_identity_keeps_what_the_machine_is_known_by(state, host):
    first, _ = state.identity(host())
    adopted = state.adopt(first, uuid.uuid4().bytes)
    assert state.identity(host(name="web-2"))[0].instance_id == adopted.instance_id


def test_a_copy_of_a_copy_that_never_enrolled_keeps_what_it_was_copied_with(state):
    state.identity(HERE)
    state.keep_credential(Credential("https://p", "d", Secret("secret-of-the-original")))
    state.identity(THERE)
    state.identity(HERE)
    assert state.credential("https://p", "d").copied.reveal() == "secret-of-the-original"


def test_a_copied_credential_that_is_damaged_is_forgotten(state):
    state.identity(HERE)
    (state.path / "credential").write_text("not json")
    state.identity(THERE)
    assert not (state.path / "credential").exists()


def test_a_container_is_known_by_what_its_runtime_mounted(tmp_path):
    mounts = tmp_path / "mountinfo"
    key = "ab" * 32
    lines = {
        "docker": f"743 735 8:1 /var/lib/docker/containers/{key}/hostname /etc/hostname rw - ext4 /dev/sda1 rw",
        "containerd": f"743 735 8:1 /lib/io.containerd.grpc.v1.cri/sandboxes/{key}/hostname /etc/hostname rw - ext4 /dev/sda1 rw",
        "podman": f"7 7 0:24 /containers/overlay-containers/{key}/userdata/hosts /etc/hosts rw - tmpfs tmpfs rw",
    }
    for line in lines.values():
        mounts.write_text(f"735 700 0:50 / / rw - overlay overlay rw\n{line}\n")
        assert machine._container_id(mounts) == key
    mounts.write_text(f"90 20 0:41 / /var/lib/docker/containers/{key}/mounts/shm rw - tmpfs shm rw\nshort\n")
    assert machine._container_id(mounts) == "", "the host of a container is none"
    assert machine._container_id(tmp_path / "missing") == ""


def test_only_physical_cards_count(tmp_path):
    for name, address in (("eth0", "52:54:00:00:00:01"), ("veth1", "0e:00:00:00:00:01"), ("ib0", "00:00:00:00:00:00")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "address").write_text(f"{address}\n")
    for name in ("eth0", "ib0", "wlan0"):
        (tmp_path / name / "device").mkdir(parents=True)
    assert list(machine._card_addresses("linux", tmp_path)) == ["52:54:00:00:00:01"]
    assert list(machine._card_addresses("linux", tmp_path / "missing")) == []


def test_what_names_the_machine_has_no_marks(monkeypatch):
    monkeypatch.setattr(uuid, "getnode", lambda: 0x0242AC110002)
    assert this_machine("engine:X", {}).marks == frozenset()
    assert this_machine("engine:X", {}).fingerprint == machine_fingerprint("engine:X", {})
    assert this_machine(environ={}, platform="win32").marks, "a name and a card"


def test_a_linux_without_machine_id_goes_by_its_network_card(monkeypatch):
    monkeypatch.setattr(machine, "_linux_machine_id", lambda: "")
    monkeypatch.setattr(uuid, "getnode", lambda: 0x0242AC110002)
    first = machine_fingerprint(environ={}, platform="linux")
    monkeypatch.setattr(uuid, "getnode", lambda: 0x0242AC110003)
    assert machine_fingerprint(environ={}, platform="linux") != first
    monkeypatch.setattr(uuid, "getnode", lambda: 1 << 40 | 5)  # a random stand-in: it would change with every start
    random_card = machine_fingerprint(environ={}, platform="linux")
    monkeypatch.setattr(uuid, "getnode", lambda: 1 << 40 | 6)
    assert machine_fingerprint(environ={}, platform="linux") == random_card


def test_macos_and_windows_go_by_their_own_identities(monkeypatch):
    answer = subprocess.CompletedProcess([], 0, stdout='  "IOPlatformUUID" = "F00D-1"\n')
    monkeypatch.setattr(machine.subprocess, "run", lambda *a, **k: answer)
    assert machine._macos_platform_uuid() == "F00D-1"
    first = machine_fingerprint(environ={}, platform="darwin")
    monkeypatch.setattr(machine.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess([], 0, stdout=""))
    assert machine._macos_platform_uuid() == ""
    assert machine_fingerprint(environ={}, platform="darwin") != first
    assert machine_fingerprint(environ={}, platform="win32") != first


def test_a_token_is_recognised_by_a_digest_that_does_not_give_it_away():
    assert token_digest("agent_prod_x") == token_digest("agent_prod_x") != token_digest("agent_prod_y")
    assert "prod" not in token_digest("agent_prod_x")
