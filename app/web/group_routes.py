"""The pages of groups and of remote configuration: who is in a group, what it sets, what that changes, how it fares, and why."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.auth.service import Identity, Role
from app.errors import FieldError, ForbiddenError, InvalidRequestError, PlatformError, Problem
from app.groups.selectors import Selector, parse
from app.groups.service import GroupSpec, Scope
from app.groups.standing import ConfigStatus
from app.groups.validation import schema_of
from app.groups.views import ConfigurationView, GroupView
from app.platform import Platform
from app.web.config_forms import fields_of, read_config, read_pairs, shown
from app.web.forms import Form, actor_of, submitted
from app.web.rendering import PageRoute, PlatformDependency, Viewer, render

router = APIRouter(route_class=PageRoute, include_in_schema=False)

PAGE_SIZE = 100
MEMBERS_SHOWN = 50
REVISIONS_SHOWN = 20


@router.get("/groups")
async def groups(request: Request, platform: PlatformDependency, viewer: Viewer, search: str = "", cursor: str = "") -> Response:
    """Every group."""
    search = search.strip()
    page = await platform.groups.list_groups(cursor or None, PAGE_SIZE, search=search or None)
    filters = {"search": search} if search else {}
    return render(
        request,
        "groups.html",
        groups=page.items,
        search=search,
        next_query={**filters, "cursor": page.next_cursor} if page.next_cursor else None,
        may_change=_may_change(viewer),
    )


@router.get("/groups/new")
async def new_group(request: Request, platform: PlatformDependency, viewer: Viewer, selector: str = "") -> Response:
    """The form for a new group."""
    viewer.require(Role.OPERATOR)
    return await _form_page(request, platform, None, {"name": "", "description": "", "selector": selector, "priority": "0"}, None)


@router.get("/groups/preview")
async def preview(request: Request, platform: PlatformDependency, _viewer: Viewer, selector: str = "") -> Response:
    """Whom a selector selects, as a part of the form's page."""
    return render(request, "_group_preview.html", **await _preview(platform, selector))


@router.post("/groups/new")
async def create_group(request: Request, platform: PlatformDependency, viewer: Viewer) -> Response:
    """Create a group."""
    form = await _submitted(request, platform, viewer)
    if form.text("act") == "preview":
        return await _form_page(request, platform, None, _draft(form), None)
    try:
        made = await platform.groups.create_group(_spec(form), actor_of(request, viewer))
    except PlatformError as exc:
        return await _form_page(request, platform, None, _draft(form), exc)
    return RedirectResponse(f"/groups/{made.id}", 303)


@router.get("/groups/{group_id}")
async def group(
    request: Request, platform: PlatformDependency, viewer: Viewer, group_id: str, status: str = "", cursor: str = ""
) -> Response:
    """One group: whom it selects, what it sets, how that fares, and its history."""
    found = await platform.groups.get_group(group_id)
    scope = Scope("group", group_id)
    given = await _scope_context(platform, scope, status, cursor)
    return render(request, "group.html", group=found, base=f"/groups/{group_id}", may_change=_may_change(viewer), **given)


@router.get("/groups/{group_id}/edit")
async def edit_group(request: Request, platform: PlatformDependency, viewer: Viewer, group_id: str) -> Response:
    """The form for changing a group."""
    viewer.require(Role.OPERATOR)
    found = await platform.groups.get_group(group_id)
    draft = {"name": found.name, "description": found.description, "selector": found.selector_text, "priority": str(found.priority)}
    return await _form_page(request, platform, found, draft, None)


@router.post("/groups/{group_id}/edit")
async def update_group(request: Request, platform: PlatformDependency, viewer: Viewer, group_id: str) -> Response:
    """Change a group."""
    form = await _submitted(request, platform, viewer)
    found = await platform.groups.get_group(group_id)
    if form.text("act") == "preview":
        return await _form_page(request, platform, found, _draft(form), None)
    try:
        await platform.groups.update_group(group_id, _spec(form), actor_of(request, viewer), _number(form, "version"))
    except PlatformError as exc:
        return await _form_page(request, platform, found, _draft(form), exc)
    return RedirectResponse(f"/groups/{group_id}", 303)


@router.post("/groups/{group_id}/delete")
async def delete_group(request: Request, platform: PlatformDependency, viewer: Viewer, group_id: str) -> Response:
    """Delete a group."""
    form = await _submitted(request, platform, viewer)
    await platform.groups.delete_group(group_id, actor_of(request, viewer), _number(form, "version"))
    return RedirectResponse("/groups", 303)


@router.get("/groups/{group_id}/configuration")
async def group_configuration(request: Request, platform: PlatformDependency, viewer: Viewer, group_id: str) -> Response:
    """The editor of a group's configuration."""
    viewer.require(Role.OPERATOR)
    return await _editor(request, platform, Scope("group", group_id))


@router.post("/groups/{group_id}/configuration")
async def change_group_configuration(request: Request, platform: PlatformDependency, viewer: Viewer, group_id: str) -> Response:
    """Show what the form would change, or change it."""
    form = await _submitted(request, platform, viewer)
    return await _change(request, platform, viewer, Scope("group", group_id), form)


@router.post("/groups/{group_id}/revert")
async def revert_group(request: Request, platform: PlatformDependency, viewer: Viewer, group_id: str) -> Response:
    """Give a group an earlier configuration again."""
    form = await _submitted(request, platform, viewer)
    return await _revert(request, platform, viewer, Scope("group", group_id), form)


@router.get("/agents/{agent_id}/configuration")
async def agent(
    request: Request, platform: PlatformDependency, viewer: Viewer, agent_id: str, status: str = "", cursor: str = ""
) -> Response:
    """An agent's labels, its own configuration, how that fares, and its history."""
    found = await platform.fleet.get_agent(agent_id)
    given = await _scope_context(platform, Scope("agent", agent_id), status, cursor)
    may_change = viewer.role >= Role.OPERATOR
    base = f"/agents/{agent_id}"
    return render(request, "agent_configuration.html", agent=found, base=base, may_change=may_change, error=None, **given)


@router.get("/agents/{agent_id}/configuration/edit")
async def agent_editor(request: Request, platform: PlatformDependency, viewer: Viewer, agent_id: str) -> Response:
    """The editor of an agent's own configuration."""
    viewer.require(Role.OPERATOR)
    return await _editor(request, platform, Scope("agent", agent_id))


@router.post("/agents/{agent_id}/configuration/edit")
async def change_agent_configuration(request: Request, platform: PlatformDependency, viewer: Viewer, agent_id: str) -> Response:
    """Show what the form would change, or change it."""
    form = await submitted(request, platform, viewer, Role.OPERATOR)
    return await _change(request, platform, viewer, Scope("agent", agent_id), form)


@router.post("/agents/{agent_id}/revert")
async def revert_agent(request: Request, platform: PlatformDependency, viewer: Viewer, agent_id: str) -> Response:
    """Give an agent an earlier configuration of its own again."""
    form = await submitted(request, platform, viewer, Role.OPERATOR)
    return await _revert(request, platform, viewer, Scope("agent", agent_id), form)


@router.post("/agents/{agent_id}/labels")
async def change_labels(request: Request, platform: PlatformDependency, viewer: Viewer, agent_id: str) -> Response:
    """Give an agent the labels that the form lists, and no others."""
    form = await submitted(request, platform, viewer, Role.OPERATOR)
    found = await platform.fleet.get_agent(agent_id)
    wanted: dict[str, str | None] = dict.fromkeys(found.labels)
    wanted |= read_pairs(form.text("labels"))
    try:
        await platform.groups.labels.set_labels(agent_id, wanted, actor_of(request, viewer))
    except InvalidRequestError as exc:
        given = await _scope_context(platform, Scope("agent", agent_id), "", "")
        shown_agent = found.model_copy(update={"labels": {k: v for k, v in wanted.items() if v is not None}})
        base = f"/agents/{agent_id}"
        return render(request, "agent_configuration.html", 422, agent=shown_agent, base=base, may_change=True, error=exc, **given)
    return RedirectResponse(f"/agents/{agent_id}/configuration", 303)


@router.get("/instances/{instance_id}/configuration")
async def instance(request: Request, platform: PlatformDependency, _viewer: Viewer, instance_id: str, every: str = "") -> Response:
    """Why an instance has the values that it has; with ``every`` the options that have their default, too."""
    found = await platform.groups.explain(instance_id)
    options = [o for o in found.options if every == "1" or o.source.kind != "default" or o.wanted is not None]
    left_out = len(found.options) - len(options)
    return render(request, "instance_configuration.html", instance=found, options=options, left_out=left_out, shown=shown)


async def _scope_context(platform: Platform, scope: Scope, status: str, cursor: str) -> dict[str, Any]:
    wanted = next((s for s in ConfigStatus if s.value == status), None)
    counts = await platform.groups.status_counts(scope)
    members = await platform.groups.list_members(scope, cursor or None, MEMBERS_SHOWN, status=wanted)
    filters = {"status": wanted.value} if wanted else {}
    history = await platform.groups.history(scope, limit=REVISIONS_SHOWN)
    return {
        "configuration": await platform.groups.configuration(scope),
        "counts": [(s.value, counts[s]) for s in ConfigStatus if counts.get(s)],
        "total": sum(counts.values()),
        "chosen": wanted.value if wanted else "",
        "members": members.items,
        "next_query": {**filters, "cursor": members.next_cursor} if members.next_cursor else None,
        "revisions": history.items,
        "shown": shown,
    }


async def _editor(
    request: Request,
    platform: Platform,
    scope: Scope,
    config: dict[str, Any] | None = None,
    error: PlatformError | None = None,
    comment: str = "",
) -> Response:
    current = await platform.groups.configuration(scope)
    problem = Problem.of(error) if error else None
    fields = fields_of(schema_of(current.agent_types), current.config if config is None else config)
    return render(
        request,
        "configuration_form.html",
        problem.treatment.status if problem else 200,
        configuration=current,
        fields=sorted(fields, key=lambda f: not f.text),
        comment=comment,
        problem=problem,
        errors=_option_errors(error),
        back=_page_of(current),
        shown=shown,
    )


async def _change(request: Request, platform: Platform, viewer: Identity, scope: Scope, form: Form) -> Response:
    current = await platform.groups.configuration(scope)
    comment, revision = form.text("comment")[:1000], _number(form, "revision")
    config = _sent(form) if form.text("act") in ("apply", "back") else read_config(form, schema_of(current.agent_types), current.config)
    if form.text("act") == "back":
        return await _editor(request, platform, scope, config, None, comment)
    apply = form.text("act") == "apply"
    actor = actor_of(request, viewer)
    try:
        made = await platform.groups.configure(scope, config, actor, comment=comment, revision=revision, dry_run=not apply)
    except PlatformError as exc:
        return await _editor(request, platform, scope, config, exc, comment)
    if apply:
        return RedirectResponse(_page_of(current), 303)
    given: dict[str, Any] = {
        "change": made,
        "comment": comment,
        "revision": current.revision,
        "document": json.dumps(config),
        "shown": shown,
    }
    return render(request, "configuration_diff.html", back=_page_of(current), **given)


async def _revert(request: Request, platform: Platform, viewer: Identity, scope: Scope, form: Form) -> Response:
    wanted = _number(form, "revision")
    if wanted is None:
        raise InvalidRequestError("the form is not complete", errors=[FieldError("revision", "must be a revision's number")])
    current = await platform.groups.configuration(scope)
    await platform.groups.revert(scope, wanted, actor_of(request, viewer), expected=_number(form, "current"))
    return RedirectResponse(_page_of(current), 303)


async def _submitted(request: Request, platform: Platform, viewer: Identity) -> Form:
    if not viewer.everywhere:
        raise ForbiddenError("groups reach into every environment, and this key is limited to some")
    return await submitted(request, platform, viewer, Role.OPERATOR)


async def _form_page(
    request: Request, platform: Platform, found: GroupView | None, draft: dict[str, str], error: PlatformError | None
) -> Response:
    problem = Problem.of(error) if error else None
    return render(
        request,
        "group_form.html",
        problem.treatment.status if problem else 200,
        group=found,
        draft=draft,
        problem=problem,
        errors={e.field: e.message for e in error.errors} if error else {},
        **await _preview(platform, draft["selector"]),
    )


async def _preview(platform: Platform, text: str) -> dict[str, Any]:
    try:
        return {"preview": await platform.groups.preview(parse(text)), "unreadable": ""}
    except InvalidRequestError as exc:
        return {"preview": None, "unreadable": exc.errors[0].message}


def _draft(form: Form) -> dict[str, str]:
    return {name: form.text(name) for name in ("name", "description", "selector", "priority")}


def _spec(form: Form) -> GroupSpec:
    draft = _draft(form)
    errors: list[FieldError] = []
    selector, priority = Selector(), 0
    if not draft["name"] or len(draft["name"]) > 63 or not draft["name"].isprintable():  # noqa: PLR2004 - what the API takes, too
        errors.append(FieldError("name", "must have 1 to 63 characters"))
    try:
        priority = int(draft["priority"] or "0")
    except ValueError:
        errors.append(FieldError("priority", "must be a whole number"))
    if abs(priority) > 1000:  # noqa: PLR2004 - likewise
        errors.append(FieldError("priority", "must be between -1000 and 1000"))
    try:
        selector = parse(draft["selector"])
    except InvalidRequestError as exc:
        errors.extend(exc.errors)
    if errors:
        raise InvalidRequestError("the form is not complete", errors=errors)
    return GroupSpec(draft["name"], selector, draft["description"][:1000], priority)


def _sent(form: Form) -> dict[str, Any]:
    try:
        config = json.loads(form.text("config") or "{}")
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise InvalidRequestError("the form is not complete", errors=[FieldError("config", "must be a JSON object")])
    return config


def _option_errors(error: PlatformError | None) -> dict[str, str]:
    return {e.field.removeprefix("config.").partition(".")[0].partition("[")[0]: e.message for e in error.errors} if error else {}


def _page_of(current: ConfigurationView) -> str:
    return f"/groups/{current.scope_id}" if current.scope_kind == "group" else f"/agents/{current.scope_id}/configuration"


def _number(form: Form, name: str) -> int | None:
    return int(form.text(name)) if form.text(name).isdecimal() else None


def _may_change(viewer: Identity) -> bool:
    return viewer.role >= Role.OPERATOR and viewer.everywhere
