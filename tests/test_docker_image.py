"""The image's plan (context, requirements, labels), its bill of materials, what the build removes, and the command around them."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from app import cli
from app.commands import image_build
from app.commands.output import CommandError
from connectors.core.errors import ConfigError
from connectors.docker import assemble, image
from connectors.docker.sbom import bill_of_materials

DOCKERFILE = Path(image.__file__).with_name("Dockerfile")
METADATA = """Metadata-Version: 2.4
Name: incident-rca
Version: 0.0.9
Summary: Connects things
License-Expression: Apache-2.0
Requires-Python: >=3.11
Requires-Dist: psutil>=7
Provides-Extra: docker
Requires-Dist: docker>=7.2; extra == 'docker'
Requires-Dist: fastapi; extra == 'platform'
Requires-Dist: uvloop>=0.23; (sys_platform != 'win32') and extra == "platform"

# The README
"""
FILES = {
    "connectors/__init__.py": b"",
    "connectors/cli.py": b"def main(): print('hello from the agent')\n",
    "connectors/py.typed": b"",
    "connectors/__pycache__/cli.cpython-311.pyc": b"x",
    "connectors/api/agent_routes.py": b"import fastapi\n",
    "connectors/docker/Dockerfile": b"FROM x\n",
    "connectors/docker/README.md": b"# x\n",
    "connectors/server/server_agent.py": b"",
    "app/main.py": b"",
}


def wheel(name: str, version: str = "1.0", extra: dict[str, bytes] | None = None, requires: tuple[str, ...] = ()) -> tuple[str, bytes]:
    """A small wheel of some distribution."""
    packed = io.BytesIO()
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(f"{name}/__init__.py", f"__version__ = {version!r}\n")
        for path, content in (extra or {}).items():
            archive.writestr(path, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: MIT\n{needs}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return f"{name}-{version}-py3-none-any.whl", packed.getvalue()


def test_the_agents_wheel_holds_the_agent_without_the_platform():
    name, content = image.agent_wheel(FILES, METADATA, "1.2.3", "the licence")

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found = {path: archive.read(path) for path in archive.namelist()}
    assert name == "incident_rca-1.2.3-py3-none-any.whl"
    assert [path for path in found if path.startswith(("connectors", "app"))] == [
        "connectors/__init__.py",
        "connectors/cli.py",
        "connectors/py.typed",
        "connectors/server/server_agent.py",
    ]
    assert found["incident_rca-1.2.3.dist-info/licenses/LICENSE"] == b"the licence"
    described = found["incident_rca-1.2.3.dist-info/METADATA"].decode()
    assert "Version: 1.2.3\n" in described
    assert "Requires-Dist: psutil>=7\n" in described
    assert "extra == 'docker'" in described
    assert "platform" not in described
    assert image.agent_wheel(FILES, METADATA, "1.2.3", "the licence") == (name, content)


def test_pip_installs_the_agents_wheel_and_its_command_runs(tmp_path):
    name, content = image.agent_wheel(FILES, "Requires-Python: >=3.11\n", "1.2.3")
    (tmp_path / name).write_bytes(content)
    target = tmp_path / "target"

    install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(target), str(tmp_path / name)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)

    environ = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run([str(target / "bin" / "incident-rca-agent")], env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "hello from the agent\n"


def test_every_wheel_is_pinned_by_version_and_digest_and_both_machines_share_a_line():
    digests = {
        "incident_rca-1.2.3-py3-none-any.whl": "00",
        "psutil-7.2.2-cp36-abi3-manylinux2014_x86_64.whl": "11",
        "psutil-7.2.2-cp36-abi3-manylinux2014_aarch64.whl": "22",
        "Typing_Extensions-4.0-1-py3-none-any.whl": "33",
    }

    lines = image.requirements(digests).replace(" \\\n   ", "").splitlines()

    assert sorted(lines) == [
        "incident-rca[docker,kubernetes]==1.2.3 --hash=sha256:00",
        "psutil==7.2.2 --hash=sha256:22 --hash=sha256:11",
        "typing-extensions==4.0 --hash=sha256:33",
    ]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["psutil-1-py3-none-any.whl"], "the agent's own wheel is missing"),
        (["incident_rca-1-py3-none-any.whl", "x-1-py3-none-any.whl", "x-2-py3-none-any.whl"], "wheels of x 1 and 2"),
        (["incident_rca-1-py3-none-any.whl", "x.whl"], r"x\.whl is not the name of a wheel"),
    ],
)
def test_wheels_that_do_not_make_an_agent_are_refused(names, reason):
    with pytest.raises(ConfigError, match=reason):
        image.requirements(dict.fromkeys(names, "00"))


def test_the_dockerfile_of_a_context_says_which_version_and_revision_it_is():
    text = image.dockerfile("FROM scratch\n", version="1.2.3", revision="abc")
    assert text == 'FROM scratch\nLABEL org.opencontainers.image.version="1.2.3" org.opencontainers.image.revision="abc"\n'
    assert "revision" not in image.dockerfile("FROM scratch\n", version="1.2.3")
    with pytest.raises(ConfigError, match="cannot be the image's version"):
        image.dockerfile("FROM scratch\n", version='1"\nRUN id')


def test_equal_contexts_are_equal_bytes():
    wheels = dict([wheel("x"), image.agent_wheel(FILES, METADATA, "1.2.3")])
    first, second = io.BytesIO(), io.BytesIO()

    image.write_tarball(image.context("FROM x\n", wheels), first)
    image.write_tarball(image.context("FROM x\n", dict(reversed(wheels.items()))), second)

    assert first.getvalue() == second.getvalue()
    with tarfile.open(fileobj=io.BytesIO(first.getvalue())) as archive:
        assert archive.getnames() == [
            "Dockerfile",
            "requirements.txt",
            "wheels/incident_rca-1.2.3-py3-none-any.whl",
            "wheels/x-1.0-py3-none-any.whl",
        ]
        assert {(m.mtime, m.uid, m.gid) for m in archive} == {(0, 0, 0)}


def test_docker_builds_without_a_network_on_the_base_that_was_asked_for():
    plain = image.build_arguments(["a/b:c"], "/context")
    assert plain == ["build", "--network", "none", "--tag", "a/b:c", "/context"]
    words = image.build_arguments(["a/b:c"], "/context", base_image="own/python:3.12", created="2026-01-02T03:04:05Z")
    assert words[3:7] == ["--build-arg", "BASE_IMAGE=own/python:3.12", "--label", "org.opencontainers.image.created=2026-01-02T03:04:05Z"]


def test_pip_is_asked_for_wheels_that_fit_every_python_from_the_oldest_on():
    words = image.download_arguments("/w/agent.whl", "/w", "/w/c.txt", "aarch64")
    assert words[-1] == "/w/agent.whl[docker,kubernetes]"
    assert "manylinux2014_aarch64" in words
    assert words[words.index("--python-version") + 1] == "3.11"
    assert "abi3" in words
    further = image.further_download_arguments(["PyYAML==6.0.3"], "/w", "x86_64", "3.13")
    assert further[-2:] == ["--no-deps", "PyYAML==6.0.3"]
    assert "cp313" in further
    assert image.constraints({"psutil": "7.2.2", "incident-rca": "9", "Docker": "7"}) == "Docker==7\npsutil==7.2.2\n"


def test_wheels_that_fit_one_version_of_python_only_are_told_apart():
    names = [
        "pyyaml-6.0.3-cp311-cp311-manylinux2014_x86_64.manylinux_2_28_x86_64.whl",
        "pyyaml-6.0.3-cp311-cp311-manylinux2014_aarch64.whl",
        "psutil-7.2.2-cp36-abi3-manylinux2014_x86_64.whl",
        "docker-7.2-py3-none-any.whl",
        "constraints.txt",
    ]
    assert image.bound_to_python(names) == ["pyyaml==6.0.3"]


def test_the_default_image_is_also_known_by_its_version():
    assert image.tags("incident-rca/agent:latest", "1.2.3+local") == ("incident-rca/agent:latest", "incident-rca/agent:1.2.3-local")
    assert image.tags("registry:5000/a:b", "1.2.3") == ("registry:5000/a:b",)
    assert image.save_arguments(("a", "b"), "/f") == ["save", "--output", "/f", "a", "b"]


def test_the_bill_of_materials_names_what_is_installed_its_licences_and_who_needs_whom(tmp_path):
    for name, content in (
        wheel("first", requires=("second>=1; python_version > '3'", "absent")),
        wheel("second"),
        wheel("Third_one", extra={"x": b""}),
    ):
        zipfile.ZipFile(io.BytesIO(content)).extractall(tmp_path)
        assert name
    (tmp_path / "second-1.0.dist-info" / "METADATA").write_text("Name: second\nVersion: 1.0\nLicense-Expression: BSD-3-Clause\n")
    (tmp_path / "Third_one-1.0.dist-info" / "METADATA").write_text("Name: Third_one\nVersion: 1.0\n")

    bill = bill_of_materials(importlib.metadata.distributions(path=[str(tmp_path)]), "1.2.3")

    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["version"] == "1.2.3"
    assert [(c["name"], c.get("purl"), c.get("licenses")) for c in bill["components"][:-1]] == [
        ("first", "pkg:pypi/first@1.0", [{"license": {"name": "MIT"}}]),
        ("second", "pkg:pypi/second@1.0", [{"expression": "BSD-3-Clause"}]),
        ("third-one", "pkg:pypi/third-one@1.0", None),
    ]
    assert bill["components"][-1]["bom-ref"] == "python"
    needs = {d["ref"]: d["dependsOn"] for d in bill["dependencies"]}
    assert needs["pkg:pypi/first@1.0"] == ["pkg:pypi/second@1.0"]
    assert needs["image"] == ["python", "pkg:pypi/first@1.0", "pkg:pypi/second@1.0", "pkg:pypi/third-one@1.0"]
    again = bill_of_materials(importlib.metadata.distributions(path=[str(tmp_path)]), "1.2.3")
    assert again == bill


def test_the_build_leaves_what_the_agent_runs_compiled_and_nothing_else(tmp_path):
    prefix, etc = tmp_path / "prefix", tmp_path / "etc"
    packages = prefix / "lib" / "site-packages"
    for path in ("bin/pip3", "bin/activate", "bin/python3", "bin/incident-rca-agent", "bin/normalizer"):
        (prefix / path).parent.mkdir(parents=True, exist_ok=True)
        (prefix / path).touch()
    contents = {
        "connectors/docker/assemble.py": b"",
        "connectors/docker/image.py": b"",
        "connectors/docker/command.py": b"X = 1\n",
        "thing/tests/test_it.py": b"",
        "thing/code.pyi": b"",
        "thing/data.json": b"{}",
        "typed/only.pyi": b"",
    }
    for _, content in (wheel("pip", "23"), wheel("thing", extra=contents)):
        packages.mkdir(parents=True, exist_ok=True)
        zipfile.ZipFile(io.BytesIO(content)).extractall(packages)
    (packages / "pip-23.dist-info" / "RECORD").write_text(
        "pip-23.dist-info/METADATA,,\npip-23.dist-info/WHEEL,,\npip-23.dist-info/RECORD,,\n../../bin/pip3,,\n"
    )
    etc.mkdir()
    (etc / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    bytecode = tmp_path / "bytecode"
    words = ["--user", "agent:10001", "--sbom", str(tmp_path / "doc/sbom.json"), "--etc", str(etc), "--bytecode", str(bytecode)]

    assert assemble.main([*words, "--prefix", str(prefix), "--packages", str(packages)]) == 0

    kept = sorted(str(p.relative_to(prefix)) for p in prefix.rglob("*") if p.is_file())
    assert kept == [
        "bin/incident-rca-agent",
        "bin/python3",
        "lib/site-packages/connectors/docker/command.py",
        "lib/site-packages/thing-1.0.dist-info/METADATA",
        "lib/site-packages/thing-1.0.dist-info/RECORD",
        "lib/site-packages/thing-1.0.dist-info/WHEEL",
        "lib/site-packages/thing/__init__.py",
        "lib/site-packages/thing/data.json",
    ]
    compiled = {p.name.partition(".")[0] for p in Path(f"{bytecode}{packages}").rglob("*.pyc")}
    assert compiled == {"__init__", "command"}
    library = {p.name.partition(".")[0] for p in bytecode.rglob("*.pyc")}
    assert {"argparse", "typing", "threading"} <= library
    assert (etc / "passwd").read_text().splitlines()[-1] == "agent:x:10001:10001::/nonexistent:/usr/sbin/nologin"
    assert (etc / "group").read_text() == "agent:x:10001:\n"
    assert [c["name"] for c in json.loads((tmp_path / "doc/sbom.json").read_text())["components"][:-1]] == ["thing"]

    assemble.add_user(etc, "agent", 10001)
    assert (etc / "group").read_text() == "agent:x:10001:\n"


def test_what_does_not_compile_fails_the_build(tmp_path):
    (tmp_path / "packages").mkdir()
    broken = tmp_path / "broken.py"
    broken.write_text("def\n")

    assert not assemble.compile_into(tmp_path / "bytecode", tmp_path / "packages", [broken])
    assert sys.pycache_prefix is None


def test_hadolint_finds_nothing_in_the_dockerfile(tmp_path):
    found = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not found:
        pytest.skip("hadolint is not installed")
    rendered = tmp_path / "Dockerfile"
    rendered.write_text(image.dockerfile(DOCKERFILE.read_text(), version="1.2.3", revision="abc"))

    for file in (DOCKERFILE, rendered):
        done = subprocess.run([found, "--no-color", str(file)], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, "")


def test_the_dockerfile_installs_offline_and_ends_as_a_user_without_rights():
    lines = DOCKERFILE.read_text().splitlines()
    assert "ARG BASE_IMAGE=python:3.13-slim" in lines
    assert "USER 10001:10001" in lines
    assert 'ENTRYPOINT ["incident-rca-agent"]' in lines
    assert any('CMD ["incident-rca-agent", "status"]' in line and line.startswith("HEALTHCHECK") for line in lines)
    assert any("--no-index" in line for line in lines)


# The command


@pytest.fixture
def wheels(tmp_path) -> Path:
    made = tmp_path / "wheels"
    made.mkdir()
    for name, content in (wheel("psutil"), wheel("docker"), wheel("incident_rca", "0.0.1")):
        (made / name).write_bytes(content)
    return made


@pytest.fixture
def docker(tmp_path, monkeypatch) -> Path:
    """A stand-in for docker that records its arguments and saves a little; the file's text is what it was called with."""
    stubs, record = tmp_path / "bin", tmp_path / "record"
    stubs.mkdir()
    (stubs / "docker").write_text(
        f"#!/bin/sh\nprintf '%s\\n' \"$*\" >>{record}\n"
        'if [ "$1" = build ]; then for last; do :; done; ls "$last" "$last/wheels"; fi\n'
        'if [ -n "$FAIL" ] && [ "$1" = "$FAIL" ]; then echo line one; echo the reason; exit 7; fi\n'
        'if [ "$1" = save ]; then printf saved >"$3"; fi\n'
    )
    (stubs / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{stubs}:{os.environ['PATH']}")
    return record


def checked(directory: Path, name: str) -> bytes:
    content = (directory / name).read_bytes()
    assert (directory / f"{name}.sha256").read_text() == f"{hashlib.sha256(content).hexdigest()}  {name}\n"
    assert stat.S_IMODE((directory / name).stat().st_mode) == 0o644
    return content


def test_the_context_command_keeps_a_context_with_its_checksum_where_the_platform_serves_it(tmp_path, wheels, capsys):
    data = tmp_path / "data"

    assert cli.main(["image", "context", "--wheels", str(wheels), "--data-dir", str(data)]) == 0

    directory = data / "artefacts" / "docker"
    content = checked(directory, "context.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        names = archive.getnames()
        dockerfile = archive.extractfile("Dockerfile").read().decode()
    own = [n for n in names if "incident_rca" in n]
    assert len(own) == 1
    assert "0.0.1" not in own[0]
    assert {"wheels/psutil-1.0-py3-none-any.whl", "wheels/docker-1.0-py3-none-any.whl"} <= set(names)
    assert "org.opencontainers.image.version" in dockerfile
    assert sorted(p.name for p in directory.iterdir()) == ["context.tar.gz", "context.tar.gz.sha256"]
    assert str(directory / "context.tar.gz") in capsys.readouterr().out


def test_the_build_command_builds_and_saves(tmp_path, wheels, docker, capsys):
    data = tmp_path / "data"
    words = ["image", "build", "--wheels", str(wheels), "--data-dir", str(data), "--base-image", "own/python:3.12", "--tag", "a/b:c"]

    assert cli.main(words) == 0

    build, save = docker.read_text().splitlines()
    assert build.startswith("build --network none --build-arg BASE_IMAGE=own/python:3.12 --label org.opencontainers.image.created=20")
    assert " --tag a/b:c " in build
    assert save.startswith("save --output ")
    assert save.endswith(" a/b:c")
    assert gzip.decompress(checked(data / "artefacts" / "docker", "image.tar.gz")) == b"saved"
    assert capsys.readouterr().out.endswith("a/b:c is built\n")


def test_an_image_need_not_be_kept(tmp_path, wheels, docker):
    assert cli.main(["image", "build", "--no-save", "--wheels", str(wheels), "--data-dir", str(tmp_path / "data")]) == 0
    assert [line.split()[0] for line in docker.read_text().splitlines()] == ["build"]
    assert not (tmp_path / "data" / "artefacts" / "docker" / "image.tar.gz").exists()


@pytest.mark.parametrize("step", ["build", "save"])
def test_a_docker_that_fails_is_one_line_with_its_last_words(tmp_path, wheels, docker, monkeypatch, capsys, step):
    monkeypatch.setenv("FAIL", step)

    assert cli.main(["image", "build", "--wheels", str(wheels), "--data-dir", str(tmp_path / "data")]) == 1

    said = capsys.readouterr().err
    assert f"incident-rca: docker {step} failed (exit code 7)\n" in said
    assert said.endswith("  the reason\n")
    assert sorted(p.name for p in (tmp_path / "data" / "artefacts" / "docker").iterdir()) == ["context.tar.gz", "context.tar.gz.sha256"]


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["build", "--tag", "--privileged"], 2, "is not the name of an image"),
        (["build", "--base-image", "a b"], 2, "is not the name of an image"),
        (["context", "--wheels", "nowhere"], 2, "there are no wheels in nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_done(tmp_path, docker, monkeypatch, capsys, words, code, reason):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["image", *words, "--data-dir", "data"]) == code
    assert reason in capsys.readouterr().err
    assert not docker.exists()


def test_without_docker_the_context_is_what_remains(tmp_path, wheels, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert cli.main(["image", "build", "--wheels", str(wheels), "--data-dir", str(tmp_path / "data")]) == 1

    said = capsys.readouterr().err
    assert "the docker command is not installed here" in said
    assert "incident-rca image context" in said


def test_a_download_that_fails_points_to_wheels_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    shop = image_build.Workshop(tmp_path, lambda text: None)

    with pytest.raises(CommandError, match="pip download failed") as caught:
        shop.make_context(None)

    assert "--wheels" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_hangs_or_cannot_be_started_is_given_up():
    with pytest.raises(CommandError, match=r"the sleep was given up after 0\.2 s"):
        image_build._run(["sleep", "30"], "the sleep", 0.2)
    with pytest.raises(CommandError, match="it cannot be started: No such file"):
        image_build._run(["/no/such/program"], "it", 1)


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "artefacts").write_text("in the way")
    with pytest.raises(CommandError, match="cannot be made"):
        image_build.Workshop.of(tmp_path)
    shop = image_build.Workshop(tmp_path / "gone", lambda text: None)
    with pytest.raises(CommandError, match="cannot be written"):
        shop.keep_context({})


def test_an_installation_without_metadata_says_so(tmp_path, monkeypatch, wheels):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(image_build.metadata, "distribution", absent)
    with pytest.raises(CommandError, match="not installed here"):
        image_build.Workshop(tmp_path, lambda text: None).make_context(wheels)


def test_wheels_of_two_versions_are_refused(tmp_path, wheels):
    name, content = wheel("psutil", "2.0")
    (wheels / name).write_bytes(content)
    with pytest.raises(CommandError, match=r"wheels of psutil 1\.0 and 2\.0"):
        image_build.Workshop(tmp_path, lambda text: None).make_context(wheels)


def test_the_revision_is_that_of_the_checkout_if_it_is_one(tmp_path, monkeypatch):
    package = tmp_path / "connectors"
    package.mkdir()
    monkeypatch.setattr(image_build.connectors, "__file__", str(package / "__init__.py"))
    assert image_build._revision() == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.com"]
    with contextlib.suppress(FileNotFoundError):
        subprocess.run([*git, "init", "-q"], check=True, timeout=30)
        assert image_build._revision() == ""
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True, timeout=30)
        assert len(image_build._revision()) == 40
