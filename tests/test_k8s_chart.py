"""The chart of the kubernetes agent, rendered by the real helm: valid, least privileged, and the same as the manifests in Python.

``IRCA_TEST_UPDATE_GOLDEN=1`` writes the golden renders anew.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, get_args

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pod_security import violations

from connectors._version import __version__
from connectors.core.errors import ConfigError
from connectors.kubernetes.access import Access, needed
from connectors.kubernetes.artefacts import CHART_OWNED_OPTIONS
from connectors.kubernetes.chart_package import chart_directory, chart_version
from connectors.kubernetes.command import values
from connectors.kubernetes.config import Feature, K8sAgentConfig
from connectors.kubernetes.manifest_url import config_of, manifests_url
from connectors.kubernetes.manifests import manifests

CHART = chart_directory()
EXAMPLES = sorted(path.stem for path in (CHART / "examples").glob("*.yaml"))
GOLDEN = Path(__file__).parent / "fixtures" / "kubernetes" / "golden"
FEATURES = get_args(Feature)
URL = "https://platform.example.com"
TOKEN = "agent_prod_s3cr3t"
LEAST = {"platformUrl": URL, "token": TOKEN}
VERSIONS = sorted(
    {
        path.name.removeprefix("v").partition("-")[0]
        for path in (Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema").iterdir()
    },
    key=lambda version: [int(part) for part in version.split(".")],
)

helm = pytest.mark.requires("helm")


def run_helm(*words: str, given: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    document = None if given is None else json.dumps(given)
    return subprocess.run(["helm", *words], input=document, capture_output=True, text=True, timeout=60, check=False)


def template(given: dict[str, Any], *, kubernetes: str = "1.30.0", namespace: str = "ops", release: str = "incident-rca") -> str:
    done = run_helm("template", release, str(CHART), "-n", namespace, "--kube-version", kubernetes, "--values", "-", given=given)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(given: dict[str, Any], **options: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The objects by kind and name."""
    found = [each for each in yaml.safe_load_all(template(given, **options)) if each]
    objects = {(each["kind"], each["metadata"]["name"]): each for each in found}
    assert len(objects) == len(found)
    return objects


def refused(given: dict[str, Any]) -> str:
    done = run_helm("template", "incident-rca", str(CHART), "--values", "-", given=given)
    assert done.returncode != 0
    return done.stderr


def example(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CHART / "examples" / f"{name}.yaml").read_text()))


def container(workload: dict[str, Any]) -> dict[str, Any]:
    [only] = workload["spec"]["template"]["spec"]["containers"]
    return dict(only)


def environment(workload: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container(workload)["env"]}


def deployment(given: dict[str, Any], **options: str) -> dict[str, Any]:
    [found] = [each for (kind, _), each in render(given, **options).items() if kind == "Deployment"]
    return found


# What the chart is


def test_the_chart_has_the_products_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (chart_version(__version__),) * 2


def test_every_value_is_explained_where_it_stands_and_in_the_schema():
    lines = (CHART / "values.yaml").read_text().splitlines()
    bare = [line for before, line in itertools.pairwise(lines) if re.match(r" *[A-Za-z_]+:", line) and not before.lstrip().startswith("#")]
    assert bare == []
    assert _described(json.loads((CHART / "values.schema.json").read_text()), yaml.safe_load("\n".join(lines)), "") == []


def _described(schema: dict[str, Any], defaults: dict[str, Any], prefix: str) -> list[str]:
    """Values that the schema does not know, does not describe, or knows although they are not in the values file."""
    properties = schema["properties"]
    wrong = [prefix + name for name in (properties.keys() ^ defaults.keys()) - {"global"}]
    for name, inner in properties.items():
        if not inner.get("description", "").endswith("."):
            wrong.append(prefix + name)
        if inner.get("properties") and name != "config":
            assert inner["additionalProperties"] is False
            wrong += _described(inner, defaults[name], f"{prefix}{name}.")
    return wrong


def test_the_schema_knows_exactly_the_agents_options_and_features():
    properties = json.loads((CHART / "values.schema.json").read_text())["properties"]
    runtime = {option.name for option in K8sAgentConfig.options().values() if option.scope == "runtime"}
    assert properties["config"]["properties"].keys() == runtime - CHART_OWNED_OPTIONS, "make docs fills them in"
    assert tuple(properties["features"]["properties"]) == FEATURES
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())["features"]
    assert tuple(name for name, on in defaults.items() if on) == K8sAgentConfig().features
    assert defaults["secrets"] is False


@helm
@pytest.mark.parametrize("name", EXAMPLES)
def test_helm_lint_has_nothing_to_say(name):
    done = run_helm("lint", "--strict", str(CHART), "--values", str(CHART / "examples" / f"{name}.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


@helm
@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_renders_as_it_did(name):
    rendered = template(example(name), namespace="incident-rca")
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("IRCA_TEST_UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(rendered)
    by_name = {(o["kind"], o["metadata"]["name"]): o for o in yaml.safe_load_all(golden.read_text()) if o}
    assert {(o["kind"], o["metadata"]["name"]): o for o in yaml.safe_load_all(rendered) if o} == by_name


@helm
@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_is_valid_in_the_oldest_and_the_newest_kubernetes_that_schemas_are_of(name, version):
    for made in render(example(name), kubernetes=version).values():
        kubernetes_validate.validate(made, version, strict=True)
    for made in manifests(URL, K8sAgentConfig(replicas=3, node_view=True)):
        kubernetes_validate.validate(made, version, strict=True)


@helm
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"replicaCount": 2}, "replicaCount"),
        ({"config": {"log_levle": "debug"}}, "log_levle"),
        ({"config": {"view": "node"}}, "view"),
        ({"features": {"secret": True}}, "secret"),
        ({"nodeView": {"enable": True}}, "enable"),
        ({"replicas": 0}, "replicas"),
        ({"replicas": "2"}, "replicas"),
        ({"platformUrl": "platform.example.com"}, "platformUrl"),
        ({"platformUrl": "https://user@platform.example.com"}, "platformUrl"),
        ({"token": "two words"}, "token"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"imagePullSecrets": ["registry"]}, "imagePullSecrets"),
        ({"resources": {"limit": {}}}, "limit"),
        ({"existingSecret": "A_B"}, "existingSecret"),
    ],
)
def test_a_typo_is_refused_by_its_name(given, said):
    assert said in refused({**LEAST, **given})


@helm
def test_what_is_required_is_asked_for_and_the_token_is_not_shown():
    assert "platformUrl is required" in refused({"token": TOKEN})
    assert "one of token and existingSecret is required" in refused({"platformUrl": URL})
    assert TOKEN not in refused({"token": TOKEN, "replicaCount": 1})


# Rights


def granted(objects: dict[tuple[str, str], dict[str, Any]], account: str) -> set[tuple[str, str, str, bool, tuple[str, ...]]]:
    """What the roles that are bound to the account allow: verb, group, resource, whether in the namespace only, names."""
    found = set()
    for (kind, _), made in objects.items():
        if kind in ("ClusterRoleBinding", "RoleBinding") and account in {subject["name"] for subject in made["subjects"]}:
            rules = objects[made["roleRef"]["kind"], made["roleRef"]["name"]]["rules"]
            for rule in rules:
                for group, resource, verb in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"]):
                    found.add((verb, group, resource, kind == "RoleBinding", tuple(rule.get("resourceNames", ()))))
    return found


def wanted(accesses: tuple[Access, ...]) -> set[tuple[str, str, str, bool, tuple[str, ...]]]:
    return {(a.verb, a.group, a.resource, a.namespaced, a.names) for a in accesses}


@helm
@pytest.mark.parametrize(
    "on",
    [(), FEATURES, K8sAgentConfig().features, *[(feature,) for feature in FEATURES]],
    ids=lambda on: "+".join(on) if len(on) < 2 else str(len(on)),
)
def test_the_roles_allow_exactly_what_the_enabled_features_need(on):
    objects = render({**LEAST, "features": {feature: feature in on for feature in FEATURES}, "nodeView": {"enabled": True}})

    assert granted(objects, "incident-rca-agent") == wanted(needed(K8sAgentConfig(features=on)))
    assert granted(objects, "incident-rca-agent-node") == wanted(needed(K8sAgentConfig(view="node")))


@helm
def test_nothing_writes_but_the_lease_and_nothing_reads_secrets_or_proxies_by_default():
    for verb, group, resource, _, names in granted(render({**LEAST, "nodeView": {"enabled": True}}), "incident-rca-agent"):
        assert resource not in ("secrets", "nodes/proxy", "pods/exec", "pods/log", "*")
        assert group != "*"
        if verb not in ("get", "list", "watch"):
            assert (group, resource) == ("coordination.k8s.io", "leases")
            assert verb == "create" or names == ("incident-rca-agent",)


@helm
def test_another_name_of_lease_and_account_is_followed_everywhere():
    objects = render({**LEAST, "leaseName": "our-lease", "serviceAccount": {"name": "rca"}})

    assert ("Lease", "our-lease") in objects
    made = objects["Deployment", "incident-rca-agent"]
    assert environment(made)["LEASE_NAME"] == "our-lease"
    assert made["spec"]["template"]["spec"]["serviceAccountName"] == "rca"
    assert granted(objects, "rca") == wanted(needed(K8sAgentConfig(lease_name="our-lease")))


@helm
def test_roles_and_accounts_can_be_left_to_somebody_else():
    kinds = {kind for kind, _ in render({**LEAST, "rbac": {"create": False}, "serviceAccount": {"create": False}})}
    assert kinds == {"Secret", "Lease", "Deployment"}


@helm
@pytest.mark.parametrize("name", EXAMPLES)
def test_both_views_pass_pod_security_restricted(name):
    objects = render(example(name))
    for (kind, _), made in objects.items():
        if kind in ("Deployment", "DaemonSet"):
            context = container(made)["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert violations(made["spec"]["template"]["spec"]) == []


def test_the_restricted_profile_is_judged_as_written():
    assert violations({"containers": [{"name": "a"}]}) == [
        "a: privilege escalation is not forbidden",
        "a: runAsNonRoot is not set",
        "a: no seccomp profile",
        "a: capabilities are not dropped",
    ]
    root = {"securityContext": {"runAsNonRoot": True, "runAsUser": 0}, "hostNetwork": True, "containers": [{"name": "a"}]}
    assert {"hostNetwork is on", "a: runs as root"} <= set(violations(root))


# What is rendered


@helm
def test_the_token_is_in_the_secret_alone_and_a_new_one_rolls_the_pods():
    first, second = render(LEAST), render({**LEAST, "token": "agent_other"})

    for (kind, _), made in first.items():
        assert (TOKEN in json.dumps(made)) is False
        assert ("YWdlbnRfcHJvZF9zM2NyM3Q=" in json.dumps(made)) == (kind == "Secret")
    pods = [made["Deployment", "incident-rca-agent"]["spec"]["template"] for made in (first, second)]
    assert pods[0]["metadata"]["annotations"]["checksum/token"] != pods[1]["metadata"]["annotations"]["checksum/token"]
    assert pods[0]["spec"] == pods[1]["spec"]


@helm
def test_a_secret_of_somebody_elses_is_mounted_instead():
    objects = render({"platformUrl": URL, "existingSecret": "rca-token", "existingSecretKey": "agent.token"})

    assert "Secret" not in {kind for kind, _ in objects}
    pod = objects["Deployment", "incident-rca-agent"]["spec"]["template"]
    assert "annotations" not in pod["metadata"]
    [volume] = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "token"]
    assert volume["secret"] == {"secretName": "rca-token", "defaultMode": 0o440, "items": [{"key": "agent.token", "path": "token"}]}


@helm
def test_values_reach_the_agent_as_its_options():
    given = {
        "log_level": "debug",
        "collect_interval": 2.5,
        "spool_max_bytes": 134217728,
        "kubelet_insecure": True,
        "labels": "a=$(HOME),b=c",
    }

    read = {key: value.replace("$$", "$") for key, value in environment(deployment({**LEAST, "config": given})).items()}

    config = K8sAgentConfig.from_environment(read)
    assert (config.log_level, config.collect_interval, config.spool_max_bytes) == ("debug", 2.5, 134217728)
    assert (config.kubelet_insecure, config.labels) == (True, {"a": "$(HOME)", "b": "c"})
    assert config.features == K8sAgentConfig().features
    assert read["AGENT_TYPE"] == "kubernetes"


@helm
def test_no_features_are_no_features():
    made = deployment({**LEAST, "features": dict.fromkeys(FEATURES, False)})
    assert K8sAgentConfig.from_environment(environment(made)).features == ()


@helm
@pytest.mark.parametrize(("version", "api"), [("1.20.2", "policy/v1beta1"), ("v1.21.5-eks-bc4871b", "policy/v1"), ("1.34.0", "policy/v1")])
def test_the_disruption_budget_follows_the_clusters_version(version, api):
    objects = render({**LEAST, "replicas": 2}, kubernetes=version)
    assert objects["PodDisruptionBudget", "incident-rca-agent"]["apiVersion"] == api
    assert "PodDisruptionBudget" not in {kind for kind, _ in render(LEAST, kubernetes=version)}


@helm
@pytest.mark.parametrize(
    ("image", "name", "policy"),
    [
        ({}, f"incident-rca/agent:{__version__}", "Never"),
        ({"tag": "9"}, "incident-rca/agent:9", "Never"),
        ({"repository": "r.example.com:5000/a"}, f"r.example.com:5000/a:{__version__}", "IfNotPresent"),
        ({"repository": "r/a", "tag": "1", "digest": f"sha256:{'0' * 64}"}, f"r/a@sha256:{'0' * 64}", "IfNotPresent"),
        ({"pullPolicy": "Always"}, f"incident-rca/agent:{__version__}", "Always"),
    ],
)
def test_nobody_elses_image_is_pulled_under_our_name(image, name, policy):
    found = container(deployment({**LEAST, "image": image}))
    assert (found["image"], found["imagePullPolicy"]) == (name, policy)


@helm
def test_a_proxy_never_stands_before_the_api_server():
    read = environment(deployment({**LEAST, "proxy": {"https": "http://proxy:3128", "noProxy": ".internal"}}))
    assert read["HTTPS_PROXY"] == "http://proxy:3128"
    assert read["NO_PROXY"] == "$(KUBERNETES_SERVICE_HOST),$(NODE_IP),.internal"
    assert "NO_PROXY" not in environment(deployment(LEAST))


@helm
@pytest.mark.parametrize(
    ("bundle", "source"),
    [
        ({"pem": "-----BEGIN\n"}, {"configMap": {"name": "incident-rca-agent-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}),
        ({"configMap": "ours", "key": "b.pem"}, {"configMap": {"name": "ours", "items": [{"key": "b.pem", "path": "ca.crt"}]}}),
        ({"secret": "ours"}, {"secret": {"secretName": "ours", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}),
    ],
)
def test_a_certificate_authority_is_mounted_and_named(bundle, source):
    made = deployment({**LEAST, "caBundle": bundle})
    [volume] = [volume for volume in made["spec"]["template"]["spec"]["volumes"] if volume["name"] == "ca"]
    assert {key: value for key, value in volume.items() if key != "name"} == source
    [mount] = [mount for mount in container(made)["volumeMounts"] if mount["name"] == "ca"]
    assert environment(made)["CA_FILE"] == f"{mount['mountPath']}/ca.crt"


@helm
@pytest.mark.parametrize(("url", "port"), [("https://p.example.com", 443), ("http://p.example.com/x", 80), ("http://[::1]:8000", 8000)])
def test_the_network_policy_lets_out_what_the_agent_needs_and_nothing_in(url, port):
    [policy] = [
        made
        for (kind, _), made in render({**LEAST, "platformUrl": url, "networkPolicy": {"enabled": True}}).items()
        if kind == "NetworkPolicy"
    ]
    ports = {each["port"] for rule in policy["spec"]["egress"] for each in rule["ports"]}
    assert ports == {53, 443, 6443, port}
    assert policy["spec"]["ingress"] == []
    pod = deployment(LEAST)["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod.items()


@helm
def test_releases_of_one_name_in_two_namespaces_do_not_meet():
    first, second = (render({**LEAST, "nodeView": {"enabled": True}}, namespace=namespace) for namespace in ("one", "two"))
    clusterwide = [{key for key, made in objects.items() if "namespace" not in made["metadata"]} for objects in (first, second)]
    assert len(clusterwide[0]) == 4
    assert clusterwide[0].isdisjoint(clusterwide[1])


@helm
def test_labels_are_on_all_objects_and_selectors_never_change_with_them():
    plain, labelled = render(LEAST), render({**LEAST, "commonLabels": {"cost": "1"}, "podLabels": {"pod": "2"}})
    assert {made["metadata"]["labels"].get("cost") for made in labelled.values()} == {"1"}
    key = ("Deployment", "incident-rca-agent")
    assert plain[key]["spec"]["selector"] == labelled[key]["spec"]["selector"]
    assert {"cost": "1", "pod": "2"}.items() <= labelled[key]["spec"]["template"]["metadata"]["labels"].items()


# The manifests in Python


def normal(objects: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Objects without what tells Helm from kubectl: who manages them, the chart's label, and names that helm reads as sets."""
    found = {}
    for made in objects:
        labels = made["metadata"]["labels"]
        for key in ("app.kubernetes.io/managed-by", "helm.sh/chart"):
            labels.pop(key, None)
        if "rules" in made:
            made["rules"] = sorted(
                json.dumps([group, resource, verb, rule.get("resourceNames", [])])
                for rule in made["rules"]
                for group, resource, verb in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])
            )
        found[made["kind"], made["metadata"]["name"]] = made
    return found


CONFIGS: list[dict[str, Any]] = [
    {},
    {"namespace": "monitoring", "release_name": "rca-agent", "replicas": 3},
    {"node_view": True, "features": ["secrets", "quotas"]},
    {"node_view": True, "features": [], "log_level": "debug", "labels": {"a": "b,c=$(HOME)"}, "spool_max_bytes": 134217728},
    {"image": "r.example.com:5000/x/agent:7", "image_pull_secrets": ["one", "two"], "ca_config_map": "authority", "lease_name": "ours"},
    {"image": f"r/agent:7@sha256:{'0' * 64}", "existing_secret": "mine", "state_dir": "/state", "kubelet_insecure": True, "replicas": 2},
]


@helm
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kubernetes", [(1, 20), (1, 34)])
def test_python_and_helm_render_the_same_objects(config, kubernetes):
    made = K8sAgentConfig.from_mapping({"existing_secret": "incident-rca-agent", **config})
    chart_values = values(URL, TOKEN, made)

    by_helm = render(chart_values, kubernetes=f"{kubernetes[0]}.{kubernetes[1]}.0", namespace=made.namespace, release=made.release_name)

    assert normal(manifests(URL, made, kubernetes=kubernetes)) == normal(by_helm.values())


def test_manifests_hold_no_token_and_expect_the_documented_secret():
    text = json.dumps(manifests(URL, K8sAgentConfig()))
    assert '"secretName": "incident-rca-agent"' in text
    assert "Secret" not in {made["kind"] for made in manifests(URL, K8sAgentConfig())}


label = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=10)


@given(
    labels=st.dictionaries(label, label, max_size=2),
    features=st.sets(st.sampled_from(FEATURES)),
    replicas=st.integers(1, 9),
    node_view=st.booleans(),
    state_dir=label,
)
def test_the_url_of_the_manifests_tells_the_whole_configuration(labels, features, replicas, node_view, state_dir):
    config = K8sAgentConfig.from_mapping(
        {
            "labels": labels,
            "features": tuple(name for name in FEATURES if name in features),
            "replicas": replicas,
            "node_view": node_view,
            "state_dir": state_dir,
            "image_pull_secrets": ("a", "b"),
            "namespace": "ops",
        }
    )
    import urllib.parse

    parts = urllib.parse.urlsplit(manifests_url(URL, config))
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == f"{URL}/charts/manifests.yaml"
    assert config_of(dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))) == config


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"replcas": "2"}, "replcas"),
        ({"ca_file": "/x"}, "ca_file"),
        ({"replicas": "two"}, "replicas"),
        ({"replicas": "0"}, "replicas"),
        ({"node_view": "maybe"}, "node_view"),
        ({"features": "secrets,nonsense"}, "features"),
        ({"namespace": "Ops"}, "namespace"),
    ],
)
def test_a_parameter_that_does_not_fit_is_refused_by_its_name(query, field):
    with pytest.raises(ConfigError) as caught:
        config_of(query)
    assert str(caught.value.field).startswith(field)
