"""Signing in through an OpenID provider and by a one-time link in a real browser, which enforces our content security policy."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest
import uvicorn
from playwright.sync_api import BrowserContext, expect, sync_playwright

from app.main import create_app
from app.settings import Settings
from tests.oidc_provider import CLIENT_ID, CLIENT_SECRET, Provider, serve

pytestmark = [pytest.mark.requires("chromium"), pytest.mark.sockets]
KEY = "a-preset-admin-key-for-tests"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with serve(Provider()) as running:
        yield running


@pytest.fixture(scope="module")
def platform(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        settings = Settings(
            data_dir=tmp_path_factory.mktemp("platform"),
            public_url=url,
            admin_api_key=KEY,
            oidc_issuer=provider.url,
            oidc_client_id=CLIENT_ID,
            oidc_client_secret=CLIENT_SECRET,
            oidc_name="Example SSO",
            oidc_roles={"platform": {"role": "admin"}},
        )
        config = uvicorn.Config(create_app(settings), log_level="warning", lifespan="on", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="platform")
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield url
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def browser(platform: str) -> Iterator[BrowserContext]:
    program = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        context = chromium.new_context(base_url=platform, viewport={"width": 390, "height": 800})
        context.set_default_timeout(15_000)
        yield context
        chromium.close()


def test_a_person_is_refused_then_let_in_by_the_provider_and_signs_out(browser, provider, platform):
    page, violations = browser.new_page(), []
    page.on("console", lambda message: violations.append(message.text) if "Content Security Policy" in message.text else None)
    provider.claims = {"name": "Ada Lovelace", "groups": ["guests"]}
    page.goto("/agents")
    page.get_by_role("link", name="Sign in with Example SSO").click()
    expect(page.get_by_role("alert")).to_contain_text("Nothing grants Ada Lovelace a role here")
    provider.claims = {"name": "Ada Lovelace", "groups": ["platform"]}
    page.get_by_role("link", name="Sign in with Example SSO").click()
    page.wait_for_url(f"{platform}/agents")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("status")).to_contain_text("You are signed out here")
    expect(page.get_by_role("link", name="Sign out of Example SSO too")).to_be_visible()
    assert violations == []


def test_a_one_time_link_signs_in_with_one_click_and_once(browser, platform):
    made = httpx2.post(f"{platform}/api/v1/sign-in-links", headers={"authorization": f"Bearer {KEY}"}, trust_env=False)
    page, referers = browser.new_page(), []
    page.on("request", lambda request: referers.append(request.headers.get("referer", "")))
    page.goto(made.json()["url"])
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{platform}/")
    assert not any("/sign-in/link/" in referer for referer in referers)
    page.goto(made.json()["url"])
    expect(page.get_by_role("alert")).to_contain_text("has been used")
