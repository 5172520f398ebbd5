"""What can go wrong when the platform is asked, as one tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One refused input: where it stands (``config.replicas``) and what was expected."""

    field: str
    message: str


class ClientError(Exception):
    """The platform did not do what it was asked.

    ``code`` is the platform's (``not-found``; the table is on the page about errors), ``status`` the HTTP status (0 without an answer),
    ``reason`` says what went wrong, ``retryable`` whether the same may go well later, ``retry_after`` in how many seconds (None: not told),
    ``errors`` the refused fields, and ``problem`` the platform's document as it came.
    """

    code: str = "client-error"

    def __init__(
        self,
        reason: str,
        *,
        status: int = 0,
        code: str = "",
        retryable: bool = False,
        retry_after: float | None = None,
        errors: Sequence[FieldProblem] = (),
        problem: Mapping[str, Any] | None = None,
    ) -> None:
        self.reason = reason
        self.status = status
        self.code = code or type(self).code
        self.retryable = retryable
        self.retry_after = retry_after
        self.errors = tuple(errors)
        self.problem = dict(problem or {})
        super().__init__(f"{reason} ({self.code})")


class UnreachableError(ClientError):
    """Nothing answers at the platform's address."""

    code = "unreachable"


class NoAnswerError(ClientError):
    """The connection broke before the answer was there; whether the platform did what it was asked is not known."""

    code = "no-answer"


class AnswerTimeoutError(NoAnswerError):
    """The platform did not answer in time."""

    code = "timeout"


class UnexpectedAnswerError(ClientError):
    """What answers is not an incident-rca platform, or one of another version."""

    code = "unexpected-answer"


class RefusedError(ClientError):
    """The platform refused; ``code`` and ``reason`` say why."""

    code = "refused"


class InvalidRequestError(RefusedError):
    """The request is not valid; ``errors`` name the fields."""


class UnauthenticatedError(RefusedError):
    """A valid API key is needed."""


class ForbiddenError(RefusedError):
    """The role of the key does not allow that."""


class NotFoundError(RefusedError):
    """There is nothing of that name."""


class ConflictError(RefusedError):
    """The change conflicts with what stands."""


class PreconditionFailedError(RefusedError):
    """What stands is newer than what the change was made from; read it again."""


class UnavailableError(RefusedError):
    """The platform cannot take this now; try again later."""


BY_STATUS: Mapping[int, type[RefusedError]] = {
    HTTPStatus.BAD_REQUEST: InvalidRequestError,
    HTTPStatus.UNAUTHORIZED: UnauthenticatedError,
    HTTPStatus.FORBIDDEN: ForbiddenError,
    HTTPStatus.NOT_FOUND: NotFoundError,
    HTTPStatus.CONFLICT: ConflictError,
    HTTPStatus.PRECONDITION_FAILED: PreconditionFailedError,
    HTTPStatus.UNPROCESSABLE_ENTITY: InvalidRequestError,
    HTTPStatus.TOO_MANY_REQUESTS: UnavailableError,
    HTTPStatus.SERVICE_UNAVAILABLE: UnavailableError,
}
