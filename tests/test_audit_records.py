from __future__ import annotations

from sqlalchemy import select

from app.audit.records import REDACTED, SYSTEM, Target, changed, redacted
from app.audit.service import AuditService
from app.db.models import AuditRow


def test_what_stands_under_a_secret_name_is_replaced_at_any_depth():
    value = {"name": "x", "agent_token": "a", "list": [{"Password": "b", "token_id": "c"}], "secret": ""}
    assert redacted(value) == {"name": "x", "agent_token": REDACTED, "list": [{"Password": REDACTED, "token_id": "c"}], "secret": ""}


def test_only_what_differs_is_kept_of_two_states():
    assert changed({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": 4}) == ({"b": 2, "c": 3}, {"b": 5, "d": 4})
    assert changed(None, {"a": 1}) == (None, {"a": 1})
    assert changed({"a": 1}, None) == ({"a": 1}, None)


async def test_an_act_is_logged_with_its_states_and_without_secrets(parts):
    audit = AuditService(parts.database, parts.clock)
    async with parts.database.write() as session:
        before, after = {"name": "a", "secret": "one"}, {"name": "b", "secret": "two"}
        audit.add(session, SYSTEM, "group.update", Target("group", "g1", "web"), before=before, after=after)
    await audit.record(SYSTEM, "group.delete", Target("group", "g1", "web", "prod"), outcome="refused", reason="not allowed")
    async with parts.database.read() as session:
        rows = {row.action: row for row in (await session.scalars(select(AuditRow))).all()}
    assert rows["group.update"].before == {"name": "a", "secret": REDACTED}
    assert rows["group.update"].after == {"name": "b", "secret": REDACTED}
    assert (rows["group.delete"].outcome, rows["group.delete"].reason, rows["group.delete"].environment_name) == (
        "refused",
        "not allowed",
        "prod",
    )


async def test_an_act_that_fails_leaves_no_entry(parts):
    audit = AuditService(parts.database, parts.clock)
    try:
        async with parts.database.write() as session:
            audit.add(session, SYSTEM, "group.update", Target("group", "g1"))
            raise RuntimeError("the act failed")
    except RuntimeError:
        pass
    async with parts.database.read() as session:
        assert (await session.scalars(select(AuditRow))).all() == []
