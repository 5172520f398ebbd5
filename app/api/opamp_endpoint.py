"""``POST /v1/opamp``: OpAMP over plain HTTP, as a bare ASGI callable (see app/api/asgi.py for why)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from app.api.asgi import BodyLimits, Receive, Scope, Send, bearer, client_address, media_type, read_body, send_answer, send_problem
from app.errors import MethodNotAllowedError, Problem, UnauthenticatedError, UnsupportedMediaTypeError

CONTENT_TYPE = "application/x-protobuf"
Refuse = Callable[[UnauthenticatedError, str, str], Awaitable[None]]
"""Told of a refusal: why, the token (empty for none), the client's address. May raise what is answered instead."""
_log = logging.getLogger(__name__)


class OpampEndpoint:
    """Answers AgentToServer messages through ``answer(bearer, body, client address) -> body``.

    ``answer`` itself sees to those whose token is refused; ``refuse`` is told of those that show none.
    """

    def __init__(self, answer: Callable[[str, bytes, str], Awaitable[bytes]], limits: BodyLimits, *, refuse: Refuse | None = None) -> None:
        self._answer = answer
        self._limits = limits
        self._refuse = refuse
        self.exchanges = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One exchange; failures leave as problem+json with the status that the errors table gives them."""
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowedError("OpAMP messages are posted", headers={"Allow": "POST"})
            token = await self._bearer(scope)
            if media_type(scope) != CONTENT_TYPE:
                raise UnsupportedMediaTypeError(f"send {CONTENT_TYPE}")
            body = await self._answer(token, await read_body(scope, receive, self._limits), client_address(scope))
        except Exception as exc:  # noqa: BLE001 - whatever fails, the client gets an answer in the one shape
            problem = Problem.of(exc)
            _log.log(
                problem.treatment.log_level,
                "opamp exchange refused: %s",
                problem.detail,
                exc_info=exc if problem.code == "internal-error" else None,
                extra={"action": "opamp_refused", "code": problem.code},
            )
            await send_problem(send, problem)
            return
        self.exchanges += 1
        await send_answer(send, 200, body, CONTENT_TYPE)

    async def _bearer(self, scope: Scope) -> str:
        try:
            return bearer(scope)
        except UnauthenticatedError as exc:
            if self._refuse is not None:
                await self._refuse(exc, "", client_address(scope))
            raise
