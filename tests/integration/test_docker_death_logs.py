"""The last lines of a container, read from a real engine. ``IRCA_TEST_BASE_IMAGE`` names an image with a shell."""

from __future__ import annotations

import os
import subprocess
import uuid

import pytest

from connectors.docker.death_logs import read_tail
from connectors.docker.engine import Engine
from connectors.docker.stats import unix_nano

IMAGE = os.environ.get("IRCA_TEST_BASE_IMAGE", "")

pytestmark = [
    pytest.mark.requires("docker", "base-image"),
]


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def name():
    made = f"irca-tail-{uuid.uuid4().hex[:8]}"
    yield made
    docker("rm", "--force", "--volumes", made)


def test_the_last_words_of_a_life_are_found_though_the_next_has_spoken_since(name):
    # The first life says three lines; the next, in the same container, fifty.
    again = "n=0; while [ $n -lt 50 ]; do n=$((n+1)); echo next $n; done; exit 7"
    script = f"[ -e /lived ] && {{ {again}; }}; : >/lived; echo one; echo two; echo three; exit 7"
    docker("run", "-d", "--name", name, "--network", "none", IMAGE, "sh", "-c", script)
    docker("wait", name)
    died = unix_nano(docker("inspect", "--format", "{{.State.FinishedAt}}", name))
    docker("start", name)
    docker("wait", name)

    engine = Engine()
    with engine.client() as client:
        found = read_tail(client, name, lines=3, tty=False, since=0, until=died, timeout=10, lives_again=True)
    assert (found.text.splitlines(), found.reason) == (["one", "two", "three"], "")
