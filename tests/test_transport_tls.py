"""Which certificates are trusted, and what is said of the others."""

from __future__ import annotations

import ssl

import pytest
import trustme

from connectors.core.errors import ConfigError, TransportError
from connectors.core.transport import Transport
from tests.fake_platform import FakePlatform
from tests.transport_servers import BEARER, server_context


@pytest.fixture
def platform():
    made = FakePlatform()
    yield made
    made.down()


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def tls_platform(authority):
    made = FakePlatform(context=server_context(authority, "localhost"))
    made.interfere = lambda *_: (200, {}, b"fine")
    yield made
    made.down()


@pytest.fixture
def ca_file(authority, tmp_path):
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.mark.sockets
def test_a_private_authority_is_trusted_when_named(tls_platform, ca_file):
    transport = Transport(tls_platform.url, lambda: BEARER, ca_file=ca_file, environ={})
    assert transport.post("/", b"x" * 5000).body == b"fine"
    assert transport.post("/", b"").body == b"fine"
    assert len(tls_platform.requests) == 2
    transport.close()


@pytest.mark.sockets
def test_an_unknown_authority_is_refused_and_says_how_to_trust_it(tls_platform):
    with pytest.raises(TransportError, match=r"certificate is not trusted: .*ca_file names a private CA"):
        Transport(tls_platform.url, lambda: BEARER, environ={}).post("/", b"")


@pytest.mark.sockets
def test_a_certificate_of_another_name_is_refused(authority, ca_file):
    platform = FakePlatform(context=server_context(authority, "elsewhere.example"))
    with pytest.raises(TransportError, match="not trusted: Hostname mismatch"):
        Transport(platform.url, lambda: BEARER, ca_file=ca_file, environ={}).post("/", b"")
    platform.down()


@pytest.mark.sockets
def test_the_systems_directory_is_enough_and_where_it_is_not_the_bundle_is_read(tls_platform, authority, tmp_path, monkeypatch):
    bundle, directory = tmp_path / "bundle.pem", tmp_path / "certs"
    directory.mkdir()
    authority.cert_pem.write_to_path(str(bundle))
    (directory / "0123abcd.0").write_text("")  # hashed, but our authority is not in it
    paths = ssl.get_default_verify_paths()._replace(capath=str(directory))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    loaded = []

    def load(context, purpose=ssl.Purpose.SERVER_AUTH):
        loaded.append(purpose)
        context.load_verify_locations(cafile=str(bundle))

    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", load)
    transport = Transport(tls_platform.url, lambda: BEARER, environ={})
    assert loaded == []
    assert transport.post("/", b"").body == b"fine"
    assert len(loaded) == 1
    transport.close()
    (directory / "0123abcd.0").unlink()
    Transport(tls_platform.url, lambda: BEARER, environ={}).close()
    assert len(loaded) == 2, "an empty directory is not relied upon"
    paths = paths._replace(capath=str(tmp_path / "missing"))
    Transport(tls_platform.url, lambda: BEARER, environ={}).close()
    assert len(loaded) == 3


def test_a_ca_file_that_cannot_be_read_is_a_configuration_error(tmp_path):
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    for name in (str(bad), str(tmp_path / "missing.pem")):
        with pytest.raises(ConfigError, match="ca_file") as caught:
            Transport("https://localhost", lambda: BEARER, ca_file=name, environ={})
        assert caught.value.field == "ca_file"


@pytest.mark.sockets
def test_plain_http_where_tls_was_expected_is_named(platform):
    with pytest.raises(TransportError, match="TLS failed"):
        Transport(platform.url.replace("http:", "https:"), lambda: BEARER, environ={}).post("/", b"")
