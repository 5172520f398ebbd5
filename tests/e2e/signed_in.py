"""Chromium, people who are signed in to a served platform, and what the API says meanwhile.

Import as ``from e2e.signed_in import Person, api, chromium, sign_in, until``.
"""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright
from waiting import eventually

from tests.served_platform import ADMIN_KEY, Served

PATIENCE = 60_000
"""Milliseconds that something may take to show on a page, on a busy machine."""


@dataclass
class Person:
    """Somebody at a browser, signed in; ``complaints`` is what its console said."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def post(self, path: str, fields: dict[str, str]) -> int:
        """The status of the answer to a form that is posted by hand, with this session's form token where a page of theirs shows one."""
        script = """async ([path, fields]) => {
            const known = document.querySelector("input[name=form_token]");
            const body = new URLSearchParams({ ...(known ? { form_token: known.value } : {}), ...fields });
            return (await fetch(path, { method: "POST", body })).status;
        }"""
        return int(self.page.evaluate(script, [path, fields]))


@contextmanager
def chromium() -> Iterator[Browser]:
    program = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@contextmanager
def sign_in(browser: Browser, served: Served, role: str, path: str = "/") -> Iterator[Person]:
    """Somebody of that role, at ``path``."""
    key = api(served, "POST", "/api/v1/api-keys", {"name": role, "role": role})["key"]
    context = browser.new_context(base_url=served.url, viewport={"width": 1280, "height": 900}, locale="en-GB")
    context.set_default_timeout(PATIENCE)
    try:
        made = Person(context.new_page())
        made.page.on("console", lambda m: made.complaints.append(m.text) if m.type in ("error", "warning") else None)
        made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
        made.page.goto(path)
        made.page.get_by_label("API key").fill(key)
        made.page.get_by_role("button", name="Sign in").click()
        made.page.wait_for_url(served.url + path)
        yield made
    finally:
        context.close()


def api(served: Served, method: str, path: str, body: object = None) -> Any:
    """The API's answer to an admin."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {ADMIN_KEY}"}
    request = urllib.request.Request(served.url + path, None if body is None else json.dumps(body).encode(), headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or b"null")


def until(ask: Callable[[], Any], holds: Callable[[Any], object]) -> Any:
    """What ``ask`` says once ``holds`` is true of it."""
    answers: list[Any] = []

    def held() -> object:
        answers[:] = [ask()]
        return holds(answers[0])

    eventually(held, PATIENCE / 1000, lambda: answers)
    return answers[0]
