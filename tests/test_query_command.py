from __future__ import annotations

import json
import time

import pytest
from explored_platform import opamp_beat
from served_platform import ADMIN_KEY, provision, serve

from app import cli
from app.commands.query import figures, series_text

pytestmark = pytest.mark.sockets


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("platform") / "data") as made:
        yield made


@pytest.fixture
def run(served, monkeypatch, capsys):
    monkeypatch.setenv("IRCA_URL", served.url)
    monkeypatch.setenv("IRCA_API_KEY", ADMIN_KEY)
    monkeypatch.setenv("NO_COLOR", "1")

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["query", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return command


def test_a_query_is_answered_as_a_table_or_as_json(run):
    code, out, _ = run('label_replace(vector(42), "host", "web-1", "", "")')
    assert (code, out.split()) == (0, ["SERIES", "VALUE", '{host="web-1"}', "42"])
    assert run("1 + 1")[1].split()[-1] == "2"
    assert run("no_such_metric")[1] == "No samples.\n"
    assert json.loads(run("1 + 1", "--json")[1])["resultType"] == "scalar"


def test_a_range_gives_the_figures_of_each_series(run):
    code, out, _ = run("vector(time())", "--range", "10m", "--step", "1m")
    assert code == 0
    assert out.split()[:6] == ["SERIES", "POINTS", "LAST", "MIN", "AVG", "MAX"]
    assert out.split()[7] == "11"
    found = json.loads(run("vector(time())", "--range", "1h", "--json")[1])
    assert found["resultType"] == "matrix"
    assert len(found["result"][0]["values"]) == 241
    assert float(found["result"][0]["values"][-1][1]) == pytest.approx(time.time(), abs=60)


def test_an_instance_is_named_in_the_query_by_a_placeholder(run, served):
    agent = opamp_beat(served.url, provision(served, "linux"), "web-1")
    code, out, _ = run('label_replace(vector(1), "i", "$instance", "", "")', "--instance", "web-1")
    assert (code, str(agent.uid) in out) == (0, True)
    assert str(agent.uid) in run('label_replace(vector(1), "i", "$instance", "", "")', "--instance", str(agent.uid))[1]
    assert "there is no instance 'nobody'" in run('up{instance="$instance"}', "--instance", "nobody")[2]
    other = opamp_beat(served.url, provision(served, "linux"), "web-1")
    code, _, err = run('up{instance="$instance"}', "--instance", "web-1")
    assert (code, "2 instances are called 'web-1'" in err, str(other.uid) in err) == (2, True, True)


def test_wrong_usage_and_wrong_queries_are_one_clear_line(run):
    assert run("up", "--step", "1m")[0] == 2
    assert "go together" in run("up", "--instance", "web-1")[2]
    assert "go together" in run('up{instance="$instance"}')[2]
    code, _, err = run("sum(")
    assert code == 1
    assert "parse error" in err
    assert "as an incident-rca platform" not in err
    assert run("up", "--range", "soon")[0] == 2


def test_series_and_figures_read_as_promql_and_numbers():
    assert series_text({"__name__": "up", "b": "2", "a": "1"}) == 'up{a="1", b="2"}'
    assert series_text({"__name__": "up"}) == "up"
    assert series_text({}) == "{}"
    assert figures(["1", "3", "NaN"]) == ("3", "3", "1", "2", "3")
    assert figures(["NaN"]) == ("1", "-", "-", "-", "-")
