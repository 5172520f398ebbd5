from __future__ import annotations

from datetime import timedelta

import pytest

from app.auth.service import Role
from app.errors import ConflictError, InvalidRequestError, NotFoundError, TokenExpiredError


async def test_a_rotated_key_ends_after_the_overlap_and_its_successor_lasts_as_long(parts):
    row, text = await parts.auth.create_key("ci", Role.OPERATOR, timedelta(days=30), environments=["prod-*"])
    parts.clock.advance(86_400)
    newer, newer_text = await parts.auth.rotate_key(row.id, timedelta(hours=1))
    assert (newer.name, newer.role, newer.environments) == ("ci", "operator", ["prod-*"])
    assert newer.expires_at.timestamp() == parts.clock.now + 30 * 86_400
    parts.clock.advance(3599)
    assert {parts.auth.verify_key(one).key_id for one in (text, newer_text)} == {row.id, newer.id}
    parts.clock.advance(1)
    for there in (parts, await parts.restarted()):
        with pytest.raises(TokenExpiredError):
            there.auth.verify_key(text)
        assert there.auth.verify_key(newer_text).environments == ("prod-*",)
    with pytest.raises(ConflictError):
        await parts.auth.rotate_key(row.id)
    with pytest.raises(NotFoundError):
        await parts.auth.rotate_key("nothing")


async def test_an_overlap_never_makes_a_key_last_longer(parts):
    row, text = await parts.auth.create_key("ci", Role.VIEWER, timedelta(minutes=10))
    await parts.auth.rotate_key(row.id, timedelta(days=1))
    parts.clock.advance(601)
    with pytest.raises(TokenExpiredError):
        parts.auth.verify_key(text)


async def test_a_key_that_is_about_to_end_is_no_admin_to_rely_on_once_it_has(parts):
    text = await parts.auth.ensure_first_key()
    first = parts.auth.verify_key(text).key_id
    newer, _ = await parts.auth.rotate_key(first, timedelta(hours=1))
    parts.clock.advance(3601)
    with pytest.raises(InvalidRequestError, match="last admin"):
        await parts.auth.revoke_key(newer.id)
