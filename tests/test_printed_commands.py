"""The printed commands, run by real shells with stubs for the programs they call, against what was meant."""

from __future__ import annotations

import base64
import inspect
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.agent_factory import AgentFactory
from connectors.kubernetes.command import values

SOCKET_GROUP = "998"
NASTY = [
    "",
    " ",
    "'",
    '"',
    "\\",
    "$HOME",
    "$(id)",
    "`id`",
    "a\nb",
    "a;b",
    "a|b",
    "*",
    "~",
    "!x",
    "{a,b}",
    "a,b=c",
    "[0]",
    "\\,",
    "é\u2019",
    "-x",
    "#",
]

text = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=30))
token = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
url_part = st.text(st.characters(min_codepoint=33, exclude_characters="?#@[]:/\\", exclude_categories=("C", "Z")), min_size=1, max_size=20)
url = st.builds(lambda host, path: f"https://{host}.example.com:8443/{path}", st.from_regex(r"[a-z0-9]{1,10}", fullmatch=True), url_part)
name = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True).map(lambda found: f"X_{found}")
label_key = st.from_regex(r"[a-z]([a-z0-9./-]{0,10}[a-z0-9])?", fullmatch=True)

many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

Run = Callable[[str], list[list[str]]]


@pytest.fixture(params=["bash", "sh"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Runs a command line and gives the argument vectors of the programs that it called, in order."""
    if not (shell := shutil.which(request.param)):
        pytest.skip(f"{request.param} is not installed")
    stubs, record = tmp_path / "bin", tmp_path / "record"
    stubs.mkdir()
    for program in ("curl", "docker", "helm", "kubectl"):
        _stub(stubs / program, f'printf \'%s\\0\' $# {program} "$@" >>"$RECORD"')
    _stub(stubs / "stat", f"echo {SOCKET_GROUP}")

    def run_command(command: str) -> list[list[str]]:
        record.unlink(missing_ok=True)
        environ = {"PATH": f"{stubs}:{os.defpath}", "RECORD": str(record), "HOME": "/nowhere", "LC_ALL": "C.UTF-8"}
        done = subprocess.run([shell, "-c", command], env=environ, cwd=tmp_path, capture_output=True, timeout=30, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["bin", "record"]
        return list(_calls(record.read_bytes().decode().split("\0")[:-1]))

    return run_command


def _calls(words: list[str]) -> Iterator[list[str]]:
    while words:
        count = int(words[0])
        yield words[1 : count + 2]
        words = words[count + 2 :]


def _stub(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def helm_set_string(argument: str) -> tuple[list[str], str]:
    """What helm reads from one ``--set-string`` argument: the key's path and the value (a backslash takes the next character as it is)."""
    path, part, characters = [], "", iter(argument)
    for character in characters:
        if character == "\\":
            part += next(characters)
        elif character in ".=":
            path.append(part)
            part = ""
            if character == "=":
                break
        else:
            assert character not in ",[]{}"
            part += character
    value = ""
    for character in characters:
        assert character not in ",{}[]", f"an unescaped {character} splits the value"
        value += next(characters) if character == "\\" else character
    return path, value


@many
@given(
    url=url,
    token=token,
    labels=st.dictionaries(text, text, max_size=3),
    extra_environment=st.dictionaries(name, text, max_size=3),
    extra_labels=st.dictionaries(label_key, text, max_size=3),
)
def test_the_docker_command_gives_docker_exactly_what_was_meant(run, url, token, labels, extra_environment, extra_labels):
    config = {"log_level": "debug", "labels": labels, "extra_environment": extra_environment, "extra_labels": extra_labels}
    agent = AgentFactory.create_agent("docker", url, token, config)

    [argv] = run(agent.get_deployment_command())

    assert argv[:5] == ["docker", "run", "-d", "--name", "incident-rca-agent"]
    assert argv[-1] == "incident-rca/agent:latest"
    options = list(itertools.pairwise(argv[5:-1]))
    environment = dict(value.split("=", 1) for flag, value in options if flag == "-e")
    assert environment.pop("PLATFORM_API_URL") == agent.platform_url
    assert environment.pop("AGENT_TOKEN") == token
    assert environment.pop("AGENT_TYPE") == "docker"
    assert {key: value for key, value in environment.items() if key in extra_environment} == extra_environment
    read_back = type(agent.config).from_environment(environment)
    assert (read_back.log_level, read_back.labels) == ("debug", labels)
    assert environment.keys() == extra_environment.keys() | {"LOG_LEVEL"} | ({"LABELS"} if labels else set())
    given_labels = dict(value.split("=", 1) for flag, value in options if flag == "--label")
    assert given_labels == {"io.incident-rca.agent-type": "docker", **extra_labels}
    assert ("--group-add", SOCKET_GROUP) in options
    assert ("-v", "/var/run/docker.sock:/var/run/docker.sock") in options
    assert ("--restart", "unless-stopped") in options


@many
@given(path=text.map(lambda t: "/" + "".join(c for c in t if c not in ',":' and c.isprintable())))
def test_paths_reach_docker_as_they_are(run, path):
    agent = AgentFactory.create_agent("docker", "https://p.example.com", "t", {"token_file": path, "docker_host": "tcp://proxy:2375"})

    [argv] = run(agent.get_deployment_command())

    assert f"type=bind,source={path},target=/run/secrets/incident-rca-token,readonly" in argv
    assert "AGENT_TOKEN_FILE=/run/secrets/incident-rca-token" in argv
    assert not [word for word in argv if word.startswith("AGENT_TOKEN=")]


@many
@given(url=url, token=token, labels=st.dictionaries(text, text, max_size=3), ca_file=text, replicas=st.integers(1, 50))
def test_the_helm_command_gives_helm_exactly_what_was_meant(run, url, token, labels, ca_file, replicas):
    config = {"namespace": "monitoring", "replicas": replicas, "labels": labels, "ca_file": ca_file, "node_view": True}
    agent = AgentFactory.create_agent("kubernetes", url, token, config)

    add, update, upgrade = run(agent.get_deployment_command())

    trust = ["--ca-file", ca_file] if ca_file else []
    assert add == ["helm", "repo", "add", "incident-rca", f"{agent.platform_url}/charts", "--force-update", *trust]
    assert update == ["helm", "repo", "update", "incident-rca"]
    assert upgrade[:5] == ["helm", "upgrade", "--install", "incident-rca", "incident-rca/incident-rca-agent"]
    assert upgrade[5:8] == ["--namespace", "monitoring", "--create-namespace"]
    assert upgrade[-3:] == ["--wait", "--timeout", "3m"]
    flags = list(zip(upgrade[8:-3:2], upgrade[9:-3:2], strict=True))
    strings = [helm_set_string(value) for flag, value in flags if flag == "--set-string"]
    read = {".".join(path): value for path, value in strings}
    assert read.pop("platformUrl") == agent.platform_url
    assert read.pop("token") == token
    assert [value for flag, value in flags if flag == "--set"] == [f"replicas={replicas}", "nodeView.enabled=true"]
    files = [helm_set_string(value) for flag, value in flags if flag == "--set-file"]
    assert files == ([(["caBundle", "pem"], ca_file)] if ca_file else [])
    environment = {path.removeprefix("config.").upper(): value for path, value in read.items()}
    read_back = type(agent.config).from_environment(environment)
    assert read_back.labels == labels


@many
@given(token=token, labels=st.dictionaries(text, text, max_size=3), ca_file=text)
def test_the_other_commands_for_a_cluster_keep_the_token_out_of_every_argument(run, token, labels, ca_file):
    token = f"agent_{token}"
    agent = AgentFactory.create_agent("kubernetes", "https://p.example.com", token, {"labels": labels, "ca_file": ca_file})

    by_title = dict(agent.get_alternatives())

    assert len(by_title) == 4
    for title, command in by_title.items():
        calls = run(command)
        assert not [word for call in calls for word in call if token in word]
        assert token not in title
        if "Helm" not in title and "kubectl" not in title:
            assert calls[-1][:4] == ["helm", "upgrade", "--install", "incident-rca"]


@pytest.mark.parametrize(
    ("agent_type", "config", "expected"),
    [
        (
            "docker",
            {"container_name": "my.agent"},
            [["docker", "stop", "my.agent"], ["docker", "rm", "--force", "my.agent"], ["docker", "volume", "rm", "--force", "my.agent"]],
        ),
        ("kubernetes", {"namespace": "ops", "release_name": "rca"}, [["helm", "uninstall", "rca", "--namespace", "ops"]]),
    ],
)
def test_the_uninstall_command_needs_no_token(run, agent_type, config, expected):
    agent = AgentFactory.create_agent(agent_type, "https://p.example.com", "token-123", config)

    assert "token-123" not in agent.get_uninstall_command()
    assert run(agent.get_uninstall_command()) == expected


def test_a_socket_elsewhere_is_mounted_and_its_group_is_asked_of_the_host(run):
    config = {"docker_host": "unix:///run/user/1000/it's-here"}
    agent = AgentFactory.create_agent("docker", "https://p.example.com", "t", config)

    [argv] = run(agent.get_deployment_command())

    path = "/run/user/1000/it's-here"
    assert argv[argv.index("-v") + 1] == f"{path}:{path}"
    assert argv[argv.index("--group-add") + 1] == SOCKET_GROUP
    assert f"DOCKER_HOST=unix://{path}" in argv


@pytest.mark.requires("helm")
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(token=token, labels=st.dictionaries(text, text, max_size=3))
def test_real_helm_reads_the_values_as_they_were_meant(tmp_path, token, labels):
    chart = tmp_path / "chart"
    (chart / "templates").mkdir(parents=True, exist_ok=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: probe\nversion: 0.0.1\n")
    (chart / "templates" / "values.yaml").write_text("values: {{ .Values | toJson | b64enc }}\n")
    config = {"labels": labels, "replicas": 3, "features": ["secrets"], "image": "r:5000/a:1", "image_pull_secrets": ["x", "y"]}
    agent = AgentFactory.create_agent("kubernetes", "https://p.example.com", token, config)
    last = agent.get_deployment_command().rpartition("&& \\\n")[2]
    command = last.replace("helm upgrade --install incident-rca incident-rca/incident-rca-agent", 'helm template x "$CHART"')
    command = command.replace("--create-namespace", "").replace("--wait --timeout 3m", "")

    done = subprocess.run(["bash", "-c", command], env={**os.environ, "CHART": str(chart)}, capture_output=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr.decode()
    assert _decoded(done.stdout.decode()) == values(agent.platform_url, token, agent.config)


def _decoded(rendered: str) -> dict[str, object]:
    encoded = next(line.partition(": ")[2] for line in rendered.splitlines() if line.startswith("values: "))
    return dict(json.loads(base64.b64decode(encoded)))


@pytest.mark.parametrize("agent_type", ["docker", "kubernetes"])
def test_the_readme_shows_the_command_that_its_example_prints(agent_type):
    readme = Path(inspect.getfile(AgentFactory.agent_class(agent_type))).with_name("README.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    [shown] = re.findall(r"```sh\n(.*?)```", readme, flags=re.DOTALL)

    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == shown
