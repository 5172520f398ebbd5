"""Every snippet of the README is run. `make up` is run by test_make_up.py, `make test` by whoever runs this."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import httpx2
import pytest
import uvicorn
from waiting import eventually

from app.main import create_app
from app.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
KEY = "a-preset-admin-key-for-tests"
SNIPPETS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
BASH = [text for language, text in SNIPPETS if language == "bash"]
PYTHON = [text for language, text in SNIPPETS if language == "python"]


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    server = uvicorn.Server(uvicorn.Config(create_app(Settings(data_dir=folder, admin_api_key=KEY)), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, name="platform")
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


def run_bash(text: str, url: str, folder: Path, token: str = "") -> str:
    text = text.replace("http://localhost:8000", url).replace("agent_…", token)
    text = text.replace("incident-rca-agent run", "timeout --signal=INT 8 incident-rca-agent run")
    env = {
        **os.environ,
        "IRCA_API_KEY": KEY,
        "IRCA_URL": url,
        "STATE_DIR": str(folder / "state"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(["bash", "-c", text], env=env, cwd=folder, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode in (0, 124), done.stdout + done.stderr
    return done.stdout


def snippet(part: str, of: list[str]) -> str:
    (found,) = [text for text in of if part in text]
    return found


def test_every_language_in_the_readme_is_one_that_this_file_runs():
    assert {language for language, _ in SNIPPETS} == {"sh", "bash", "python"}
    assert [text for language, text in SNIPPETS if language == "sh"] == ["make up\n", "make test\n"]
    assert (len(BASH), len(PYTHON)) == (4, 2)


@pytest.mark.sockets
def test_the_curl_example_provisions_a_kubernetes_agent(platform, tmp_path):
    answer = json.loads(run_bash(snippet("agent/provision", BASH), platform, tmp_path))
    assert answer["agent_token"].startswith("agent_prod-cluster_")
    assert "helm repo add incident-rca" in answer["deployment_command"]


@pytest.mark.sockets
def test_the_command_line_example_prints_a_command_the_types_and_the_agents(platform, tmp_path):
    printed = run_bash(snippet("incident-rca provision", BASH), platform, tmp_path)
    assert "LOG_LEVEL=debug" in printed
    assert "kubernetes" in printed
    assert "web-1" in printed


@pytest.mark.sockets
def test_the_agent_runs_by_hand_and_its_metrics_answer_the_query_of_the_readme(platform, tmp_path):
    with httpx2.Client(base_url=platform, headers={"authorization": f"Bearer {KEY}"}) as client:
        made = client.post("/api/v1/agent/provision", json={"agent_type": "server", "environment_name": "readme"}).json()
        checked = run_bash(snippet("incident-rca-agent check", BASH), platform, tmp_path, made["agent_token"])
        assert "token" in checked
        eventually(lambda: client.get("/api/v1/agents/" + made["agent_id"]).json()["status"] == "stopped")
    (sample,) = json.loads(run_bash(snippet("prometheus/api/v1/query", BASH), platform, tmp_path))["data"]["result"]
    assert 0 < float(sample["value"][1]) < 100


def test_the_factory_example_prints_the_promised_command(capsys):
    exec(compile(snippet("AgentFactory", PYTHON), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    words = printed.replace("\\\n", " ").split()
    assert words[:5] == ["docker", "run", "-d", "--name", "incident-rca-agent"]
    for variable in ("PLATFORM_API_URL=http://localhost:8000", "AGENT_TOKEN=token-123", "LOG_LEVEL=debug"):
        assert words[words.index(variable) - 1] == "-e"
    assert words[-1] == "incident-rca/agent:latest"
    assert "/var/run/docker.sock:/var/run/docker.sock" in words
    assert "unless-stopped" in printed


def test_the_router_example_makes_an_application_that_provisions():
    from fastapi.testclient import TestClient

    namespace: dict = {}
    exec(compile(snippet("include_router", PYTHON), "README.md", "exec"), namespace)
    body = {"agent_type": "server", "environment_name": "e"}
    assert TestClient(namespace["app"]).post("/api/v1/agent/provision", json=body).status_code == 200


def test_the_entry_point_example_of_the_connectors_page_is_what_the_factory_reads():
    from connectors.agent_factory import ENTRY_POINT_GROUP

    (text,) = re.findall(r"^```toml\n(.*?)^```", (ROOT / "connectors" / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert ENTRY_POINT_GROUP in tomllib.loads(text)["project"]["entry-points"]


def test_links_between_the_documents_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("connectors/**/*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
