from __future__ import annotations

import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.core.agent_config import AgentConfig
from connectors.core.base_agent import BaseAgent
from connectors.core.errors import ConfigError, IncompleteAgentError
from connectors.core.secret import Secret
from connectors.core.telemetry import Collection
from tests.running_agent import CountingAgent

ROOT = Path(__file__).resolve().parent.parent


class Plain(BaseAgent):
    def start(self): ...

    def stop(self): ...

    def get_deployment_command(self):
        return ""

    def _gather_data(self):
        return Collection(1, [])


def test_an_incomplete_subclass_is_refused_with_what_it_lacks():
    class Half(BaseAgent):
        def start(self): ...

    with pytest.raises(IncompleteAgentError, match="Half cannot be created: it does not define _gather_data, get_deployment_command, stop"):
        Half("http://p", "t")
    with pytest.raises(TypeError):
        Half("http://p", "t")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "p",
        "ftp://p",
        "http://",
        "http://p?x=1",
        "http://p#x",
        "http://u:p@p",
        "http://p q",
        "http://p\n",
        "http://p:port",
        "http://[::1",
        None,
        5,
    ],
)
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ConfigError) as caught:
        Plain(url, "t")
    assert caught.value.field == "platform_url"


def test_a_base_path_is_kept_and_a_trailing_slash_is_not():
    assert Plain("https://p:8443/base/", "t").platform_url == "https://p:8443/base"


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "ä", Secret("")])
def test_a_token_that_no_header_could_carry_is_refused(token):
    with pytest.raises(ConfigError) as caught:
        Plain("http://p", token)
    assert caught.value.field == "agent_token"


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=20, max_size=60))
def test_the_token_shows_nowhere_but_where_it_is_asked_for(token):
    agent = Plain("http://p", token)
    assert agent.agent_token == token
    assert token not in repr(agent)
    assert repr(Secret(token)) == str(Secret(token)) == "Secret('**********')"
    assert {Secret(token), Secret(token)} == {Secret(token)}
    assert Secret(token) != token


def test_configuration_is_checked_at_once_whatever_form_it_has():
    assert Plain("http://p", "t").config == AgentConfig()
    config = AgentConfig(log_level="debug")
    assert Plain("http://p", "t", config).config is config
    assert Plain("http://p", "t", {"log_level": "debug"}).config == config
    for bad in ({"nope": 1}, {"log_level": "loud"}, ["log_level"]):
        with pytest.raises(ConfigError):
            Plain("http://p", "t", bad)


def test_creating_an_agent_touches_neither_disk_nor_network(tmp_path):
    CountingAgent("http://localhost:1", "t", {"state_dir": str(tmp_path / "state")})
    assert list(tmp_path.iterdir()) == []


def test_the_defaults_of_a_type_do_nothing_much():
    agent = Plain("http://p", "t")
    assert agent.get_uninstall_command() == ""
    assert agent.get_instructions().startswith("1. ")
    assert (agent.resource(), agent.machine_id(), list(agent.preflight())) == ({}, "", [])
    assert agent.state_dir == Path("/var/lib/incident-rca")
    stopping = threading.Event()
    stopping.set()
    agent.watch(print, stopping)


def test_the_runtime_is_made_once(tmp_path):
    agent = CountingAgent("http://localhost:1", "t", {"state_dir": str(tmp_path)})
    assert agent.runtime is agent.runtime
    agent.runtime.close()


def test_a_running_agent_imports_no_more_than_it_needs():
    program = (
        "import sys, connectors.core.runtime, connectors.core.base_agent;"
        "print(*[m for m in ('google.protobuf', 'http.client', 'email', 'asyncio', 'pydantic', 'random', 'ctypes', 'uuid', 'psutil',"
        " 'logging.handlers', 'urllib.request', 'importlib.metadata') if m in sys.modules])"
    )
    # Without the site's start-up files, which may import what they like (coverage measurement, editable installations).
    paths = f"import sys; sys.path += [{str(ROOT)!r}, {sysconfig.get_path('purelib')!r}]; "
    done = subprocess.run([sys.executable, "-I", "-S", "-c", paths + program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
