"""What can be wrong with a query, as errors of the platform's tree."""

from __future__ import annotations

from app.errors import InvalidRequestError, QueryTooLargeError


class QuerySyntaxError(InvalidRequestError):
    """The query is not valid PromQL, or a parameter of the request is not what it should be."""


class QueryExecutionError(InvalidRequestError):
    """The query is valid PromQL, but the series it meets cannot be combined as it asks."""


class QueryTimeoutError(QueryTooLargeError):
    """The query took longer than it may."""
