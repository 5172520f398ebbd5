"""The platform's error tree and THE table of errors: code -> (HTTP status, log level).

Every error that leaves the platform has one JSON shape, ``application/problem+json`` (RFC 9457): ``type``, ``title``, ``status``,
``code``, ``detail``, ``retryable``, and ``errors`` (``[{"field", "message"}]``) where input was refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, ClassVar

from connectors.core import errors as connector_errors


@dataclass(frozen=True, slots=True)
class FieldError:
    """One refused input: where it stands (``config.replicas``) and what was expected."""

    field: str
    message: str


class PlatformError(Exception):
    """Something went wrong in the platform."""

    code: ClassVar[str] = "internal-error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        reason: str = "",
        *,
        errors: Sequence[FieldError] = (),
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.reason = reason or (type(self).__doc__ or "").strip().splitlines()[0]
        self.errors = tuple(errors)
        self.retry_after = retry_after
        self.headers = dict(headers or {})
        super().__init__(self.reason)


class InvalidRequestError(PlatformError):
    """The request is not valid."""

    code = "invalid-request"

    @classmethod
    def of_fields(cls, errors: Iterable[Mapping[str, Any]]) -> InvalidRequestError:
        """From pydantic's ``errors`` of a request: each field under its own name, without the part of the request that it stands in."""
        places = [(".".join(str(p) for p in e["loc"] if p not in ("body", "query", "path")) or "body", str(e["msg"])) for e in errors]
        return cls("the request is not valid", errors=[FieldError(*place) for place in places])


class MalformedBodyError(PlatformError):
    """The request's body cannot be read."""

    code = "malformed-body"


class BodyTooLargeError(PlatformError):
    """The request's body is larger than the platform takes."""

    code = "body-too-large"


class UnsupportedMediaTypeError(PlatformError):
    """The request's content type or encoding is not supported."""

    code = "unsupported-media-type"


class UnauthenticatedError(PlatformError):
    """A valid API key, token or credential is needed."""

    code = "unauthenticated"


class TokenUnknownError(UnauthenticatedError):
    """The token or credential is not known to this platform."""

    code = "token-unknown"


class TokenExpiredError(UnauthenticatedError):
    """The enrolment token has expired; provision the environment again for a new one."""

    code = "token-expired"


class TokenUsedUpError(UnauthenticatedError):
    """The enrolment token has enrolled as many machines as it may."""

    code = "token-used-up"


class TokenRevokedError(UnauthenticatedError):
    """The token or credential has been revoked."""

    code = "token-revoked"


class ClusterUnknownError(PlatformError):
    """The pod cannot tell yet which cluster it runs in."""

    code = "cluster-unknown"
    retryable = True


class ForbiddenError(PlatformError):
    """The role of this key does not allow that."""

    code = "forbidden"


class NotFoundError(PlatformError):
    """There is nothing of that name."""

    code = "not-found"


class MethodNotAllowedError(PlatformError):
    """The method is not allowed here."""

    code = "method-not-allowed"


class ConflictError(PlatformError):
    """The change conflicts with what stands."""

    code = "conflict"


class IdempotencyKeyReusedError(PlatformError):
    """The idempotency key was used for another request."""

    code = "idempotency-key-reused"


class RequestInProgressError(PlatformError):
    """The first request with this idempotency key is still being answered; try again shortly."""

    code = "request-in-progress"
    retryable = True


class PreconditionFailedError(PlatformError):
    """What stands is newer than what the change was made from; read it again."""

    code = "precondition-failed"


class UnsupportedQueryError(PlatformError):
    """The query uses a construct that is not supported."""

    code = "unsupported-query"


class QueryTooLargeError(PlatformError):
    """The query would touch or return too much."""

    code = "query-too-large"


class TooManyRequestsError(PlatformError):
    """Too many requests; try again later."""

    code = "too-many-requests"
    retryable = True


class OverloadedError(PlatformError):
    """The platform cannot take this now; try again later."""

    code = "overloaded"
    retryable = True


class StorageError(PlatformError):
    """The platform's storage failed; try again later."""

    code = "storage-failed"
    retryable = True


class IdentityProviderError(PlatformError):
    """The OpenID provider does not answer as it should; try again later."""

    code = "identity-provider-failed"
    retryable = True


class ReleaseError(PlatformError):
    """The release cannot be built, signed or published."""

    code = "release-refused"


class StartupError(PlatformError):
    """The platform cannot start."""

    code = "startup-failed"


@dataclass(frozen=True, slots=True)
class Treatment:
    """How an error leaves the platform: HTTP status, title, and the level at which it is logged."""

    status: int
    title: str
    log_level: int = field(default=logging.INFO)


ERRORS: Mapping[str, Treatment] = {
    "invalid-request": Treatment(422, "Invalid request"),
    "invalid-config": Treatment(422, "Invalid configuration"),
    "unknown-agent-type": Treatment(422, "Unknown agent type"),
    "missing-extra": Treatment(501, "Agent type not installed", logging.WARNING),
    "malformed-body": Treatment(400, "Malformed body"),
    "body-too-large": Treatment(413, "Body too large", logging.WARNING),
    "unsupported-media-type": Treatment(415, "Unsupported media type"),
    "unauthenticated": Treatment(401, "Not authenticated"),
    "token-unknown": Treatment(401, "Unknown token", logging.WARNING),
    "token-expired": Treatment(401, "Expired token", logging.WARNING),
    "token-used-up": Treatment(401, "Used-up token", logging.WARNING),
    "token-revoked": Treatment(401, "Revoked token", logging.WARNING),
    "cluster-unknown": Treatment(503, "Cluster not known yet"),
    "forbidden": Treatment(403, "Forbidden", logging.WARNING),
    "not-found": Treatment(404, "Not found"),
    "method-not-allowed": Treatment(405, "Method not allowed"),
    "conflict": Treatment(409, "Conflict"),
    "idempotency-key-reused": Treatment(422, "Idempotency key reused", logging.WARNING),
    "request-in-progress": Treatment(409, "Request in progress"),
    "precondition-failed": Treatment(412, "Precondition failed"),
    "unsupported-query": Treatment(422, "Unsupported query"),
    "query-too-large": Treatment(422, "Query too large", logging.WARNING),
    "too-many-requests": Treatment(429, "Too many requests", logging.WARNING),
    "overloaded": Treatment(503, "Overloaded", logging.WARNING),
    "storage-failed": Treatment(503, "Storage failed", logging.ERROR),
    "identity-provider-failed": Treatment(502, "Sign-in service failed", logging.WARNING),
    "release-refused": Treatment(409, "Release refused", logging.WARNING),
    "startup-failed": Treatment(500, "Cannot start", logging.CRITICAL),
    "internal-error": Treatment(500, "Internal error", logging.ERROR),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as it leaves: the table's row for it joined with this occurrence's reason."""

    code: str
    treatment: Treatment
    detail: str
    retryable: bool = False
    errors: Sequence[FieldError] = ()
    retry_after: float | None = None
    extra_headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, exc: BaseException) -> Problem:
        """The problem that ``exc`` is: ours by its code, connector errors likewise, anything else an internal error without detail."""
        if isinstance(exc, PlatformError) and exc.code in ERRORS:
            return cls(exc.code, ERRORS[exc.code], exc.reason, exc.retryable, exc.errors, exc.retry_after, exc.headers)
        if isinstance(exc, connector_errors.ConnectorError) and exc.code in ERRORS:
            fields = (FieldError(exc.field, exc.reason),) if exc.field else ()
            return cls(exc.code, ERRORS[exc.code], exc.reason, exc.retryable, fields)
        return cls("internal-error", ERRORS["internal-error"], "The platform failed to answer; its log says why.")

    def body(self) -> dict[str, object]:
        """The problem+json document."""
        document: dict[str, object] = {
            "type": f"urn:incident-rca:error:{self.code}",
            "title": self.treatment.title,
            "status": self.treatment.status,
            "code": self.code,
            "detail": self.detail,
            "retryable": self.retryable,
        }
        if self.errors:
            document["errors"] = [{"field": e.field, "message": e.message} for e in self.errors]
        return document

    def headers(self) -> dict[str, str]:
        """``Retry-After`` and ``WWW-Authenticate`` where the status calls for them."""
        headers = dict(self.extra_headers)
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after)))
        if self.treatment.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = f'Bearer error="{self.code}"'
        return headers
