from __future__ import annotations

import asyncio
import base64
import hashlib
import shutil
import time

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from fastapi.testclient import TestClient
from package_fixtures import DAY, small_release

from app.api import package_routes
from app.main import create_app
from app.releases import build, release, signing
from app.releases.repository import PackageRepository
from app.settings import Settings
from connectors._version import __version__
from connectors.core import package_manifest
from connectors.core.package_manifest import BUNDLE

CONTENT = bytes(range(256)) * 500
VERSION = "1.0.0"
FILE = f"/packages/{VERSION}/incident-rca-agent-{VERSION}-any.tar.gz"
KEY = signing.SigningKey.generate()


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


def publish(data_dir, version=VERSION, content=CONTENT, now=None, life=30 * DAY, **options):
    now = time.time() if now is None else now
    source = small_release(data_dir.parent / f"made-{time.monotonic_ns()}", version, content)
    release.sign(source, KEY, now=now, life=life)
    repository = PackageRepository(data_dir, clock=lambda: now)
    signing.trust(repository.trusted_directory, KEY.public)
    return repository.publish(source, **options)


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    shelf = tmp_path / "install"
    shelf.mkdir()
    (shelf / "linux.sh").write_text("#!/bin/sh\nversion=@IRCA_VERSION@ key=@IRCA_PUBLIC_KEY@ again=@IRCA_VERSION@ é\n", encoding="utf-8")
    (shelf / "windows.ps1").write_bytes(b"$Version = '@IRCA_VERSION@'\r\n")
    monkeypatch.setattr(package_routes, "_SHELF", shelf)
    return shelf


@pytest.fixture
def client(data_dir):
    with TestClient(create_app(Settings(data_dir=data_dir)), base_url="http://localhost:8000") as made:
        yield made


def test_whoever_asks_gets_the_manifest_its_signature_and_the_key(client, data_dir):
    manifest = publish(data_dir)

    content = client.get("/packages/manifest.json")
    signature = client.get("/packages/manifest.json.sig")
    key = client.get("/packages/public-key.pem")

    assert content.headers["content-type"] == "application/json"
    assert len(signature.content) == 64
    load_pem_public_key(key.content).verify(signature.content, content.content)
    assert package_manifest.verify(content.content, signature.content, [KEY.public]) == manifest
    for answer in (content, signature, key):
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "content-encoding" not in answer.headers
    assert client.get(f"/packages/{VERSION}/manifest.json").content == content.content
    assert client.get(f"/packages/{VERSION}/manifest.json.sig").content == signature.content


def test_files_of_a_version_never_change_and_say_so(client, data_dir):
    [file] = publish(data_dir).files

    answer = client.get(FILE)

    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["etag"] == f'"{file.sha256}"'
    assert answer.headers["content-type"] == "application/gzip"
    assert hashlib.sha256(answer.content).hexdigest() == file.sha256


def test_a_download_that_broke_off_can_be_resumed(client, data_dir):
    publish(data_dir)
    etag = client.head(FILE).headers["etag"]

    resumed = client.get(FILE, headers={"range": "bytes=100000-", "if-range": etag})

    assert (resumed.status_code, resumed.content) == (206, CONTENT[100_000:])
    assert client.get(FILE, headers={"range": "bytes=100000-", "if-range": '"other"'}).status_code == 200
    assert client.get(FILE, headers={"range": "bytes=9999999-"}).status_code == 416


@pytest.mark.parametrize("path", ["/packages/manifest.json", FILE, "/install/linux.sh", "/install/linux.sh.sha256"])
def test_validators_and_head_answer_without_the_content(client, data_dir, scripts, path):
    publish(data_dir)
    answer = client.get(path)

    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.content))
    for header in ("etag", "content-type", "cache-control"):
        assert head.headers[header] == answer.headers[header]
    for known in (answer.headers["etag"], f'"x", W/{answer.headers["etag"]}', "*"):
        again = client.get(path, headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == answer.headers["etag"]
    assert client.get(path, headers={"if-none-match": '"x"'}).status_code == 200


@pytest.mark.parametrize("path", ["/packages/manifest.json", FILE, "/install/linux.sh"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_put_there(client, data_dir, scripts, path, method):
    publish(data_dir)
    assert client.request(method, path).status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/packages/other.json",
        "/packages/current",
        "/packages/9.9.9/manifest.json",
        f"/packages/{VERSION}/other",
        f"/packages/{VERSION}/..%2f..%2f..%2fkeys%2ftrusted",
        f"/packages/{VERSION}/%2e%2e",
        "/packages/..%2fkeys/package-signing.pem",
        "/packages/%2e%2e/keys/package-signing.pem",
        "/packages/.releases/manifest.json",
        "/packages/.built/manifest.json",
        "/packages/1.0.0%00/manifest.json",
        "/packages/x" + "y" * 5000 + "/manifest.json",
        "/install/..%2fconfig.py",
        "/install/config.py",
        "/install/.sha256",
    ],
)
def test_only_what_was_published_is_there(client, data_dir, scripts, path):
    publish(data_dir)

    answer = client.get(path)

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 1000
    assert b"PRIVATE" not in answer.content


def test_an_unknown_name_is_answered_with_the_known_ones(client, data_dir, scripts):
    publish(data_dir)
    assert "linux.sh, macos.sh, windows.ps1, each also with .sha256" in client.get("/install/solaris.sh").json()["detail"]
    assert "published: 1.0.0" in client.get("/packages/2.0.0/manifest.json").json()["detail"]
    assert "it has incident-rca-agent-1.0.0-any.tar.gz" in client.get(f"/packages/{VERSION}/x").json()["detail"]
    assert "there are manifest.json, manifest.json.sig and public-key.pem" in client.get("/packages/x").json()["detail"]


def test_install_scripts_carry_the_version_and_the_key_and_have_a_checksum(client, data_dir, scripts):
    publish(data_dir)

    answer, line = client.get("/install/linux.sh"), client.get("/install/linux.sh.sha256")

    key = base64.b64encode(KEY.public).decode()
    assert answer.content.decode() == f"#!/bin/sh\nversion={VERSION} key={key} again={VERSION} é\n"
    assert answer.headers["content-type"] == "text/x-shellscript; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert line.text == f"{hashlib.sha256(answer.content).hexdigest()}  linux.sh\n"
    windows = client.get("/install/windows.ps1")
    assert windows.content == b"$Version = '1.0.0'\r\n"
    assert windows.headers["content-type"] == "text/plain; charset=utf-8"
    assert client.get("/install/macos.sh").status_code == 404  # it is not on this shelf


def test_scripts_that_cannot_be_read_are_our_fault(client, data_dir, scripts):
    publish(data_dir)
    (scripts / "macos.sh").mkdir()
    assert client.get("/install/macos.sh").status_code == 503


def test_what_is_published_while_the_platform_runs_is_served_at_once(client, data_dir):
    publish(data_dir, "1.0.0")
    assert client.get("/packages/manifest.json").json()["version"] == "1.0.0"
    publish(data_dir, "1.1.0", b"new")
    assert client.get("/packages/manifest.json").json()["version"] == "1.1.0"
    assert client.get(FILE).content == CONTENT  # who is in the middle of an installation can finish it
    publish(data_dir, "1.0.0", allow_downgrade=True)
    assert client.get("/packages/manifest.json").json()["version"] == "1.0.0"


def test_a_key_that_is_trusted_no_more_ends_the_release(client, data_dir):
    publish(data_dir)
    assert client.get("/packages/manifest.json").status_code == 200

    (data_dir / "keys" / "trusted" / f"{KEY.key_id}.pem").unlink()

    answer = client.get("/packages/manifest.json")
    assert (answer.status_code, answer.json()["code"]) == (409, "release-refused")
    assert "not by a key that is trusted here (trusted: none)" in answer.json()["detail"]


def test_a_file_that_was_lost_is_our_fault(client, data_dir):
    publish(data_dir)
    (data_dir / "packages" / VERSION / f"incident-rca-agent-{VERSION}-any.tar.gz").unlink()
    answer = client.get(FILE)
    assert (answer.status_code, answer.json()["retryable"]) == (503, True)


def test_a_platform_for_which_nobody_publishes_serves_a_bundle_of_its_own(client, data_dir, scripts):
    content, signature = client.get("/packages/manifest.json").content, client.get("/packages/manifest.json.sig").content
    key = signing.read_public_key(_kept(data_dir / "key.pem", client.get("/packages/public-key.pem").content))

    manifest = package_manifest.verify(content, signature, [key])

    [file] = manifest.files
    assert (manifest.version, file.kind, file.python) == (__version__, BUNDLE, ">=3.11")
    package_manifest.check(manifest, now=time.time())
    answer = client.get(f"/packages/{__version__}/{file.name}")
    assert hashlib.sha256(answer.content).hexdigest() == file.sha256
    assert answer.headers["cache-control"] == "no-cache"  # the code of a checkout changes while its version stays
    assert base64.b64encode(key).decode() in client.get("/install/linux.sh").text
    private = data_dir / "keys" / "package-signing.pem"
    assert private.stat().st_mode & 0o777 == 0o600
    assert client.get("/packages/9.9.9/manifest.json").status_code == 404


def _kept(path, content):
    path.write_bytes(content)
    return path


def test_the_platforms_own_bundle_and_key_survive_a_restart(data_dir):
    seen = []
    for _ in range(2):
        with TestClient(create_app(Settings(data_dir=data_dir)), base_url="http://localhost:8000") as client:
            seen.append((client.get("/packages/manifest.json").content, client.get("/packages/public-key.pem").content))
    assert seen[0] == seen[1]


def test_a_published_release_takes_the_place_of_the_platforms_own(client, data_dir):
    client.get("/packages/manifest.json")
    publish(data_dir, "0.0.1")
    assert client.get("/packages/manifest.json").json()["key_id"] == KEY.key_id
    assert client.get(f"/packages/{__version__}/manifest.json").status_code == 404


def test_the_platforms_own_signature_is_renewed_before_it_ends(data_dir):
    now = [time.time()]
    with TestClient(create_app(Settings(data_dir=data_dir), clock=lambda: now[0]), base_url="http://localhost:8000") as client:
        first = client.get("/packages/manifest.json").json()
        now[0] += 40 * DAY
        assert client.get("/packages/manifest.json").json() == first
        now[0] += 10 * DAY
        renewed = client.get("/packages/manifest.json").json()
    assert renewed["expires"] > first["expires"]
    assert renewed["files"] == first["files"]


def test_a_platform_may_be_told_to_serve_only_what_is_published(data_dir):
    with TestClient(create_app(Settings(data_dir=data_dir, packages_self_built=False)), base_url="http://localhost:8000") as client:
        answer = client.get("/packages/manifest.json")
    assert answer.status_code == 404
    assert "incident-rca release publish" in answer.json()["detail"]
    assert not (data_dir / "keys" / "package-signing.pem").exists()


def test_a_platform_that_cannot_build_says_why_and_what_to_do(client, monkeypatch, caplog):
    def refuse():
        raise build.ReleaseError("psutil was not installed here from a wheel")

    monkeypatch.setattr(build, "own_bundle", refuse)
    for _ in range(3):
        answer = client.get("/packages/manifest.json")
        assert answer.status_code == 404
        assert "none can be built here: psutil was not installed here from a wheel" in answer.json()["detail"]
    assert [r.message for r in caplog.records].count(f"no package for hosts: {answer.json()['detail']}") == 1


def test_keys_elsewhere_are_named_by_a_setting(data_dir, tmp_path):
    publish(data_dir)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(data_dir / "keys" / "trusted", elsewhere)
    with TestClient(create_app(Settings(data_dir=data_dir, package_keys=elsewhere)), base_url="http://localhost:8000") as client:
        assert client.get("/packages/manifest.json").status_code == 200


def test_an_expired_release_is_served_for_hosts_to_refuse_and_the_log_warns(data_dir, caplog):
    publish(data_dir, now=time.time() - 20 * DAY, life=10 * DAY)
    with TestClient(create_app(Settings(data_dir=data_dir)), base_url="http://localhost:8000") as client:
        assert client.get("/packages/manifest.json").status_code == 200
    assert any(r.levelname == "WARNING" and r.message.startswith("packages for hosts: version 1.0.0") for r in caplog.records)


async def test_many_who_ask_first_have_it_built_once(data_dir, monkeypatch, package_shop):
    built = []
    made = package_shop.bundle()
    monkeypatch.setattr(build, "own_bundle", lambda: built.append(1) or made)
    from app.releases.service import PackageService

    service = PackageService(PackageRepository(data_dir, clock=time.time), time.time)
    await service.current()  # makes the directories, which counts as a change
    built.clear()
    found = await asyncio.gather(*(service.current() for _ in range(20)))
    assert len(set(map(id, found))) == 1
    assert len(built) <= 1


def test_the_data_directory_keeps_private_what_is_private(client, data_dir):
    client.get("/packages/manifest.json")
    readable = [p for p in (data_dir / "keys").glob("package-*") if p.stat().st_mode & 0o077]
    assert [p.name for p in readable] == ["package-signing.pem.pub"]
