from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import ValidationError

from app.audit.records import Actor
from app.audit.service import AuditFilter
from app.auth.oidc_roles import claim_values, display_name, identity_of
from app.auth.service import Identity, Role
from app.errors import ForbiddenError, NotFoundError
from app.settings import Settings
from app.web.sign_in_routes import _span

ADMIN = Actor("api-key", "admin", "admin")
ADA = Identity("oidc:u-1", "Ada", Role.OPERATOR, ("prod-*",), "u-1")


async def acts(parts, action: str) -> list:
    return (await parts.auth._audit.list_entries(AuditFilter(action=action))).items


async def test_sessions_are_listed_newest_first_with_who_how_and_until_when(parts):
    row, text = await parts.auth.create_key("me", Role.ADMIN)
    await parts.auth.open_session(text, "10.0.0.1", "one browser")
    parts.clock.advance(1)
    await parts.auth.open_user_session(ADA, timedelta(hours=12), "10.0.0.2", "another browser")
    user, key = await parts.auth.list_sessions()
    assert (user.kind, user.subject, user.name, user.role, user.environments) == ("oidc", "u-1", "Ada", "operator", ("prod-*",))
    assert (key.kind, key.key_id, key.subject, key.name, key.environments) == ("key", row.id, None, "me", ("*",))
    assert user.expires_at - user.created_at == timedelta(hours=12)
    assert key.expires_at - key.created_at == timedelta(days=7)
    assert (key.client_address, key.user_agent) == ("10.0.0.1", "one browser")
    parts.clock.advance(86_400)
    assert [s.kind for s in await parts.auth.list_sessions()] == ["key"]


async def test_a_session_is_ended_by_its_id_at_once_and_on_record(parts):
    _, text = await parts.auth.create_key("me", Role.ADMIN)
    kept, _ = await parts.auth.open_session(text)
    token, _ = await parts.auth.open_user_session(ADA, timedelta(hours=1))
    [shown] = [s for s in await parts.auth.list_sessions() if s.kind == "oidc"]
    await parts.auth.end_session(shown.id, ADMIN)
    assert await parts.auth.session(token) is None
    assert (await parts.auth.session(kept)).name == "me"
    [entry] = await acts(parts, "session.end")
    assert (entry.actor_name, entry.target_id, entry.target_name) == ("admin", shown.id, "Ada")
    with pytest.raises(NotFoundError):
        await parts.auth.end_session(shown.id, ADMIN)


async def test_signing_out_is_on_record_once_and_by_who_did(parts):
    token, _ = await parts.auth.open_user_session(ADA, timedelta(hours=1))
    for _ in range(2):
        await parts.auth.close_session(token, "10.0.0.3", "a browser")
    [entry] = await acts(parts, "session.close")
    assert (entry.actor_kind, entry.actor_id, entry.actor_name, entry.client_address) == ("user", "u-1", "Ada", "10.0.0.3")


async def test_a_user_of_the_provider_is_known_again_until_there_is_no_provider(parts):
    token, _ = await parts.auth.open_user_session(ADA, timedelta(hours=1))
    fresh = await parts.restarted()
    found = await fresh.auth.session(token)
    assert (found.key_id, found.subject, found.name, found.role, found.environments) == (
        "oidc:u-1",
        "u-1",
        "Ada",
        Role.OPERATOR,
        ("prod-*",),
    )
    with pytest.raises(ForbiddenError, match="the user 'Ada' has operator"):
        found.require(Role.ADMIN)
    await fresh.auth.end_user_sessions()
    assert await fresh.auth.session(token) is None


async def test_the_session_of_a_revoked_key_is_not_listed(parts):
    await parts.auth.ensure_first_key()
    row, text = await parts.auth.create_key("gone", Role.VIEWER)
    await parts.auth.open_session(text)
    row.revoked_at = row.created_at
    assert await parts.auth.list_sessions() == []


def settings(**changes) -> Settings:
    roles = {"sre": {"role": "operator", "environments": ["prod-*", "edge"]}, "web": {"role": "operator", "environments": ["web"]}}
    roles |= {"boss": {"role": "admin"}, "guest": {"role": "viewer"}}
    return Settings(oidc_issuer="https://sso.example", oidc_client_id="irca", oidc_roles=roles, **changes)


@pytest.mark.parametrize(
    ("claims", "path", "values"),
    [
        ({"groups": ["a", "b"]}, "groups", ["a", "b"]),
        ({"groups": "a"}, "groups", ["a"]),
        ({"groups": ["a", 1, None]}, "groups", ["a"]),
        ({"groups": 7}, "groups", []),
        ({"realm_access": {"roles": ["a"]}}, "realm_access.roles", ["a"]),
        ({"https://example.com/roles": ["a"]}, "https://example.com/roles", ["a"]),
        ({}, "groups", None),
        ({"realm_access": ["a"]}, "realm_access.roles", None),
    ],
)
def test_the_values_of_a_claim_are_found_by_its_name_or_by_dots(claims, path, values):
    assert claim_values(claims, path) == values


@pytest.mark.parametrize(
    ("groups", "role", "environments"),
    [
        (["sre"], Role.OPERATOR, ("edge", "prod-*")),
        (["sre", "web"], Role.OPERATOR, ("edge", "prod-*", "web")),
        (["sre", "boss"], Role.ADMIN, ("*",)),
        (["sre", "guest"], Role.OPERATOR, ("edge", "prod-*")),
    ],
)
def test_the_strongest_role_counts_in_the_environments_of_all_values_that_grant_it(groups, role, environments):
    found = identity_of({"sub": "u-1", "name": "Ada", "groups": groups}, settings())
    assert (found.key_id, found.name, found.role, found.environments, found.subject) == ("oidc:u-1", "Ada", role, environments, "u-1")


def test_without_a_grant_the_default_role_counts_or_nobody_gets_in():
    claims = {"sub": "u-1", "groups": []}
    assert identity_of(claims, settings(oidc_default_role="viewer")).role is Role.VIEWER
    with pytest.raises(ForbiddenError, match="has no values"):
        identity_of(claims, settings())


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"name": "Ada L", "email": "a@example.com"}, "Ada L"),
        ({"name": "  ", "preferred_username": "ada"}, "ada"),
        ({"email": "a\u202e@example.com"}, "a @example.com"),
        ({}, "u-1"),
    ],
)
def test_somebody_is_called_by_the_first_name_that_is_there(claims, name):
    assert display_name({"sub": "u-1", **claims}) == name


@pytest.mark.parametrize(
    "given",
    [
        {"oidc_issuer": "http://sso.example", "oidc_client_id": "irca"},
        {"oidc_issuer": "sso.example", "oidc_client_id": "irca"},
        {"oidc_issuer": "https://sso.example?a=b", "oidc_client_id": "irca"},
        {"oidc_issuer": "https://sso.example"},
        {"oidc_scopes": "profile"},
        {"oidc_roles": {"sre": {"role": "king"}}},
        {"oidc_roles": {"sre": {"role": "viewer", "enviroments": ["prod"]}}},
        {"oidc_session_lifetime": 1},
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(given):
    with pytest.raises(ValidationError):
        Settings(**given)


def test_the_settings_come_from_the_environment_and_hide_the_secret(monkeypatch):
    monkeypatch.setenv("IRCA_OIDC_ISSUER", "http://localhost:5556/dex")
    monkeypatch.setenv("IRCA_OIDC_CLIENT_ID", "irca")
    monkeypatch.setenv("IRCA_OIDC_CLIENT_SECRET", "hush")
    monkeypatch.setenv("IRCA_OIDC_ROLES", '{"sre": {"role": "operator", "environments": ["prod-*"]}}')
    read = Settings()
    assert (read.oidc_roles["sre"].role, read.oidc_roles["sre"].environments) == ("operator", ["prod-*"])
    assert "hush" not in repr(read)


@pytest.mark.parametrize(
    ("seconds", "words"), [(604_800, "7 days"), (86_400, "1 day"), (43_200, "12 hours"), (300, "5 minutes"), (330, "6 minutes")]
)
def test_a_duration_reads_as_people_say_it(seconds, words):
    assert _span(seconds) == words
