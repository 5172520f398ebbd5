"""The platform's HTTP API as the commands use it, and what its refusals mean in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Self

import msgspec

from app.client.errors import AnswerTimeoutError, ClientError, UnreachableError
from app.client.session import Session
from app.commands.connection import is_loopback
from app.commands.output import CommandError

_TIMEOUT = 15.0
_PAGE = 200

_HOW_TO_START = (
    "Start it with `incident-rca up` (with this machine as its first agent) or `incident-rca serve`,\n"
    "or say where it is: --url or IRCA_URL."
)
_HOW_TO_GET_A_KEY = (
    "Set IRCA_API_KEY. The first admin key was shown when the platform first started; whoever has one makes more with\n"
    "`incident-rca api-keys create`; on the platform's own machine, `incident-rca api-keys create --offline` needs none."
)


class PlatformClient:
    """One keep-alive connection to the platform. Every method raises CommandError with what went wrong and what to do."""

    def __init__(self, url: str, key: str, *, timeout: float = _TIMEOUT) -> None:
        self.url = url
        # A proxy of the environment is for the world outside; this machine is reached directly. Somebody waits at a terminal: no retries.
        self._session = Session(url, key, timeout=timeout, retries=0, direct=is_loopback(url))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._session.close()

    def get(self, path: str, **params: Any) -> Any:
        """The JSON document at ``path``; parameters that are None are left out."""
        return self._request("GET", path, params={k: v for k, v in params.items() if v is not None})

    def post(self, path: str, document: Mapping[str, Any]) -> Any:
        """Send ``document`` and return the answer's."""
        return self._request("POST", path, json=document)

    def put(self, path: str, document: Mapping[str, Any], *, version: int | None = None) -> Any:
        """Replace what is at ``path``, if it is still at ``version``, and return the answer's document."""
        headers = {} if version is None else {"If-Match": f'"{version}"'}
        return self._request("PUT", path, json=document, headers=headers)

    def patch(self, path: str, document: Mapping[str, Any]) -> Any:
        """Change parts of what is at ``path`` and return the answer's document."""
        return self._request("PATCH", path, json=document)

    def delete(self, path: str, *, version: int | None = None) -> None:
        """Delete what is at ``path``, if it is still at ``version``."""
        headers = {} if version is None else {"If-Match": f'"{version}"'}
        self._request("DELETE", path, headers=headers)

    def items(self, path: str, filters: Mapping[str, str | None] | None = None, *, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """The items of a list that ``filters`` let pass, page after page, at most ``limit`` of them."""
        cursor, left = None, limit
        while left is None or left > 0:
            page = self.get(path, cursor=cursor, limit=_PAGE if left is None else min(_PAGE, left), **(filters or {}))
            yield from page["items"]
            cursor = page.get("next_cursor")
            if left is not None:
                left -= len(page["items"])
            if not cursor:
                return

    def _request(self, method: str, path: str, **kwargs: Any) -> Any:
        document = kwargs.get("json")
        content = None if document is None else msgspec.json.encode(document)
        try:
            response = self._session.request(method, path, query=kwargs.get("params"), content=content, headers=kwargs.get("headers"))
        except UnreachableError as exc:
            raise CommandError(exc.reason, hint=_HOW_TO_START) from exc
        except AnswerTimeoutError as exc:
            raise CommandError(exc.reason, hint="Look at the platform's log, or try again.") from exc
        except ClientError as exc:
            if exc.status:
                raise explain(exc.status, exc.problem, self.url) from exc
            raise CommandError(exc.reason) from exc
        try:
            return response.json() if response.content else None
        except ValueError:
            raise CommandError(f"what answers at {self.url} is not an incident-rca platform", hint=_HOW_TO_START) from None


def explain(status: int, problem: Mapping[str, Any], url: str) -> CommandError:
    """The error for a refusal: the problem's detail, each refused field on a line of its own, and what to do."""
    if problem.get("status") == "error" and "error" in problem:  # as the Prometheus API puts it
        return CommandError(str(problem["error"]))
    if "code" not in problem:
        hint = _HOW_TO_START if status == HTTPStatus.NOT_FOUND else ""
        return CommandError(f"{url} answers {status}, but not as an incident-rca platform", hint=hint)
    lines = [f"{error.get('field', '?')}: {error.get('message', '')}" for error in problem.get("errors", ())]
    detail = problem.get("detail") or problem.get("title") or problem["code"]
    if status == HTTPStatus.UNAUTHORIZED:
        lines.append(_HOW_TO_GET_A_KEY)
    elif status == HTTPStatus.FORBIDDEN:
        lines.append("Use a key with that role (IRCA_API_KEY).")
    return CommandError(f"{detail} ({problem['code']})", hint="\n".join(lines))
