"""A webhook that fails, recovers and delivers again, in a real browser, with a real receiver; and what a viewer may not do there."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from e2e.signed_in import PATIENCE, api, chromium, sign_in, until
from playwright.sync_api import Browser, Locator, Page, expect
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests.served_platform import Served, serve
from tests.webhook_receiver import receiver

pytestmark = [pytest.mark.requires("chromium"), pytest.mark.sockets]

TEST, REVOKED = "irca.webhook.test", "irca.token.revoked"
LOOK = {"timeout": PATIENCE}


@pytest.fixture
def served(tmp_path, monkeypatch) -> Iterator[Served]:
    monkeypatch.setenv("IRCA_WEBHOOK_ALLOWED_NETWORKS", "127.0.0.0/8")
    with serve(tmp_path / "data") as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def create(page: Page, url: str) -> str:
    """Make the webhook on the page; its secret."""
    page.get_by_role("link", name="New webhook").first.click()
    page.get_by_label("Name").fill("pager")
    page.get_by_label("Receiver").fill(url)
    page.get_by_label("Event types").fill(REVOKED)
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("pager was created")
    secret = page.get_by_label("Secret").inner_text().strip()
    page.get_by_role("link", name="Go on").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("pager")
    return secret


def revoke_a_token(served: Served) -> None:
    agent = api(served, "POST", "/api/v1/agent/provision", {"agent_type": "server", "environment_name": "checkout"})["agent_id"]
    [token] = api(served, "GET", f"/api/v1/agents/{agent}/tokens")["items"]
    api(served, "DELETE", f"/api/v1/enrolment-tokens/{token['id']}")


def row(page: Page, event: str) -> Locator:
    return page.get_by_role("region", name="Deliveries").get_by_role("row", name=re.compile(re.escape(event)))


def test_a_webhook_fails_and_is_put_right_and_what_failed_is_delivered_again(served, browser):
    with receiver() as there, sign_in(browser, served, "admin", "/webhooks") as someone:
        page = someone.page
        there.answer(500, body=b"the database is away")
        secret = create(page, there.url)
        address = page.url

        page.get_by_role("button", name="Send a test").click()
        expect(page.get_by_role("heading", level=1)).to_have_text(TEST)
        expect(page.locator("#page .head .reason")).to_contain_text("500", **LOOK)
        expect(page.locator("#page .head .status")).to_have_text("waiting")
        expect(page.get_by_label("Answer", exact=True).first).to_have_text("the database is away")
        expect(page.locator("#page .summary")).to_contain_text("Next try")

        revoke_a_token(served)
        page.goto(address)
        expect(row(page, REVOKED)).to_contain_text("500", **LOOK)
        expect(row(page, TEST)).to_contain_text("waiting")
        expect(page.locator("#page .head .status")).to_have_text(re.compile("retrying|failing"))
        expect(page.locator("#page .head .reason")).to_contain_text("in a row failed")

        there.answer(200, body=b"thank you")
        row(page, REVOKED).get_by_role("link").click()
        expect(page.get_by_role("heading", level=1)).to_have_text(REVOKED)
        page.get_by_role("button", name="Deliver again").click()
        page.wait_for_url(address)
        replayed = row(page, REVOKED).filter(has_text="replay 1")
        expect(replayed).to_contain_text("delivered", **LOOK)
        expect(replayed).to_contain_text("200")
        expect(page.locator("#page .head .status")).to_have_text("well", **LOOK)
        expect(page.locator("#page .head .reason")).to_have_count(0)
        expect(row(page, TEST)).to_contain_text("delivered", **LOOK)  # what waited was hurried, since the receiver is back

        replayed.get_by_role("link").click()
        expect(page.locator("#page .head .status")).to_have_text("delivered")
        expect(page.get_by_label("Answer", exact=True).first).to_have_text("thank you")

        told = [one for one in there.received if one.message["type"] == REVOKED]
        assert len(told) >= 2
        assert len({one.headers["webhook-id"] for one in told}) == 1, "the same event is known by its id, however often it comes"
        for one in there.received:
            assert Webhook(secret).verify(one.body, one.headers) == one.message
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(told[-1].body + b" ", told[-1].headers)
        assert secret not in page.content()
        assert someone.complaints == []


def test_a_viewer_sees_how_a_webhook_fares_and_can_do_nothing_about_it(served, browser):
    with receiver() as there:
        there.answer(500)
        made = api(served, "POST", "/api/v1/webhooks", {"name": "pager", "url": there.url, "filters": {"event_types": [REVOKED]}})
        revoke_a_token(served)
        deliveries = f"/api/v1/webhook-deliveries?webhook_id={made['id']}"
        [delivery] = until(lambda: api(served, "GET", deliveries)["items"], lambda found: found and found[0]["attempts"])
        with sign_in(browser, served, "viewer", "/webhooks") as someone:
            page = someone.page
            own = f"/webhooks/{made['id']}"
            for path in ("/webhooks", own, f"{own}/deliveries/{delivery['id']}"):
                page.goto(path)
                expect(page.locator("main")).to_contain_text("pager")
                expect(page.locator("main form, main button:not(.copy), main a[href$='/new'], main a[href$='/edit']")).to_have_count(0)
            expect(page.locator("#page .head .reason")).to_contain_text("500")
            spec = {"name": "mine", "url": there.url, "template": "standard", "min_severity": "9", "enabled": "yes"}
            forms = {
                "/webhooks/new": spec,
                f"{own}/edit": {**spec, "version": str(made["version"])},
                f"{own}/test": {},
                f"{own}/replay": {"delivery_id": delivery["id"]},
                f"{own}/rotate": {},
                f"{own}/delete": {},
            }
            assert {path: someone.post(path, fields) for path, fields in forms.items()} == dict.fromkeys(forms, 403)
            [left] = api(served, "GET", "/api/v1/webhooks")["items"]
            assert (left["id"], left["name"], left["version"]) == (made["id"], "pager", made["version"])
            assert [one["id"] for one in api(served, "GET", deliveries)["items"]] == [delivery["id"]]
