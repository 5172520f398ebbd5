"""What a release holds: the agent runs from each package with nothing else at hand."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import platform
import signal
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import trustme
from package_fixtures import read_tarball

from app.errors import ReleaseError
from app.releases import build, executable, wheels
from app.releases.wheels import Target
from connectors._version import __version__
from connectors.core.package_manifest import BUNDLE, EXECUTABLE
from tests.fake_platform import FakePlatform

LINUX = pytest.mark.skipif(platform.system() != "Linux", reason="the installer's way on Linux")
PURE = "annotated_types-0.8.0-py3-none-any.whl"


def wheel(name: str, members: dict[str, bytes] | None = None) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, content in (members or {"x.py": b""}).items():
            archive.writestr(path, content)
    return packed.getvalue()


@pytest.fixture(scope="session")
def environment(package_shop, tmp_path_factory) -> Path:
    """A virtual environment as the installer makes it: without pip, the wheels unpacked by the standard library."""
    made = tmp_path_factory.mktemp("venv")
    subprocess.run([sys._base_executable, "-m", "venv", "--without-pip", str(made)], check=True, timeout=120)
    packages = next(made.glob("lib/python3*/site-packages"))
    for name, content in read_tarball(package_shop.bundle()[1]).items():
        (made / Path(name).name).write_bytes(content)
        command = [str(made / "bin" / "python"), "-m", "zipfile", "-e", str(made / Path(name).name), str(packages)]
        subprocess.run(command, check=True, timeout=120)
    return made


@pytest.fixture(scope="session")
def program(package_shop, tmp_path_factory) -> Path:
    """The executable, unpacked."""
    made = tmp_path_factory.mktemp("program")
    with tarfile.open(fileobj=io.BytesIO(package_shop.executable()[1]), mode="r:gz") as archive:
        archive.extractall(made, filter="data")
    return made / "incident-rca-agent" / "incident-rca-agent"


@pytest.fixture(params=["bundle", "executable"])
def agent(request) -> list[str]:
    if request.param == "executable":
        return [str(request.getfixturevalue("program"))]
    return [str(request.getfixturevalue("environment") / "bin" / "python"), "-I", "-m", "connectors.cli"]


@contextlib.contextmanager
def running(command: list[str], directory: Path, platform: FakePlatform, **environ: str):
    variables = {
        "PATH": os.environ["PATH"],
        "TMPDIR": str(directory / "there-is-no-temporary-directory"),
        "PLATFORM_API_URL": platform.url,
        "AGENT_TOKEN": platform.token,
        "STATE_DIR": str(directory / "state"),
        "COLLECT_INTERVAL": "1",
        **environ,
    }
    log = directory / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "run", "--type", "server"], env=variables, cwd=directory, stdout=file, stderr=file)
    try:
        yield process, log
    finally:
        process.kill()
        process.wait(timeout=30)


@LINUX
@pytest.mark.sockets
def test_the_agent_runs_from_each_package_with_nothing_else_at_hand(agent, tmp_path):
    fake = FakePlatform()
    try:
        with running(agent, tmp_path, fake) as (process, log):
            fake.wait(lambda: bool(fake.values("system.memory.usage") and fake.values("system.network.io")), timeout=60)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0, log.read_text()
    finally:
        fake.down()
    said = log.read_text()
    assert "ModuleNotFoundError" not in said
    assert fake.token not in said


@LINUX
@pytest.mark.sockets
def test_the_agent_speaks_tls_from_each_package(agent, tmp_path):
    import ssl

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    fake = FakePlatform(context=context)
    try:
        with running(agent, tmp_path, fake, CA_FILE=str(tmp_path / "ca.pem")):
            fake.wait(lambda: bool(fake.values("system.memory.usage")), timeout=60)
    finally:
        fake.down()


@LINUX
def test_each_package_answers_the_other_commands(agent, tmp_path):
    variables = {"PATH": os.environ["PATH"], "STATE_DIR": str(tmp_path), "PLATFORM_API_URL": "http://127.0.0.1:9", "AGENT_TOKEN": "agent_x"}

    def ask(*words):
        return subprocess.run([*agent, *words], env=variables, capture_output=True, text=True, timeout=120, check=False)

    assert ask("version").stdout == f"incident-rca-agent {__version__}\n"
    check = ask("check", "--type", "server", "--json")
    assert check.returncode == 3, check.stderr  # no platform is there, and the checks say so
    assert isinstance(json.loads(check.stdout), dict | list)
    assert ask("status", "--type", "server").returncode == 3


@LINUX
def test_a_bundle_holds_the_agent_and_what_it_imports_and_nothing_of_the_platform(package_shop, environment):
    file, content = package_shop.bundle()
    held = read_tarball(content)

    assert file.kind == BUNDLE
    assert (file.os, file.libc, file.python, file.size) == ("linux", "glibc", ">=3.11", len(content))
    assert file.name == f"incident-rca-agent-{__version__}-linux-{file.arch}.tar.gz"
    assert sorted(name.partition("-")[0] for name in held) == ["wheels/annotated_types", "wheels/incident_rca_agent", "wheels/psutil"]
    packages = next(environment.glob("lib/python3*/site-packages"))
    assert sorted(p.name for p in packages.iterdir() if p.suffix != ".dist-info") == ["annotated_types", "connectors", "psutil"]
    assert not (packages / "connectors" / "api").exists()
    assert not (packages / "connectors" / "core" / "opamp_pb2.py").exists()
    assert {d.name: d.version for d in metadata.distributions(path=[str(packages)])} == {
        "annotated-types": metadata.version("annotated-types"),
        "incident-rca-agent": __version__,
        "psutil": metadata.version("psutil"),
    }


def test_equal_code_makes_equal_wheels():
    files = wheels.source_files()
    assert wheels.agent_wheel(files=files) == wheels.agent_wheel(files=dict(reversed(files.items())))
    assert wheels.installed_wheel("psutil") == wheels.installed_wheel("psutil")


def test_every_file_of_a_wheel_is_in_its_record(package_shop):
    for content in read_tarball(package_shop.bundle()[1]).values():
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            record = next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
            rows = list(csv.reader(io.StringIO(archive.read(record).decode())))
            assert sorted(row[0] for row in rows) == sorted(archive.namelist())
            assert all(row[1].startswith("sha256=") for row in rows if row[0] != record)


def test_a_wheel_can_call_itself_another_version(package_shop):
    name, content = wheels.agent_wheel("9.8.7")
    assert name == "incident_rca_agent-9.8.7-py3-none-any.whl"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert b'__version__ = "9.8.7"' in archive.read("connectors/_version.py")
        assert b"Version: 9.8.7\n" in archive.read("incident_rca_agent-9.8.7.dist-info/METADATA")


@LINUX
def test_the_executable_is_described_as_what_it_is(package_shop, program):
    file, content = package_shop.executable()

    assert (file.kind, file.os, file.python, file.libc) == (EXECUTABLE, "linux", "", "glibc")
    assert file.name == f"incident-rca-agent-{__version__}-linux-{file.arch}-executable.tar.gz"
    assert tuple(map(int, file.libc_minimum.split("."))) <= tuple(map(int, platform.libc_ver()[1].split(".")))
    names = set(read_tarball(content))
    assert "incident-rca-agent/incident-rca-agent" in names
    assert all(name.startswith("incident-rca-agent/") for name in names)
    for unwanted in ("tkinter", "pydantic", "cryptography", "numpy", "google"):
        assert not any(unwanted in name for name in names)


def test_what_the_executable_starts_gets_the_hosts_own_libraries(monkeypatch):
    import connectors.cli

    monkeypatch.setattr(connectors.cli, "main", lambda: dict(os.environ))
    monkeypatch.setattr(sys, "exit", seen := [].append)
    for original, kept in (("/opt/lib", "/opt/lib"), (None, None)):
        monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/incident-rca/_internal")
        monkeypatch.setenv("SSL_CERT_FILE", "/etc/own.pem")
        monkeypatch.delenv("LD_LIBRARY_PATH_ORIG", raising=False)
        if original:
            monkeypatch.setenv("LD_LIBRARY_PATH_ORIG", original)
        exec(compile(executable._ENTRY, "entry", "exec"), {})
        environ = seen.__self__[-1]
        assert environ.get("LD_LIBRARY_PATH") == kept
        assert "LD_LIBRARY_PATH_ORIG" not in environ
        assert environ["SSL_CERT_FILE"] == "/etc/own.pem"


def test_the_least_glibc_is_the_highest_that_a_library_asks_for(tmp_path):
    (tmp_path / "a").write_bytes(b"\x7fELF...\0GLIBC_2.2.5\0GLIBC_2.17\0GLIBC_2.9\0...")
    (tmp_path / "b").write_bytes(b"\x7fELF...\0GLIBC_2.36.1\0xGLIBC_2.99\0GLIBC_PRIVATE\0")
    (tmp_path / "text").write_bytes(b"\0GLIBC_9.9\0")
    assert executable.least_glibc(tmp_path) == "2.36"
    (tmp_path / "a").unlink()
    (tmp_path / "b").unlink()
    assert executable.least_glibc(tmp_path) == ""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (PURE, []),
        ("psutil-7.2.2-cp36-abi3-manylinux2010_x86_64.manylinux_2_12_x86_64.manylinux_2_28_x86_64.whl", ["2.12", "2.28"]),
        ("psutil-7.2.2-cp36-abi3-manylinux2014_aarch64.whl", [Target("linux", "aarch64", "glibc", "2.17")]),
        ("psutil-7.2.2-cp36-abi3-musllinux_1_2_x86_64.whl", [Target("linux", "x86_64", "musl", "1.2")]),
        ("psutil-7.2.2-cp36-abi3-macosx_11_0_arm64.whl", [Target("macos", "aarch64")]),
        ("psutil-7.2.2-cp36-abi3-macosx_10_9_universal2.whl", [Target("macos", "aarch64"), Target("macos", "x86_64")]),
        ("psutil-7.2.2-cp37-abi3-win_amd64.whl", [Target("windows", "x86_64")]),
        ("psutil-7.2.2-py3-none-win_arm64.whl", [Target("windows", "aarch64")]),
        ("psutil-7.2.2-cp36-abi3-solaris_11_sparc.whl", []),
    ],
)
def test_the_tags_of_a_wheel_say_which_hosts_it_serves(name, expected):
    found = wheels.targets(name)
    assert found == expected or [t.libc_minimum for t in found] == expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("psutil.whl", "is not the name of a wheel"),
        ("psutil-7.2.2-cp313-cp313t-macosx_11_0_arm64.whl", "tied to one version of Python"),
        ("psutil-7.2.2-cp312-abi3-manylinux2014_x86_64.whl", "tied to one version of Python"),
    ],
)
def test_a_wheel_for_one_python_only_is_refused(name, reason):
    with pytest.raises(ReleaseError, match=reason):
        wheels.targets(name)


def test_there_is_a_bundle_for_each_kind_of_host_that_all_wheels_serve(tmp_path):
    names = (
        PURE,
        "psutil-7.2.2-cp36-abi3-manylinux2014_x86_64.whl",
        "psutil-7.2.2-cp36-abi3-manylinux_2_28_x86_64.whl",
        "psutil-7.2.2-cp36-abi3-musllinux_1_2_x86_64.whl",
        "psutil-7.2.2-cp37-abi3-win_amd64.whl",
        "other-1.0-py3-none-any.whl",
    )
    shelf = tmp_path / "wheels"
    shelf.mkdir()
    for name in names:
        (shelf / name).write_bytes(wheel(name))

    manifest = build.build(tmp_path / "out", say=lambda text: None, wheel_directory=shelf, executable=False)

    assert [(f.name.removeprefix(f"incident-rca-agent-{__version__}-"), f.libc, f.libc_minimum) for f in manifest.files] == [
        ("linux-x86_64.tar.gz", "glibc", "2.17"),
        ("linux-x86_64-musl.tar.gz", "musl", "1.2"),
        ("windows-x86_64.tar.gz", "", ""),
    ]
    held = read_tarball((tmp_path / "out" / manifest.files[0].name).read_bytes())
    assert sorted(held) == [f"wheels/{PURE}", f"wheels/incident_rca_agent-{__version__}-py3-none-any.whl", f"wheels/{names[1]}"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([PURE], "there is no wheel of psutil"),
        ([PURE, "psutil-1.0-py3-none-any.whl", "psutil-2.0-py3-none-any.whl"], r"wheels of psutil 1\.0 and 2\.0: keep one version"),
    ],
)
def test_wheels_that_make_no_bundle_are_refused(names, reason):
    with pytest.raises(ReleaseError, match=reason):
        build.plan_bundles(dict.fromkeys(names, b""))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no zip", "is not a wheel"),
        (wheel("x", {"../x": b""}), "would land outside"),
        (wheel("x", {"/etc/x": b""}), "would land outside"),
        (wheel("x", {"x-1.data/scripts/x": b""}), "needs an installer"),
        (wheel("x", {"x": b"content to change"}).replace(b"to change", b"TO CHANGE"), "is damaged at x"),
    ],
)
def test_a_wheel_that_cannot_be_unpacked_without_harm_is_refused(content, reason):
    with pytest.raises(ReleaseError, match=reason):
        build.bundle("1.0.0", Target("linux", "x86_64"), {"x-1-py3-none-any.whl": content})


def _installed(directory: Path, monkeypatch, record: str | None, wheel_file: str | None = "Tag: py3-none-any\n"):
    info = directory / "thing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
    for name, content in (("RECORD", record), ("WHEEL", wheel_file)):
        if content is not None:
            (info / name).write_text(content)
    (directory / "thing.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(directory))


def test_an_installed_wheel_is_put_together_without_what_the_installer_added(tmp_path, monkeypatch):
    rows = ["thing.py,,", "../../bin/thing,,", "__pycache__/thing.pyc,,", *(f"thing-1.0.dist-info/{n},," for n in ("INSTALLER", "WHEEL"))]
    _installed(tmp_path, monkeypatch, "\n".join(rows))
    name, content = wheels.installed_wheel("thing")
    assert name == "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["thing-1.0.dist-info/WHEEL", "thing.py", "thing-1.0.dist-info/RECORD"]


@pytest.mark.parametrize(
    ("record", "wheel_file", "reason"),
    [
        ("thing.py,sha256=x,6\nthing-1.0.dist-info/WHEEL,,", "Tag: py3-none-any\n", "is not as it came"),
        ("gone.py,,\nthing-1.0.dist-info/WHEEL,,", "Tag: py3-none-any\n", "cannot be read"),
        (None, "Tag: py3-none-any\n", "was not installed here from a wheel"),
        ("thing.py,,", None, "was not installed here from a wheel"),
    ],
)
def test_an_installed_wheel_that_was_tampered_with_is_refused(tmp_path, monkeypatch, record, wheel_file, reason):
    _installed(tmp_path, monkeypatch, record, wheel_file)
    with pytest.raises(ReleaseError, match=reason):
        wheels.installed_wheel("thing")


def test_a_dependency_that_is_not_installed_is_named():
    with pytest.raises(ReleaseError, match="no-such-thing is not installed here"):
        wheels.installed_wheel("no-such-thing")


@pytest.mark.parametrize(
    ("system", "machine", "libc", "expected"),
    [
        ("Darwin", "arm64", ("", ""), Target("macos", "aarch64")),
        ("Windows", "AMD64", ("", ""), Target("windows", "x86_64")),
        ("Linux", "aarch64", ("glibc", "2.36"), Target("linux", "aarch64", "glibc", "2.36")),
        ("Linux", "x86_64", ("", ""), Target("linux", "x86_64", "musl", "")),
    ],
)
def test_this_kind_of_host_is_called_as_manifests_call_it(monkeypatch, system, machine, libc, expected):
    for name, value in (("system", system), ("machine", machine), ("libc_ver", libc)):
        monkeypatch.setattr(platform, name, lambda value=value: value)
    assert wheels.own_target() == expected


def test_a_program_that_hangs_or_is_not_there_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(executable, "BUILD_TIMEOUT", 0.2)
    with pytest.raises(ReleaseError, match=r"sleep was given up after 0\.2 s"):
        executable._run(["sleep", "30"], tmp_path, {"PATH": os.environ["PATH"]})
    with pytest.raises(ReleaseError, match="program cannot be started"):
        executable._run(["/no/such/program"], tmp_path, {})
