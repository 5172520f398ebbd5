from __future__ import annotations

import base64
import html
import json
import re
import time
import urllib.parse
from dataclasses import replace

import httpx2
import pytest
from fastapi.testclient import TestClient
from joserfc import jwt
from joserfc.jwk import OctKey, OKPKey

from app.auth.oidc import KEYS_LIFETIME, METADATA_LIFETIME, PENDING_LIFETIME, RETRY_AFTER
from app.main import create_app
from app.settings import Settings
from tests.oidc_provider import CLIENT_ID, CLIENT_SECRET, Provider, ec_key, rsa_key, serve
from tests.platform_fixtures import Clock

pytestmark = pytest.mark.sockets
KEY = "a-preset-admin-key-for-tests"
BEARER = {"authorization": f"Bearer {KEY}"}
ROLES = {"sre": {"role": "operator", "environments": ["prod-*"]}, "platform": {"role": "admin"}}
FIRST_KEY = rsa_key("first")
RIGHT = Provider(key=FIRST_KEY)


@pytest.fixture(scope="module")
def shared_provider():
    with serve(RIGHT) as running:
        yield running


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock(time.time())


@pytest.fixture(scope="module")
def application(shared_provider, clock, tmp_path_factory):
    shared_provider.clock = clock
    settings = settings_for(shared_provider, tmp_path_factory.mktemp("platform"))
    with TestClient(create_app(settings, clock), follow_redirects=False, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def provider(shared_provider) -> Provider:
    """The provider as it should be, whatever the test before did to it."""
    right = replace(Provider(key=FIRST_KEY), url=shared_provider.url, clock=shared_provider.clock)
    vars(shared_provider).update(vars(right))
    shared_provider.claims = {"name": "Ada Lovelace", "groups": ["everybody", "platform"]}
    return shared_provider


@pytest.fixture
def browser(application, provider, clock) -> TestClient:
    """A browser without cookies, long after the one before: all is forgiven, and nothing is cached."""
    clock.advance(2 * METADATA_LIFETIME)
    application.cookies.clear()
    return application


def settings_for(provider: Provider, folder, **changes) -> Settings:
    given = {
        "data_dir": folder,
        "admin_api_key": KEY,
        "public_url": "http://testserver",
        "oidc_issuer": provider.url,
        "oidc_client_id": CLIENT_ID,
        "oidc_client_secret": CLIENT_SECRET,
        "oidc_roles": ROLES,
        "oidc_name": "Example SSO",
    }
    return Settings(**{**given, **changes})


def begin(browser: TestClient, target: str = "/") -> str:
    """Begin a sign-in: where the provider sends the browser back to."""
    begun = browser.get("/sign-in/oidc", params={"next": target})
    assert begun.status_code == 303, text(begun)
    answer = httpx2.get(begun.headers["location"], trust_env=False)
    assert answer.status_code == 303
    return answer.headers["location"]


def sign_in(browser: TestClient, target: str = "/"):
    return browser.get(begin(browser, target))


def text(response) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", response.text)).split())


def last_audit(browser: TestClient, action: str = "session.open") -> dict:
    return browser.get("/api/v1/audit", params={"action": action, "limit": 1}, headers=BEARER).json()["items"][0]


def refused(browser: TestClient, status: int, *words: str) -> None:
    RIGHT.clock.advance(1)  # so that the audit log's order is that of what happened
    answer = sign_in(browser, "/agents")
    assert (answer.status_code, "irca_session" in browser.cookies) == (status, False), text(answer)
    entry = last_audit(browser)
    for word in words:
        assert word in text(answer), text(answer)
        assert word in entry["reason"]
    assert entry["outcome"] == "refused"
    assert 'href="/sign-in/oidc?next=%2Fagents"' in answer.text
    assert 'name="api_key"' in answer.text


def test_somebody_signs_in_with_the_role_of_their_group_and_lands_where_they_wanted(browser):
    page = browser.get("/sign-in?next=/agents?status=offline")
    link = html.unescape(re.search(r'href="(/sign-in/oidc[^"]*)"', page.text)[1])
    assert "Sign in with Example SSO" in page.text
    assert "7 days with an API key, 12 hours with Example SSO" in text(page)
    begun = browser.get(link)
    cookie = begun.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    asked = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(begun.headers["location"]).query))
    assert asked["redirect_uri"] == "http://testserver/sign-in/oidc/callback"
    assert (asked["code_challenge_method"], asked["scope"]) == ("S256", "openid profile email")
    back = browser.get(httpx2.get(begun.headers["location"], trust_env=False).headers["location"])
    assert (back.status_code, back.headers["location"]) == (303, "/agents?status=offline")
    assert "irca_oidc" not in browser.cookies
    page = browser.get("/")
    assert "Ada Lovelace" in page.text
    assert "Role: admin. The session ends at" in page.text
    entry = last_audit(browser)
    assert (entry["actor_kind"], entry["actor_id"], entry["actor_name"], entry["target_kind"]) == ("user", "u-1", "Ada Lovelace", "user")
    assert (entry["outcome"], entry["after"]["kind"], entry["after"]["role"]) == ("done", "oidc", "admin")


def test_a_user_acts_under_their_own_name_and_sees_their_environments_only(browser, provider):
    provider.claims = {"preferred_username": "grace", "groups": "sre", "sub": "u-2"}
    assert sign_in(browser).status_code == 303
    made = browser.post("/api/v1/agent/provision", json={"agent_type": "server", "environment_name": "prod-eu"})
    assert made.status_code == 200
    assert browser.get("/audit").status_code == 403
    refusal = browser.post("/api/v1/agent/provision", json={"agent_type": "server", "environment_name": "staging"})
    assert refusal.status_code == 403
    link = browser.post("/api/v1/sign-in-links")
    assert (link.status_code, "name one in api_key_id" in link.text) == (422, True)


def test_the_session_ends_after_its_time_and_by_an_admin(browser, clock):
    sign_in(browser)
    assert browser.get("/").status_code == 200
    clock.advance(43_201)
    assert browser.get("/").status_code == 303
    sign_in(browser)
    platform = browser.app.state.platform
    [shown] = [s for s in browser.portal.call(platform.auth.list_sessions) if s.kind == "oidc"]
    assert (shown.subject, shown.key_id, shown.name, shown.role) == ("u-1", None, "Ada Lovelace", "admin")
    assert (shown.client_address, shown.user_agent) == ("testclient", "testclient")
    browser.portal.call(platform.auth.end_session, shown.id)
    assert browser.get("/").status_code == 303


def test_signing_out_ends_our_session_and_offers_to_end_the_providers(browser, provider):
    sign_in(browser)
    answer = browser.post("/sign-out")
    assert answer.headers["location"] == "/sign-in?signed_out=provider"
    assert browser.get("/").status_code == 303
    page = browser.get("/sign-in?signed_out=provider")
    leave = urllib.parse.urlsplit(html.unescape(re.search(r'href="(http://[^"]+/logout[^"]*)"', page.text)[1]))
    assert dict(urllib.parse.parse_qsl(leave.query)) == {"client_id": CLIENT_ID, "post_logout_redirect_uri": "http://testserver/sign-in"}
    assert last_audit(browser, "session.close")["actor_id"] == "u-1"


def test_a_provider_without_a_page_for_signing_out_is_told_of_instead(browser, provider):
    provider.metadata = {"end_session_endpoint": None}
    assert "You may still be signed in at Example SSO" in text(browser.get("/sign-in?signed_out=provider"))


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [(ec_key("es"), "ES256"), (rsa_key("ps"), "PS256"), (OKPKey.generate_key("Ed25519", {"kid": "ed"}), "Ed25519")],
    ids=["ES256", "PS256", "Ed25519"],
)
def test_other_signatures_of_public_keys_are_taken(browser, provider, key, algorithm):
    provider.key, provider.algorithm = key, algorithm
    assert sign_in(browser).status_code == 303


def test_keys_are_fetched_once_and_anew_when_the_provider_signs_with_another(browser, provider, clock):
    for _ in range(2):
        assert sign_in(browser).status_code == 303
        browser.cookies.clear()
    assert provider.asked.count("/jwks") == 1
    assert provider.asked.count("/.well-known/openid-configuration") == 1
    provider.key = rsa_key("second")
    refused(browser, 401, "invalid key id")  # fetched a moment ago: whoever forges tokens shall not have us ask and ask
    clock.advance(61)
    assert sign_in(browser).status_code == 303
    assert provider.asked.count("/jwks") == 2
    clock.advance(KEYS_LIFETIME)
    browser.cookies.clear()
    assert sign_in(browser).status_code == 303
    assert provider.asked.count("/jwks") == 3


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"iss": "https://evil.example"}, "(iss)"),
        ({"aud": "another-client"}, "(aud)"),
        ({"aud": [CLIENT_ID, "another-client"]}, "(azp)"),
        ({"azp": "another-client"}, "(azp)"),
        ({"nonce": "of-another-sign-in"}, "(nonce)"),
        ({"nonce": None}, "(nonce)"),
        ({"exp": 1_000_000}, "expired token"),
        ({"exp": None}, "(exp)"),
        ({"iat": 9_999_999_999}, "(iat)"),
        ({"sub": None}, "(sub)"),
        ({"sub": "u" * 256}, "longer than 255"),
        ({"at_hash": "bm90LXRoZS1oYXNo"}, "(at_hash)"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else None,
)
def test_an_id_token_that_is_not_for_this_sign_in_is_refused(browser, provider, changed, word):
    provider.changed = changed
    refused(browser, 401, "ID token of Example SSO is refused", word)


def test_several_audiences_are_taken_when_we_are_the_authorized_party(browser, provider):
    provider.changed = {"aud": [CLIENT_ID, "another-client"], "azp": CLIENT_ID}
    assert sign_in(browser).status_code == 303


def _encoded(value: dict) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


FORGERIES = {
    "no signature": lambda claims: f"{_encoded({'alg': 'none'})}.{_encoded(claims)}.",
    "an empty signature": lambda claims: f"{_encoded({'alg': 'RS256', 'kid': 'first'})}.{_encoded(claims)}.",
    "the public key as a secret": lambda claims: jwt.encode(
        {"alg": "HS256", "kid": "first"}, claims, OctKey.import_key(RIGHT.key.as_pem(private=False).hex()), algorithms=["HS256"]
    ),
    "the client's secret": lambda claims: jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(CLIENT_SECRET * 3), algorithms=["HS256"]),
    "another key of the same name": lambda claims: jwt.encode(
        {"alg": "RS256", "kid": "first"}, claims, rsa_key("first"), algorithms=["RS256"]
    ),
    "no token at all": lambda _: "nonsense",
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
def test_an_id_token_with_a_signature_that_proves_nothing_is_refused(browser, provider, forge):
    provider.token = forge
    refused(browser, 401, "ID token of Example SSO is refused")


def test_a_return_is_taken_once_and_only_in_the_browser_that_began(browser, provider):
    provider.lasting = True
    back = begin(browser)
    cookies = dict(browser.cookies)
    browser.cookies.clear()
    stolen = browser.get(back)
    assert (stolen.status_code, "not begun in this browser" in text(stolen)) == (401, True)
    browser.cookies.update(cookies)
    assert browser.get(back).status_code == 303
    browser.cookies.clear()
    browser.cookies.update(cookies)
    again = browser.get(back)
    assert (again.status_code, "completed before" in text(again)) == (401, True)


def test_the_state_of_another_sign_in_is_refused(browser):
    first = begin(browser)
    begin(browser)
    answer = browser.get(first)
    assert (answer.status_code, "began last" in text(answer)) == (401, True)
    assert browser.get("/sign-in/oidc/callback?code=x").status_code == 401


def test_who_takes_too_long_begins_again(browser, clock):
    back = begin(browser)
    clock.advance(PENDING_LIFETIME + 1)
    assert "too long ago" in text(browser.get(back))


def test_a_code_of_another_sign_in_fails_for_want_of_its_verifier(browser, provider):
    other = urllib.parse.parse_qs(urllib.parse.urlsplit(begin(browser)).query)["code"][0]
    own = urllib.parse.parse_qs(urllib.parse.urlsplit(begin(browser)).query)["state"][0]
    answer = browser.get("/sign-in/oidc/callback", params={"code": other, "state": own})
    assert (answer.status_code, "PKCE verification failed" in text(answer)) == (401, True)


def test_the_answer_of_another_provider_is_refused(browser, provider):
    answer = browser.get(begin(browser) + "&iss=https://evil.example")
    assert (answer.status_code, "another provider" in text(answer)) == (401, True)
    assert browser.get(begin(browser) + "&iss=" + provider.url).status_code == 303
    browser.cookies.clear()
    assert "no authorization code" in text(browser.get(begin(browser).replace("code=", "kode=")))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (("access_denied", ""), "Example SSO did not let you in."),
        (("access_denied", "not on the list"), "did not let you in: not on the list"),
        (("login_required", "<script>alert(1)</script>"), "refused the sign-in: login_required (<script>"),
    ],
    ids=lambda v: v[0] if isinstance(v, tuple) else None,
)
def test_what_the_provider_refuses_is_told(browser, provider, error, words):
    provider.error = error
    answer = browser.get(begin(browser))
    assert answer.status_code == 401
    assert words in html.unescape(answer.text)
    assert "<script>alert" not in answer.text


def test_somebody_whom_nothing_grants_a_role_is_refused_by_name(browser, provider):
    provider.claims = {"name": "Mallory", "groups": [f"group-{n}" for n in range(7)]}
    refused(browser, 403, "othing grants Mallory a role here", "'group-0'", "and 2 more")
    assert (last_audit(browser)["actor_kind"], last_audit(browser)["actor_id"]) == ("user", "u-1")
    provider.claims = {"name": "Mallory"}
    refused(browser, 403, "the claim groups is missing")


def test_groups_that_are_in_the_user_info_only_are_found_there(browser, provider):
    provider.claims, provider.user_info = {"name": "Ada"}, {"sub": "u-1", "groups": ["platform"]}
    assert sign_in(browser).status_code == 303
    browser.cookies.clear()
    provider.user_info = {"sub": "somebody-else", "groups": ["platform"]}
    refused(browser, 401, "another user")


def test_a_provider_that_takes_the_secret_in_the_body_only_gets_it_there(browser, provider):
    provider.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    assert sign_in(browser).status_code == 303


@pytest.mark.parametrize(
    ("path", "status", "body", "words"),
    [
        ("/token", 500, b"{}", "Example SSO answered 500"),
        ("/token", 200, b"<html>", "does not answer as an OpenID provider"),
        ("/token", 200, b'{"access_token": "x", "token_type": "Bearer"}', "without an ID token"),
        ("/jwks", 503, b"", "Example SSO answered 503"),
        ("/jwks", 200, b'{"keys": [{"kty": "RSA"}]}', "keys of Example SSO cannot be read"),
        ("/jwks", 200, b"[]", "does not answer as an OpenID provider"),
    ],
)
def test_a_provider_in_trouble_is_told_of_and_not_held_against_anybody(browser, provider, path, status, body, words):
    provider.broken = {path: (status, body)}
    refused(browser, 502, words)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"issuer": "https://evil.example"}, "calls itself 'https://evil.example'"),
        ({"authorization_endpoint": None}, "no usable authorization_endpoint"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "no usable authorization_endpoint"),
    ],
)
def test_metadata_that_cannot_be_used_are_told_of_before_anybody_is_sent_away(browser, provider, metadata, words):
    provider.metadata = metadata
    answer = browser.get("/sign-in/oidc")
    assert (answer.status_code, words in text(answer)) == (502, True), text(answer)
    assert last_audit(browser)["outcome"] == "refused"


def test_a_provider_that_failed_is_left_alone_for_a_moment(browser, provider, clock):
    provider.broken = {"/.well-known/openid-configuration": (503, b"")}
    for _ in range(3):
        assert browser.get("/sign-in/oidc").status_code == 502
    assert len(provider.asked) == 1
    provider.broken = {}
    clock.advance(RETRY_AFTER)
    assert sign_in(browser).status_code == 303


def test_who_forges_again_and_again_has_to_wait(browser, clock):
    for _ in range(10):
        assert browser.get("/sign-in/oidc/callback?code=x&state=y").status_code == 401
    answer = browser.get("/sign-in/oidc/callback?code=x&state=y")
    assert (answer.status_code, int(answer.headers["retry-after"]) >= 1) == (429, True)
    assert "Too many failures" in text(answer)


def test_a_wanted_page_too_long_for_a_cookie_is_forgotten(browser):
    assert sign_in(browser, "/agents?search=" + "x" * 3000).headers["location"] == "/"
    browser.cookies.clear()
    assert sign_in(browser, "//evil.example").headers["location"] == "/"


def test_a_provider_that_is_away_is_one_clear_page(tmp_path, free_port):
    settings = settings_for(Provider(url=f"http://127.0.0.1:{free_port}"), tmp_path, oidc_name="")
    with TestClient(create_app(settings), follow_redirects=False) as client:
        answer = client.get("/sign-in/oidc")
        assert (answer.status_code, "127.0.0.1 cannot be reached" in text(answer)) == (502, True)
        assert "You may still be signed in at 127.0.0.1" in text(client.get("/sign-in?signed_out=provider"))


def test_under_tls_cookies_belong_to_this_host_alone(shared_provider, provider, tmp_path):
    settings = settings_for(shared_provider, tmp_path, public_url="https://testserver", oidc_default_role="viewer", oidc_roles={})
    provider.clock = time.time
    with TestClient(create_app(settings), base_url="https://testserver", follow_redirects=False) as client:
        assert sign_in(client).status_code == 303
        assert list(client.cookies) == ["__Host-irca_session"]
        assert client.get("/").status_code == 200
        token = client.cookies["__Host-irca_session"]
        client.cookies.clear()
        client.cookies.set("irca_session", token)
        assert client.get("/").status_code == 303
        client.cookies.clear()
        client.cookies.set("__Host-irca_session", token)
    with TestClient(
        create_app(settings.model_copy(update={"oidc_issuer": ""})), base_url="https://testserver", follow_redirects=False
    ) as client:
        client.cookies.set("__Host-irca_session", token)
        assert client.get("/").status_code == 303, "without a provider its users are signed out"
        assert client.get("/sign-in/oidc").headers["location"] == "/sign-in"
        assert client.get("/sign-in/oidc/callback").headers["location"] == "/sign-in"
