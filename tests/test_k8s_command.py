"""The commands of the kubernetes agent type: what they say, run by a real shell with stubs; and what helm's failures mean."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest

from connectors._version import __version__
from connectors.agent_factory import AgentFactory
from connectors.core.errors import ConfigError, ControlError, PermissionRefusedError, RuntimeUnavailableError
from connectors.kubernetes import command, control
from connectors.kubernetes.command import TokenBy
from connectors.kubernetes.config import K8sAgentConfig
from connectors.kubernetes.image_reference import ImageReference, pull_policy, resolved

URL = "https://platform.example.com"
TOKEN = "agent_prod_'s3cr3t\\{,}"


def agent(url=URL, **config):
    return AgentFactory.create_agent("kubernetes", url, TOKEN, config)


@pytest.fixture
def run(tmp_path):
    """Runs a command with stubs: what each call of helm, kubectl and curl had as arguments, and on standard input."""
    for program in ("helm", "kubectl", "curl"):
        stub = tmp_path / program
        record = f"$({{ printf '%s\\n' \"$#\"; ls '{tmp_path}'; }} | cksum | tr -dc 0-9)"
        stub.write_text(
            f"#!/bin/sh\nf='{tmp_path}'/call-$$-{record}\nprintf '%s\\0' {program} \"$@\" >\"$f\"\n"
            "case \" $* \" in *' - '*|*' -'|*/dev/stdin*) cat >\"$f.in\";; esac\necho made: it\n"
        )
        stub.chmod(0o755)

    def run_command(text: str) -> list[tuple[list[str], str]]:
        environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        subprocess.run(["bash", "-c", text], env=environ, check=True, capture_output=True, timeout=30)
        found = []
        for call in sorted(tmp_path.glob("call-*"), key=lambda path: path.stat().st_mtime_ns):
            if call.suffix != ".in":
                given = call.with_name(call.name + ".in")
                found.append((call.read_text().split("\0")[:-1], given.read_text() if given.exists() else ""))
        return found

    return run_command


def test_the_token_reaches_helms_standard_input_whole(run):
    calls = run(command.deployment_command(URL, TOKEN, K8sAgentConfig(), TokenBy.STDIN))

    [(upgrade, given)] = [call for call in calls if call[0][1] == "upgrade"]
    assert json.loads(given) == {"token": TOKEN}
    assert upgrade[upgrade.index("--values") + 1] == "-"
    assert TOKEN not in " ".join(word for words, _ in calls for word in words)


def test_kubectl_makes_namespace_secret_and_objects(run):
    made = agent(namespace="ops", replicas=2)
    [text] = [text for title, text in made.get_alternatives() if title.startswith("kubectl instead")]

    calls = run(text)

    assert TOKEN not in " ".join(word for words, _ in calls for word in words)
    [(secret, given)] = [(words, given) for words, given in calls if "secret" in words]
    assert given == TOKEN
    assert {"incident-rca-agent", "--from-file=token=/dev/stdin", "ops"} <= set(secret)
    [url] = [words[3] for words, _ in calls if words[:3] == ["kubectl", "apply", "--filename"] and words[3] != "-"]
    assert url == f"{URL}/charts/manifests.yaml?namespace=ops&replicas=2"


def test_what_kubectl_made_it_removes_again(run):
    [text] = [text for title, text in agent(namespace="ops").get_alternatives() if "removes" in title]

    assert [words for words, _ in run(text)] == [
        ["kubectl", "delete", "--ignore-not-found", "--filename", f"{URL}/charts/manifests.yaml?namespace=ops"],
        ["kubectl", "--namespace", "ops", "delete", "--ignore-not-found", "secret", "incident-rca-agent"],
    ]


def test_a_private_authority_goes_along_whichever_way_the_agent_is_deployed(run):
    made = agent(ca_file="/etc/our ca.pem")
    calls = run(made.get_deployment_command())
    assert calls[0][0][-2:] == ["--ca-file", "/etc/our ca.pem"]
    assert "caBundle.pem=/etc/our ca.pem" in calls[-1][0]

    [text] = [text for title, text in made.get_alternatives() if title.startswith("kubectl instead")]
    calls = run(text)
    assert any("--from-file=ca.crt=/etc/our ca.pem" in words for words, _ in calls)
    [curl] = [words for words, _ in calls if words[0] == "curl"]
    assert curl == ["curl", "-fsSL", "--cacert", "/etc/our ca.pem", f"{URL}/charts/manifests.yaml?ca_config_map=incident-rca-agent-ca"]
    [text] = [text for title, text in made.get_alternatives() if "removes" in title]
    assert "delete --ignore-not-found configmap incident-rca-agent-ca" in text


def test_with_a_secret_of_ones_own_only_the_ways_without_the_token_are_left(run):
    made = agent(existing_secret="mine", namespace="ops")

    assert [title.partition(" ")[0].strip(":") for title, _ in made.get_alternatives()] == ["kubectl", "kubectl"]
    everything = "\n".join([made.get_deployment_command(), *(text for _, text in made.get_alternatives())])
    assert TOKEN not in everything
    assert "create secret" not in everything
    assert "existing_secret=mine" in everything
    assert "the Secret mine stay;" in made.get_instructions()


def test_every_deployment_option_is_a_value_of_the_chart():
    config = K8sAgentConfig.from_mapping(
        {
            "features": ["quotas", "secrets"],
            "node_view": True,
            "image": "r.example.com:5000/a/b:1@sha256:00",
            "image_pull_secrets": ["x"],
            "ca_config_map": "ca",
            "lease_name": "ours",
            "log_level": "debug",
        }
    )

    values = command.values(URL, "t", config)

    assert values["features"]["secrets"] is True
    assert {name for name, on in values["features"].items() if not on} == set(K8sAgentConfig().features) - {"quotas"}
    assert values["nodeView"] == {"enabled": True}
    assert values["image"] == {"repository": "r.example.com:5000/a/b", "tag": "1", "digest": "sha256:00"}
    assert values["imagePullSecrets"] == [{"name": "x"}]
    assert (values["caBundle"], values["leaseName"], values["config"]) == ({"configMap": "ca"}, "ours", {"log_level": "debug"})
    assert command.values(URL, "t", K8sAgentConfig()) == {"platformUrl": URL, "token": "t", "replicas": 1}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, f"push it to a registry of yours and provision with the option image=REGISTRY/incident-rca/agent:{__version__}"),
        ({"image": "r/a:1"}, "can pull the image r/a:1"),
        ({"features": ["secrets"]}, "read every Secret of the cluster"),
        ({"existing_secret": "mine"}, "create secret generic mine --from-file=token=/dev/stdin"),
        ({"ca_config_map": "ours"}, "create configmap ours --from-file=ca.crt=FILE"),
        ({"release_name": "rca"}, "deployment/rca-agent -- incident-rca-agent check"),
    ],
)
def test_the_instructions_say_what_this_configuration_needs(config, said):
    assert said in agent(**config).get_instructions()


def test_a_platform_that_pods_cannot_reach_is_told_before_the_command_is_run():
    assert "is the pod itself" in agent("http://localhost:8000").get_instructions()
    assert "is the pod itself" not in agent().get_instructions()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("", ("incident-rca/agent", "", "")),
        ("a", ("a", "", "")),
        ("r:5000/a", ("r:5000/a", "", "")),
        ("r:5000/a/b:1", ("r:5000/a/b", "1", "")),
        ("r/a:1@sha256:00", ("r/a", "1", "sha256:00")),
    ],
)
def test_an_images_name_is_taken_apart(name, parts):
    assert ImageReference.parse(name) == ImageReference(*parts)


def test_an_image_without_a_tag_is_the_products_version():
    assert resolved("r:5000/a", "1.2.3+x") == "r:5000/a:1.2.3-x"
    assert resolved("r/a:1@sha256:00", "1.2.3") == "r/a@sha256:00"
    assert (pull_policy(""), pull_policy("r/a")) == ("Never", "IfNotPresent")


def test_the_printed_command_is_one_that_a_person_can_read():
    lines = agent(namespace="ops", replicas=2).get_deployment_command().splitlines()
    assert max(map(len, lines)) < 120
    assert lines[-1].strip() == "--wait --timeout 3m"
    assert shlex.split(" ".join(line.rstrip("\\") for line in lines))


# What helm's failures mean


@pytest.mark.parametrize(
    ("says", "kind", "reason"),
    [
        (
            (
                'Error: clusterroles.rbac.authorization.k8s.io "ops:agent" is forbidden: user "jane" (groups=["dev"]) is attempting to '
                'grant RBAC permissions not currently held:\n{APIGroups:[""], Resources:["pods"], Verbs:["list" "watch"]}'
            ),
            PermissionRefusedError,
            "forbids jane to give the agent rights that jane does not have: {APIGroups",
        ),
        (
            (
                'Error: Unable to continue with install: ServiceAccount "rca-agent" in namespace "ops" exists and cannot be imported into '
                "the current release: invalid ownership metadata"
            ),
            ControlError,
            'ServiceAccount "rca-agent" is there already and belongs to another',
        ),
        ('Error: UPGRADE FAILED: "rca" has no deployed releases', ControlError, "never was deployed: helm uninstall it"),
        (
            "Error: resource Deployment/ops/rca not ready. status: InProgress\ncontext deadline exceeded",
            ControlError,
            "its pods are not ready",
        ),
        ("Error: another operation (install/upgrade/rollback) is in progress", ControlError, "helm uninstall where it was the first"),
        ("Error: Get: net/http: TLS handshake timeout", RuntimeUnavailableError, "no Kubernetes cluster answers"),
    ],
)
def test_what_helm_says_is_told_apart(says, kind, reason):
    error = control.explain(says, ["upgrade"])
    assert type(error) is kind
    assert reason in error.reason


def test_start_hands_helm_the_authority_and_says_when_it_cannot(tmp_path, monkeypatch):
    (tmp_path / "helm").write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >'{tmp_path}/argv'\ncat >'{tmp_path}/stdin'\n")
    (tmp_path / "helm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    pem = tmp_path / "ca.pem"
    pem.write_text("-----BEGIN CERTIFICATE-----\n")

    agent(ca_file=str(pem)).start()

    assert json.loads((tmp_path / "stdin").read_text())["caBundle"] == {"pem": pem.read_text()}
    assert f"--ca-file\n{pem}\n" in (tmp_path / "argv").read_text()
    pem.write_bytes(b"\xff\xfe")
    for path, why in ((pem, "not PEM text"), (tmp_path / "none", "No such file")):
        with pytest.raises(ConfigError, match=why) as caught:
            agent(ca_file=str(path)).start()
        assert caught.value.field == "ca_file"
