from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.core import ed25519, package_manifest
from connectors.core.errors import (
    DowngradeError,
    ManifestError,
    ManifestExpiredError,
    ManifestNotYetValidError,
    NoMatchingPackageError,
    PackageError,
    SignatureError,
)
from connectors.core.package_manifest import BUNDLE, EXECUTABLE, Host, Manifest, PackageFile

NOW = 1_800_000_000.0
DAY = 86_400.0
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
RFC_8032 = [  # section 7.1: public key, message, signature
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]
ORDER = 2**252 + 27742317777372353535851937790883648493
PRIME = 2**255 - 19


def file(**values) -> PackageFile:
    known = {
        "name": "incident-rca-agent-1.2.3-linux-x86_64.tar.gz",
        "kind": BUNDLE,
        "os": "linux",
        "arch": "x86_64",
        "libc": "glibc",
        "libc_minimum": "2.17",
        "python": ">=3.11",
        "size": 1234,
        "sha256": "ab" * 32,
    }
    return PackageFile(**{**known, **values})


PROGRAM = file(name="program.tar.gz", kind=EXECUTABLE, libc_minimum="2.36", python="")
MANIFEST = Manifest("1.2.3", NOW, NOW + 30 * DAY, package_manifest.key_id(PUBLIC), (file(), PROGRAM))


def document(**values) -> bytes:
    return json.dumps({**json.loads(package_manifest.encode(MANIFEST)), **values}).encode()


def document_of(**values) -> bytes:
    return document(files=[{**dataclasses.asdict(file()), **values}])


@pytest.mark.parametrize(("key", "message", "signature"), RFC_8032)
def test_the_vectors_of_the_rfc_verify_and_no_other_message_does(key, message, signature):
    key, message, signature = (bytes.fromhex(text) for text in (key, message, signature))
    assert ed25519.verify(key, signature, message)
    assert not ed25519.verify(key, signature, message + b"x")


@settings(max_examples=25, deadline=None)
@given(secret=st.binary(min_size=32, max_size=32), message=st.binary(max_size=300), place=st.integers(0, 511))
def test_what_another_library_signs_verifies_and_not_with_one_bit_changed(secret, message, place):
    private = Ed25519PrivateKey.from_private_bytes(secret)
    public, signature = private.public_key().public_bytes_raw(), private.sign(message)
    changed = bytearray(signature)
    changed[place // 8] ^= 1 << place % 8

    assert ed25519.verify(public, signature, message)
    assert not ed25519.verify(public, bytes(changed), message)


@pytest.mark.parametrize(
    ("key", "signature"),
    [
        (PUBLIC[:31], KEY.sign(b"m")),
        (PUBLIC, KEY.sign(b"m")[:63]),
        (PUBLIC, KEY.sign(b"m") + b"\0"),
        (PUBLIC, KEY.sign(b"m")[:32] + (int.from_bytes(KEY.sign(b"m")[32:], "little") + ORDER).to_bytes(32, "little")),  # malleable
        ((1).to_bytes(32, "little"), (1).to_bytes(32, "little") + bytes(32)),  # the neutral point would verify everything
        (bytes(32), (1).to_bytes(32, "little") + bytes(32)),  # another point of small order
        ((1 | 1 << 255).to_bytes(32, "little"), KEY.sign(b"m")),  # x = 0 has no odd form
        ((PRIME + 1).to_bytes(32, "little"), (1).to_bytes(32, "little") + bytes(32)),  # not canonical
        ((2).to_bytes(32, "little"), KEY.sign(b"m")),  # on no point of the curve
        (PUBLIC, (2).to_bytes(32, "little") + bytes(32)),
    ],
)
def test_encodings_that_are_not_sound_verify_nothing(key, signature):
    assert not ed25519.verify(key, signature, b"m")


def test_a_manifest_is_one_line_a_file_in_fixed_order_and_reads_back():
    content = package_manifest.encode(MANIFEST)

    assert package_manifest.parse(content) == MANIFEST
    head, *rows, last, end = content.decode().split("\n")
    assert (last, end) == ("]}", "")
    assert head == (
        '{"format":1,"product":"incident-rca-agent","version":"1.2.3","created":"2027-01-15T08:00:00Z",'
        f'"expires":"2027-02-14T08:00:00Z","key_id":"{package_manifest.key_id(PUBLIC)}","files":['
    )
    assert rows[0] == (
        '{"name":"incident-rca-agent-1.2.3-linux-x86_64.tar.gz","kind":"bundle","os":"linux","arch":"x86_64","libc":"glibc",'
        f'"libc_minimum":"2.17","python":">=3.11","size":1234,"sha256":"{"ab" * 32}"}},'
    )
    assert len(rows) == 2


def test_keys_that_a_later_version_adds_are_passed_over():
    assert package_manifest.parse(document(notes={"x": 1})) == MANIFEST
    assert package_manifest.parse(document_of(licence="x")).files == (file(),)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b" " * (package_manifest.LARGEST_MANIFEST + 1), "larger than"),
        (b'{"format":1,"format":1}', "stands twice"),
        (document(format=2), "format 2, of which this version knows nothing"),
        (document(format=True), "format True"),
        (document(product="other"), "of 'other', not of incident-rca-agent"),
        (document(version="1.2"), "version is '1.2'"),
        (document(version="1.2.3\n"), "version is"),
        (document(version="\u0661.2.3"), "version is"),
        (document(created="2027-01-15T08:00:00+01:00"), "created is"),
        (document(expires="2027-13-15T08:00:00Z"), "expires is 2027-13-15T08:00:00Z, which is no time"),
        (document(expires=None), "expires is None"),
        (document(key_id="AB" * 8), "key_id is"),
        (document(files=[]), "1 to 64 files"),
        (document(files={}), "1 to 64 files"),
        (document(files=[dataclasses.asdict(file())] * 65), "1 to 64 files"),
        (document(files=[dataclasses.asdict(file())] * 2), "lists a file twice"),
        (document(files=["x"]), "not a JSON object"),
        (document_of(name="../x"), r"name is '\.\./x'"),
        (document_of(name=".x"), "name is"),
        (document_of(name='a"b'), "name is"),
        (document_of(name="n" * 129), r"name is 'n+\.\.\."),
        (document_of(name="manifest.json"), "may be called manifest.json"),
        (document_of(os="Linux"), "os is 'Linux'"),
        (document_of(libc_minimum="2"), "libc_minimum is '2'"),
        (document_of(python="3.11"), "python is '3.11'"),
        (document_of(python="==3.11"), "python is"),
        (document_of(size=0), "size 0"),
        (document_of(size=True), "size True"),
        (document_of(size=1.5), r"size 1\.5"),
        (document_of(size=package_manifest.LARGEST_FILE + 1), "not 1 to"),
        (document_of(sha256="AB" * 32), "sha256 is"),
    ],
)
def test_a_manifest_that_is_not_as_it_should_be_is_refused_with_what_is_wrong(content, reason):
    with pytest.raises(ManifestError, match=reason):
        package_manifest.parse(content)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_no_document_makes_parsing_fail_otherwise(value):
    for content in (json.dumps(value).encode(), document(files=[value]), document(version=value), document_of(size=value)):
        with contextlib.suppress(ManifestError):
            package_manifest.parse(content)


def test_a_manifest_that_could_not_be_read_back_is_not_written():
    with pytest.raises(ManifestError, match="version is 'x'"):
        package_manifest.encode(dataclasses.replace(MANIFEST, version="x"))


def test_only_a_trusted_signature_over_exactly_these_bytes_makes_a_manifest_believed():
    content = package_manifest.encode(MANIFEST)
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    signature = KEY.sign(content)

    assert package_manifest.verify(content, signature, [other, PUBLIC]) == MANIFEST  # two keys while one follows the other
    for refused in ((content, signature, [other]), (content, signature, []), (content + b" ", signature, [PUBLIC])):
        with pytest.raises(SignatureError, match="not by a key that is trusted here"):
            package_manifest.verify(*refused)
    with pytest.raises(ManifestError, match="larger than"):
        package_manifest.verify(b" " * 300_000, signature, [PUBLIC])


def test_a_manifest_that_names_another_key_than_its_signer_is_refused():
    content = package_manifest.encode(dataclasses.replace(MANIFEST, key_id="0" * 16))
    with pytest.raises(SignatureError, match=f"names key {'0' * 16}, but {package_manifest.key_id(PUBLIC)} signed it"):
        package_manifest.verify(content, KEY.sign(content), [PUBLIC])


@pytest.mark.parametrize(
    ("arguments", "refusal", "reason"),
    [
        (
            {"now": NOW + 30 * DAY + 1},
            ManifestExpiredError,
            "expired at 2027-02-14T08:00:00Z; this machine's clock says 2027-02-14T08:00:01Z",
        ),
        ({"now": NOW - 2 * DAY}, ManifestNotYetValidError, "clock says 2027-01-13T08:00:00Z: set the clock"),
        ({"now": NOW, "installed_version": "1.2.4"}, DowngradeError, r"version 1\.2\.3 is lower than 1\.2\.4, which is installed"),
        ({"now": NOW, "installed_version": "x"}, ManifestError, "'x' is not a version"),
        ({"now": NOW, "trusted_key_ids": ["f" * 16]}, SignatureError, "is not trusted here"),
    ],
)
def test_a_manifest_that_must_not_be_acted_on_is_refused(arguments, refusal, reason):
    with pytest.raises(refusal, match=reason) as caught:
        package_manifest.check(MANIFEST, **arguments)
    assert isinstance(caught.value, PackageError)
    assert not caught.value.retryable


@pytest.mark.parametrize("installed", ["", "1.2.3", "1.2.2", "1.2.3rc1"])
def test_a_manifest_for_now_passes_where_no_higher_version_runs(installed):
    package_manifest.check(MANIFEST, now=NOW + DAY, installed_version=installed, trusted_key_ids={MANIFEST.key_id})
    package_manifest.check(MANIFEST, now=NOW - DAY / 2, installed_version=installed)  # a clock that is somewhat behind


def test_versions_are_ordered_as_people_expect():
    ordered = [
        "0.9.10",
        "0.10.0.dev1",
        "0.10.0.dev2",
        "0.10.0a1",
        "0.10.0b1",
        "0.10.0rc1.dev3",
        "0.10.0rc1",
        "0.10.0rc2",
        "0.10.0",
        "10.0.0",
    ]
    assert sorted([*ordered[5:], *ordered[:5]], key=package_manifest.version_key) == ordered


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (Host("linux", "x86_64", "glibc", "2.17", "3.11"), file().name),
        (Host("linux", "x86_64", "glibc", "2.36", "3.13.1"), file().name),
        (Host("linux", "x86_64", "glibc", "2.36", "3.9.2"), PROGRAM.name),
        (Host("linux", "x86_64", "glibc", "2.41.1"), PROGRAM.name),
    ],
)
def test_a_host_gets_the_bundle_where_its_python_will_do_and_the_program_elsewhere(host, name):
    assert package_manifest.choose(iter((PROGRAM, file())), host).name == name


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (Host("linux", "riscv64", "glibc", "2.36", "3.11"), "has no package for linux on riscv64$"),
        (Host("macos", "x86_64", python="3.11"), "has no package for macos on x86_64$"),
        (
            Host("linux", "x86_64", "glibc", "2.31", "3.9"),
            r"the bundle needs Python 3\.11 or newer \(3\.9 is here\); the executable needs glibc 2\.36 or newer \(2\.31 is here\)",
        ),
        (
            Host("linux", "x86_64", "musl", "1.2.4"),
            r"Python 3\.11 or newer \(none is here\) and glibc \(musl is here\); the executable needs glibc \(musl is here\)",
        ),
        (Host("linux", "x86_64", "glibc", ""), r"glibc 2\.36 or newer \(an unknown version is here\)"),
    ],
)
def test_a_host_for_which_there_is_nothing_learns_what_is_missing(host, reason):
    with pytest.raises(NoMatchingPackageError, match=reason):
        package_manifest.choose(MANIFEST.files, host)


def test_a_package_for_any_host_fits_any():
    anywhere = file(os="any", arch="any", libc="", libc_minimum="")
    assert package_manifest.choose([anywhere], Host("windows", "aarch64", python="3.14.0")) == anywhere


def test_machines_are_called_as_manifests_call_them():
    assert [package_manifest.architecture(name) for name in ("AMD64", "arm64", "x86_64", "riscv64")] == [
        "x86_64",
        "aarch64",
        "x86_64",
        "riscv64",
    ]


def test_reading_manifests_needs_nothing_but_the_standard_library():
    root = Path(package_manifest.__file__).parents[2]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from connectors.core import package_manifest"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
