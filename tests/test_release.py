from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from package_fixtures import DAY, small_release

from app import cli
from app.errors import NotFoundError, ReleaseError
from app.releases import build, executable, release, signing
from app.releases.repository import PackageRepository
from connectors._version import __version__
from connectors.core import package_manifest

NOW = 1_800_000_000.0
KEY = signing.SigningKey.generate()


@pytest.fixture
def repository(tmp_path):
    made = PackageRepository(tmp_path / "data", clock=lambda: NOW)
    signing.trust(made.trusted_directory, KEY.public)
    return made


def signed(directory: Path, version="1.0.0", content=b"content", *, key=KEY, now=NOW, life=30 * DAY) -> Path:
    made = small_release(directory, version, content)
    release.sign(made, key, now=now, life=life)
    return made


def rewrite(directory: Path, **values):
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_key_is_written_for_its_owner_alone_and_read_again(tmp_path):
    key = signing.SigningKey.generate()

    public = key.write(tmp_path / "release.pem", "a passphrase")

    assert (tmp_path / "release.pem").stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in (tmp_path / "release.pem").read_bytes()
    assert signing.is_encrypted(tmp_path / "release.pem")
    assert signing.SigningKey.read(tmp_path / "release.pem", "a passphrase").public == key.public
    assert signing.read_public_key(public) == key.public
    assert key.key_id == hashlib.sha256(key.public).hexdigest()[:16]
    assert "PRIVATE" not in repr(key)


def test_a_key_is_never_overwritten(tmp_path):
    (tmp_path / "release.pem").write_text("precious")
    with pytest.raises(ReleaseError, match="is there already, and a key is never overwritten"):
        KEY.write(tmp_path / "release.pem")
    with pytest.raises(ReleaseError, match="cannot be written"):
        KEY.write(tmp_path / "nowhere" / "release.pem")
    (tmp_path / "other.pem.pub").mkdir()
    with pytest.raises(ReleaseError, match="cannot be written"):
        KEY.write(tmp_path / "other.pem")
    assert not (tmp_path / "other.pem").exists()


def _pem(key, passphrase=None) -> bytes:
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    ("content", "passphrase", "mode", "reason"),
    [
        (_pem(Ed25519PrivateKey.generate()), "", 0o644, "can be read by others: chmod 600"),
        (_pem(Ed25519PrivateKey.generate()), "x", 0o600, "is not encrypted, but a passphrase was given"),
        (_pem(Ed25519PrivateKey.generate(), b"right"), "", 0o600, "is encrypted, and no passphrase was given"),
        (_pem(Ed25519PrivateKey.generate(), b"right"), "wrong", 0o600, "holds no private key or the passphrase is wrong"),
        (b"nonsense", "", 0o600, "holds no private key in PEM"),
        (_pem(generate_private_key(SECP256R1())), "", 0o600, "of another kind than Ed25519"),
        (None, "", 0o600, "cannot be read: No such file"),
    ],
)
def test_a_private_key_that_cannot_be_used_is_refused_with_the_reason(tmp_path, content, passphrase, mode, reason):
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(ReleaseError, match=reason):
        signing.SigningKey.read(path, passphrase)


def test_only_a_public_key_can_be_trusted(tmp_path):
    KEY.write(tmp_path / "key.pem")
    with pytest.raises(ReleaseError, match="that is the private half, which stays with the releaser"):
        signing.read_public_key(tmp_path / "key.pem")
    other = generate_private_key(SECP256R1()).public_key()
    (tmp_path / "ec.pem").write_bytes(other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(ReleaseError, match="of another kind"):
        signing.read_public_key(tmp_path / "ec.pem")
    (tmp_path / "trusted").mkdir()
    (tmp_path / "trusted" / "x.pem").write_text("nonsense")
    with pytest.raises(ReleaseError, match="holds no public key in PEM"):
        signing.trusted_keys(tmp_path / "trusted")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ReleaseError, match="cannot be written"):
        signing.trust(tmp_path / "file", KEY.public)


def test_the_installations_key_is_made_once(tmp_path):
    assert signing.installation_key(tmp_path).public == signing.installation_key(tmp_path).public
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ReleaseError, match="cannot be made"):
        signing.installation_key(tmp_path / "file")


def test_a_signed_release_says_who_when_and_until_when_and_can_be_signed_anew(tmp_path):
    made = signed(tmp_path / "r")

    found = release.read(made, [KEY.public])

    assert found.manifest.key_id == KEY.key_id
    assert (found.manifest.created, found.manifest.expires) == (NOW, NOW + 30 * DAY)
    release.sign(made, KEY, now=NOW + DAY, life=DAY)
    assert release.read(made, [KEY.public]).manifest.expires == NOW + 2 * DAY


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda d: (d / "manifest.json").unlink(), r"manifest\.json cannot be read"),
        (lambda d: (d / "manifest.json").write_text("x"), "not JSON"),
        (lambda d: next(d.glob("*.tar.gz")).unlink(), "cannot be read"),
        (lambda d: next(d.glob("*.tar.gz")).write_bytes(b"other"), "is not 8000 bytes, as the manifest says"),
        (lambda d: next(d.glob("*.tar.gz")).write_bytes(b"CONTENT " * 1000), "has not the checksum that the manifest says"),
    ],
)
def test_what_is_not_as_its_manifest_says_is_not_signed(tmp_path, spoil, reason):
    made = small_release(tmp_path / "r")
    spoil(made)
    with pytest.raises(ReleaseError, match=reason):
        release.sign(made, KEY, now=NOW, life=DAY)
    assert not (made / "manifest.json.sig").exists()


@pytest.mark.parametrize("life", [60, 5000 * DAY])
def test_a_release_is_not_believed_for_too_short_or_for_ever(tmp_path, life):
    with pytest.raises(ReleaseError, match="must expire after 1 hours to 1100 days"):
        release.sign(small_release(tmp_path / "r"), KEY, now=NOW, life=life)


def test_what_is_published_lies_under_its_version_and_is_what_was_signed(tmp_path, repository):
    source = signed(tmp_path / "r")

    repository.publish(source)

    kept = tmp_path / "data" / "packages" / "1.0.0"
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == {p.name: p.read_bytes() for p in source.iterdir()}
    assert all(p.stat().st_mode & 0o777 == 0o644 for p in kept.iterdir())
    assert repository.current().manifest == repository.find("1.0.0").manifest
    assert repository.versions() == ["1.0.0"]
    with pytest.raises(NotFoundError, match=r"published: 1\.0\.0"):
        repository.find("2.0.0")


def _unsigned(directory):
    (directory / "manifest.json.sig").unlink()


def _damaged(directory):
    next(directory.glob("*.tar.gz")).write_bytes(b"CONTENT")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_unsigned, "is not signed: incident-rca release sign"),
        (_damaged, "has not the checksum"),
        (lambda d: rewrite(d, version="9.0.0"), "signature is not by a key that is trusted here"),
        (lambda d: (d / "manifest.json.sig").write_bytes(bytes(64)), "signature is not by a key"),
        (lambda d: release.sign(d, signing.SigningKey.generate(), now=NOW, life=DAY), "signature is not by a key"),
        (lambda d: release.sign(d, KEY, now=NOW - 2 * DAY, life=DAY), "expired at"),
        (lambda d: release.sign(d, KEY, now=NOW + 5 * DAY, life=DAY), "set the clock"),
    ],
)
def test_what_must_not_be_published_leaves_what_was_published_before(tmp_path, repository, spoil, reason):
    repository.publish(signed(tmp_path / "before", "0.9.0"))
    source = signed(tmp_path / "r")
    spoil(source)
    with pytest.raises(ReleaseError, match=reason):
        repository.publish(source)

    assert repository.current_version() == "0.9.0"
    assert repository.versions() == ["0.9.0"]
    assert [p.name for p in (tmp_path / "data" / "packages" / ".releases").iterdir() if p.name.startswith(".")] == []


def test_a_link_is_published_as_the_file_that_it_leads_to(tmp_path, repository):
    source = signed(tmp_path / "r")
    path = next(source.glob("*.tar.gz"))
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")

    repository.publish(source)

    assert not any(p.is_symlink() for p in (tmp_path / "data" / "packages" / "1.0.0").iterdir())


def test_lower_versions_are_published_only_on_purpose(tmp_path, repository):
    repository.publish(signed(tmp_path / "new", "1.1.0"))
    old = signed(tmp_path / "old", "1.0.0")

    with pytest.raises(ReleaseError, match=r"version 1\.0\.0 is lower than 1\.1\.0.*--allow-downgrade publishes it all the same"):
        repository.publish(old)
    repository.publish(old, allow_downgrade=True)

    assert repository.current_version() == "1.0.0"
    assert repository.versions() == ["1.0.0", "1.1.0"]


def test_publishing_again_renews_the_signature_but_never_changes_files(tmp_path, repository):
    repository.publish(signed(tmp_path / "a"))
    renewed = repository.publish(signed(tmp_path / "b", life=90 * DAY))
    assert repository.current().manifest == renewed
    assert len(list((tmp_path / "data" / "packages" / ".releases").iterdir())) == 1
    repository.publish(tmp_path / "b")

    with pytest.raises(ReleaseError, match=r"version 1\.0\.0 was published with other files.*raise the version"):
        repository.publish(signed(tmp_path / "c", content=b"other"))
    assert repository.current().manifest == renewed


def test_nothing_is_published_before_a_key_is_trusted(tmp_path):
    with pytest.raises(ReleaseError, match="no key is trusted here yet: incident-rca release trust FILE"):
        PackageRepository(tmp_path, clock=lambda: NOW).publish(signed(tmp_path / "r"))


def test_a_directory_that_cannot_be_written_is_named(tmp_path, repository):
    (tmp_path / "data" / "packages").mkdir()
    (tmp_path / "data" / "packages" / ".releases").write_text("in the way")
    with pytest.raises(ReleaseError, match=r"\.releases cannot be written"):
        repository.publish(signed(tmp_path / "r"))


def test_keys_change_over_while_both_are_trusted(tmp_path, repository):
    successor = signing.SigningKey.generate()
    repository.publish(signed(tmp_path / "a", "1.0.0"))
    signing.trust(repository.trusted_directory, successor.public)
    repository.publish(signed(tmp_path / "b", "1.1.0", key=successor))
    assert (repository.find("1.0.0").public_key, repository.current().public_key) == (KEY.public, successor.public)

    (repository.trusted_directory / f"{KEY.key_id}.pem").unlink()

    assert repository.current().public_key == successor.public
    with pytest.raises(ReleaseError, match="not by a key that is trusted here"):
        repository.find("1.0.0")


def test_a_broken_pointer_is_no_release(tmp_path, repository):
    repository.publish(signed(tmp_path / "r"))
    (tmp_path / "data" / "packages" / "current").write_text("../../etc\n")
    assert repository.current_version() == ""
    (tmp_path / "data" / "packages" / "current").write_bytes(b"\xff")
    with pytest.raises(ReleaseError, match="cannot be read"):
        repository.current_version()


# The command.


def run(*words) -> int:
    return cli.main(["release", *map(str, words)])


def test_the_whole_way_from_key_to_published_release(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IRCA_RELEASE_PASSPHRASE", "a passphrase")
    out, key, data = tmp_path / "out", tmp_path / "release.pem", tmp_path / "data"

    assert run("key", "--out", key) == 0
    assert run("build", "--out", out, "--no-executable") == 0
    assert run("sign", out, "--key", key, "--expires-in", "90d") == 0
    assert run("trust", f"{key}.pub", "--data-dir", data) == 0
    assert run("publish", out, "--data-dir", data) == 0

    said = capsys.readouterr()
    assert "a passphrase" not in said.out + said.err
    assert f"published: version {__version__}, 1 files" in said.out
    current = PackageRepository(data, clock=time.time).current()
    assert current.version == __version__
    assert not current.built_here
    assert list(data.rglob("release.pem*")) == []


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["sign", "nowhere", "--key", "key.pem"], 1, "nowhere/manifest.json cannot be read"),
        (["sign", "nowhere", "--key", "no.pem"], 1, "the private key no.pem cannot be read"),
        (["sign", "nowhere", "--key", "key.pem", "--expires-in", "soon"], 2, "a duration must look like"),
        (["publish", "nowhere", "--data-dir", "data"], 1, "no key is trusted here yet"),
        (["trust", "key.pem", "--data-dir", "data"], 1, "the private half, which stays with the releaser"),
        (["build", "--out", "full"], 1, "full is not empty"),
        (["build", "--out", "file"], 1, "file cannot be used"),
        (["build", "--out", "out", "--wheels", "empty"], 1, "there is no wheel of annotated-types or psutil in empty"),
        (["key", "--out", "key.pem", "--no-passphrase"], 1, "is there already"),
    ],
)
def test_what_cannot_work_is_one_clear_line(tmp_path, monkeypatch, capsys, words, code, reason):
    monkeypatch.chdir(tmp_path)
    KEY.write(Path("key.pem"))
    for name in ("full/x", "empty"):
        Path(name).mkdir(parents=True)
    Path("file").write_text("in the way")

    assert run(*words) == code

    said = capsys.readouterr().err
    assert said.startswith("incident-rca: ")
    assert reason in said
    assert "Traceback" not in said


def test_an_empty_passphrase_is_no_passphrase(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IRCA_RELEASE_PASSPHRASE", "")
    assert run("key", "--out", tmp_path / "key.pem") == 1
    assert "--no-passphrase makes a key without one" in capsys.readouterr().err
    assert run("key", "--out", tmp_path / "key.pem", "--no-passphrase") == 0
    assert run("sign", small_release(tmp_path / "r"), "--key", tmp_path / "key.pem") == 0


def test_a_build_that_fails_leaves_no_manifest(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(executable.sys, "executable", shutil.which("false"))
    assert run("build", "--out", tmp_path / "out") == 1
    assert "PyInstaller failed (exit code 1)" in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_what_other_machines_built_is_taken_over(tmp_path):
    other = small_release(tmp_path / "other", __version__)
    manifest = build.build(tmp_path / "out", say=lambda text: None, executable=False, include=[other, other])
    release.check_files(tmp_path / "out", manifest.files)
    assert [f.os for f in manifest.files] == [build.own_bundle()[0].os, "any"]

    for spoiled, reason in (
        (small_release(tmp_path / "old", "0.0.1"), r"is version 0\.0\.1, not"),
        (tmp_path / "nowhere", "cannot be used"),
        (tmp_path, "cannot be used"),
    ):
        with pytest.raises(ReleaseError, match=reason):
            build.build(tmp_path / f"out-{spoiled.name}", say=lambda text: None, executable=False, include=[spoiled])
    (other / "manifest.json").write_text("x")
    with pytest.raises(ReleaseError, match="other: the manifest is not JSON"):
        build.build(tmp_path / "out-x", say=lambda text: None, executable=False, include=[other])


def test_downloads_that_fail_say_what_pip_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert run("build", "--out", tmp_path / "out", "--no-executable", "--download") == 1
    said = capsys.readouterr().err
    assert "pip download failed" in said
    assert "No matching distribution" in said


def test_pip_is_asked_for_wheels_of_the_stable_abi_only():
    words = build.download_arguments(["psutil==7.2.2"], "wheels", ("win_amd64",))
    assert words[-3:] == ["--dest", "wheels", "psutil==7.2.2"]
    assert words[words.index("--platform") + 1] == "win_amd64"
    assert "cp311" not in words
    assert package_manifest.FORMAT == 1
