from __future__ import annotations

from datetime import timedelta

import pytest

from app.auth.service import Identity, Role
from app.errors import ForbiddenError, InvalidRequestError, NotFoundError, TokenExpiredError, TokenRevokedError, UnauthenticatedError


async def test_the_first_key_is_made_once_and_shown_once(parts):
    text = await parts.auth.ensure_first_key()
    assert text is not None
    assert text.startswith("irca_")
    assert await parts.auth.ensure_first_key() is None
    fresh = await parts.restarted()
    assert await fresh.auth.ensure_first_key() is None
    assert fresh.auth.verify_key(text).role is Role.ADMIN


async def test_keys_are_stored_as_digests_only(parts):
    row, text = await parts.auth.create_key("ci", Role.VIEWER)
    assert text not in repr(vars(row))
    assert row.prefix == text[:10]


async def test_a_preset_key_works_and_a_short_one_is_refused(parts):
    with pytest.raises(InvalidRequestError, match="20 characters"):
        await parts.auth.ensure_first_key("short")
    for _ in range(2):
        assert await parts.auth.ensure_first_key("preset-key-of-decent-length") is None
    assert parts.auth.verify_key("preset-key-of-decent-length").role is Role.ADMIN
    assert len(parts.auth.list_keys()) == 1


async def test_unknown_expired_and_revoked_keys_are_told_apart(parts):
    await parts.auth.ensure_first_key()
    with pytest.raises(UnauthenticatedError, match="not known"):
        parts.auth.verify_key("irca_nonsense")
    _, text = await parts.auth.create_key("short-lived", Role.VIEWER, timedelta(hours=1))
    parts.clock.advance(3600)
    with pytest.raises(TokenExpiredError):
        parts.auth.verify_key(text)
    row, text = await parts.auth.create_key("gone", Role.VIEWER)
    await parts.auth.revoke_key(row.id)
    with pytest.raises(TokenRevokedError):
        parts.auth.verify_key(text)
    with pytest.raises(TokenRevokedError):
        (await parts.restarted()).auth.verify_key(text)


async def test_the_last_admin_key_cannot_be_revoked(parts):
    await parts.auth.ensure_first_key()
    (row,) = parts.auth.list_keys()
    with pytest.raises(InvalidRequestError, match="last admin"):
        await parts.auth.revoke_key(row.id)
    with pytest.raises(NotFoundError):
        await parts.auth.revoke_key("nothing")


async def test_a_browser_session_ends_with_its_time_its_key_or_by_signing_out(parts):
    await parts.auth.ensure_first_key()
    row, text = await parts.auth.create_key("me", Role.OPERATOR)
    token, _ = await parts.auth.open_session(text)
    assert (await parts.auth.session(token)).name == "me"
    await parts.auth.close_session(token)
    assert await parts.auth.session(token) is None
    token, expires = await parts.auth.open_session(text)
    parts.clock.now = expires.timestamp()
    assert await parts.auth.session(token) is None
    token, _ = await parts.auth.open_session(text)
    await parts.auth.revoke_key(row.id)
    assert await parts.auth.session(token) is None
    with pytest.raises(UnauthenticatedError):
        await parts.auth.open_session("irca_wrong")


async def test_a_session_is_no_longer_lived_than_its_key(parts):
    _, text = await parts.auth.create_key("brief", Role.VIEWER, timedelta(hours=1))
    token, _ = await parts.auth.open_session(text)
    parts.clock.advance(3601)
    assert await parts.auth.session(token) is None


async def test_when_a_key_was_last_used_is_remembered(parts):
    _, text = await parts.auth.create_key("ci", Role.VIEWER)
    parts.auth.verify_key(text)
    await parts.auth.flush()
    await parts.auth.flush()
    (kept,) = (await parts.restarted()).auth.list_keys()
    assert kept.last_used_at.timestamp() == parts.clock.now


def test_roles_include_the_lesser_ones():
    operator = Identity("id", "me", Role.OPERATOR)
    operator.require(Role.VIEWER)
    with pytest.raises(ForbiddenError, match="needs the role admin"):
        operator.require(Role.ADMIN)
    with pytest.raises(InvalidRequestError, match="unknown role"):
        Role.named("king")
