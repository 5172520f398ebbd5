"""From PromQL text to a tree of our own nodes, with the constructs that are not supported refused by name.

The grammar and the type checks are those of the ``promql-parser`` package. Its parser recurses without a bound of its own, and a deep
enough query would end the process; so the text is scanned first and refused when it is longer or deeper than any sane query.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, Literal

import promql_parser

from app.errors import InvalidRequestError, UnsupportedQueryError
from app.telemetry.matching import compile_pattern
from app.telemetry.promql.errors import QuerySyntaxError
from app.telemetry.store import NAME, Matcher, MatchOperator

Card = Literal["one-to-one", "many-to-one", "one-to-many", "many-to-many"]
ValueType = Literal["scalar", "string", "vector", "matrix"]
At = int | Literal["start", "end"] | None
"""The ``@`` modifier: milliseconds, an end of the query's range, or none."""

RANGE_FUNCTIONS = frozenset(
    {
        *("rate", "increase", "delta", "irate", "idelta", "changes", "resets", "absent_over_time", "avg_over_time", "min_over_time"),
        *("max_over_time", "sum_over_time", "count_over_time", "last_over_time", "quantile_over_time", "stddev_over_time"),
        *("stdvar_over_time", "present_over_time"),
    }
)
ELEMENTWISE_FUNCTIONS = frozenset(
    {
        *("abs", "ceil", "floor", "sqrt", "exp", "ln", "log2", "log10", "sgn", "sin", "cos", "tan", "asin", "acos", "atan"),
        *("sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "deg", "rad"),
    }
)
OTHER_FUNCTIONS = frozenset(
    {
        *("round", "clamp", "clamp_min", "clamp_max", "time", "timestamp", "vector", "scalar", "absent", "label_replace"),
        *("label_join", "histogram_quantile", "sort", "sort_desc", "pi"),
    }
)
AGGREGATIONS = frozenset({"sum", "avg", "min", "max", "count", "group", "stddev", "stdvar", "topk", "bottomk", "quantile", "count_values"})
COMPARISONS = frozenset({"==", "!=", ">", "<", ">=", "<="})
SET_OPERATORS = frozenset({"and", "or", "unless"})
_SCALAR_FUNCTIONS = frozenset({"time", "scalar", "pi"})

_MAX_CHARACTERS = 65_536
_MAX_BRACKETS = 100
_MAX_OPERATORS = 500
_MAX_DEPTH = 120
_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Number:
    """A number."""

    value: float


@dataclass(frozen=True, slots=True)
class Text:
    """A string."""

    value: str


@dataclass(frozen=True, slots=True)
class Selector:
    """An instant vector selector; the metric name is a matcher on ``__name__`` like any other."""

    matchers: tuple[Matcher, ...]
    offset_ms: int = 0
    at: At = None


@dataclass(frozen=True, slots=True)
class Range:
    """A range vector selector."""

    selector: Selector
    range_ms: int


@dataclass(frozen=True, slots=True)
class Subquery:
    """An expression evaluated at its own steps over a range; ``step_ms`` of None is the default step."""

    expr: Node
    range_ms: int
    step_ms: int | None
    offset_ms: int = 0
    at: At = None


@dataclass(frozen=True, slots=True)
class Call:
    """A function call."""

    function: str
    args: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """An aggregation over the groups that ``labels`` name: by them, or by all but them."""

    operator: str
    expr: Node
    param: Node | None
    labels: tuple[str, ...]
    without: bool


@dataclass(frozen=True, slots=True)
class Matching:
    """How the two sides of a binary operator find each other."""

    card: Card = "one-to-one"
    on: bool = False
    labels: tuple[str, ...] = ()
    include: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Binary:
    """A binary operator."""

    operator: str
    lhs: Node
    rhs: Node
    matching: Matching
    return_bool: bool


@dataclass(frozen=True, slots=True)
class Negate:
    """Unary minus."""

    expr: Node


Node = Number | Text | Selector | Range | Subquery | Call | Aggregate | Binary | Negate


@lru_cache(maxsize=512)
def parse(query: str) -> Node:
    """The tree of ``query``.

    Raises:
        QuerySyntaxError: it is not valid PromQL, or too long or too deep.
        UnsupportedQueryError: it uses a construct that is not supported; the reason names it.
    """
    parsed = _parsed(_prepared(query))
    try:
        return _convert(parsed, 0)
    except (ValueError, OverflowError):
        raise UnsupportedQueryError("a duration or time in the query is too large") from None


def parse_selector(text: str) -> tuple[Matcher, ...]:
    """The matchers of a series selector (``match[]``); raises like :func:`parse`, and when ``text`` is any other expression."""
    node = parse(text)
    if not isinstance(node, Selector) or node.offset_ms or node.at is not None:
        raise QuerySyntaxError(f"parse error: {text!r} is not a series selector")
    return node.matchers


def value_type(node: Node) -> ValueType:
    """What evaluating ``node`` gives."""
    if isinstance(node, Range | Subquery):
        return "matrix"
    if isinstance(node, Number) or (isinstance(node, Call) and node.function in _SCALAR_FUNCTIONS):
        return "scalar"
    if isinstance(node, Text):
        return "string"
    if isinstance(node, Binary) and value_type(node.lhs) == value_type(node.rhs) == "scalar":
        return "scalar"
    if isinstance(node, Negate):
        return value_type(node.expr)
    return "vector"


def children(node: Node) -> Iterator[Node]:
    """The nodes directly below ``node``; a range's selector is part of the range, not below it."""
    if isinstance(node, Subquery | Negate):
        yield node.expr
    elif isinstance(node, Call):
        yield from node.args
    elif isinstance(node, Aggregate):
        if node.param is not None:
            yield node.param
        yield node.expr
    elif isinstance(node, Binary):
        yield node.lhs
        yield node.rhs


_TOKEN = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(?P<raw>`[^`]*`)|(?P<comment>\#[^\n]*)"""
    r"""|(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<before_epoch>@\s*-)|(?P<operator>\b(?:and|or|unless|atan2)\b|[-+*/%^]|[=!<>]=|[<>](?!=))""",
    re.IGNORECASE,
)


def _prepared(query: str) -> str:
    """``query`` within bounds, its raw strings rewritten as quoted ones: the parser misreads backslashes in them."""
    if len(query) > _MAX_CHARACTERS:
        raise QuerySyntaxError(f"parse error: the query is longer than {_MAX_CHARACTERS} characters")
    depth = operators = position = 0
    parts: list[str] = []
    for token in _TOKEN.finditer(query):
        kind = token.lastgroup
        if kind == "open":
            depth += 1
        elif kind == "close":
            depth -= 1
        elif kind == "operator":
            operators += 1
        elif kind == "before_epoch":
            raise UnsupportedQueryError("a time before 1970 behind @ is not supported")
        elif kind == "raw":
            raw = token.group()[1:-1]
            quoted = raw.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
            parts += (query[position : token.start()], '"', quoted, '"')
            position = token.end()
        if depth > _MAX_BRACKETS or operators > _MAX_OPERATORS:
            raise QuerySyntaxError(
                f"parse error: the query nests deeper than {_MAX_BRACKETS} brackets or has more than {_MAX_OPERATORS} operators"
            )
    return "".join((*parts, query[position:])) if parts else query


def _parsed(query: str) -> Any:
    try:
        return promql_parser.parse(query)
    except ValueError as error:
        raise QuerySyntaxError(f"parse error: {error}") from None
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # a bug of the parser; it derives from BaseException
            raise UnsupportedQueryError("the parser failed on this query") from None
        raise


def _convert(expr: Any, depth: int) -> Node:  # noqa: C901, PLR0911 - one branch for each kind of node
    if depth > _MAX_DEPTH:
        raise QuerySyntaxError(f"parse error: the query nests deeper than {_MAX_DEPTH} levels")
    if isinstance(expr, promql_parser.NumberLiteral):
        return Number(expr.val)
    if isinstance(expr, promql_parser.StringLiteral):
        return Text(expr.val)
    if isinstance(expr, promql_parser.ParenExpr):
        return _convert(expr.expr, depth + 1)
    if isinstance(expr, promql_parser.UnaryExpr):
        return Negate(_convert(expr.expr, depth + 1))
    if isinstance(expr, promql_parser.VectorSelector):
        return _selector(expr)
    if isinstance(expr, promql_parser.MatrixSelector):
        return Range(_selector(expr.vector_selector), _milliseconds(expr.range))
    if isinstance(expr, promql_parser.SubqueryExpr):
        step = None if expr.step is None else _milliseconds(expr.step)
        inner = _convert(expr.expr, depth + 1)
        return Subquery(inner, _milliseconds(expr.range), step or None, _milliseconds(expr.offset), _at(expr))
    if isinstance(expr, promql_parser.Call):
        return _call(expr, depth)
    if isinstance(expr, promql_parser.AggregateExpr):
        return _aggregate(expr, depth)
    if isinstance(expr, promql_parser.BinaryExpr):
        return _binary(expr, depth)
    raise UnsupportedQueryError(f"the construct {type(expr).__name__} is not supported")


_OPERATORS: dict[str, MatchOperator] = {
    "MatchOp.Equal": "=",
    "MatchOp.NotEqual": "!=",
    "MatchOp.Re": "=~",
    "MatchOp.NotRe": "!~",
}


def _selector(expr: Any) -> Selector:
    if expr.matchers.or_matchers:
        raise UnsupportedQueryError("'or' between label matchers is not supported")
    matchers = [Matcher(NAME, "=", expr.name)] if expr.name else []
    for matcher in expr.matchers.matchers:
        operator = _OPERATORS[str(matcher.op)]
        if operator in ("=~", "!~"):
            try:
                compile_pattern(matcher.value)
            except InvalidRequestError as error:
                raise UnsupportedQueryError(error.reason) from None
        matchers.append(Matcher(matcher.name, operator, matcher.value))
    return Selector(tuple(matchers), _milliseconds(expr.offset), _at(expr))


def _at(expr: Any) -> At:
    if expr.at is None:
        return None
    kind = str(expr.at.type)
    if kind == "AtModifierType.Start":
        return "start"
    if kind == "AtModifierType.End":
        return "end"
    return round(expr.at.at.timestamp() * 1000)


def _call(expr: Any, depth: int) -> Call:
    name = expr.func.name
    if name not in RANGE_FUNCTIONS | ELEMENTWISE_FUNCTIONS | OTHER_FUNCTIONS:
        raise UnsupportedQueryError(f"the function {name}() is not supported")
    return Call(name, tuple(_convert(arg, depth + 1) for arg in expr.args))


def _aggregate(expr: Any, depth: int) -> Aggregate:
    operator = str(expr.op)
    if operator not in AGGREGATIONS:
        raise UnsupportedQueryError(f"the aggregation {operator}() is not supported")
    labels: tuple[str, ...] = ()
    without = False
    if expr.modifier is not None:
        labels = tuple(expr.modifier.labels)
        without = str(expr.modifier.type) == "AggModifierType.Without"
    param = None if expr.param is None else _convert(expr.param, depth + 1)
    return Aggregate(operator, _convert(expr.expr, depth + 1), param, labels, without)


_CARDS: dict[str, Card] = {
    "VectorMatchCardinality.OneToOne": "one-to-one",
    "VectorMatchCardinality.ManyToOne": "many-to-one",
    "VectorMatchCardinality.OneToMany": "one-to-many",
    "VectorMatchCardinality.ManyToMany": "many-to-many",
}


def _binary(expr: Any, depth: int) -> Binary:
    operator = str(expr.op)
    lhs, rhs = _convert(expr.lhs, depth + 1), _convert(expr.rhs, depth + 1)
    modifier = expr.modifier
    if modifier is None:
        return Binary(operator, lhs, rhs, Matching("many-to-many" if operator in SET_OPERATORS else "one-to-one"), return_bool=False)
    if modifier.fill_values.lhs is not None or modifier.fill_values.rhs is not None:
        raise UnsupportedQueryError("the fill modifiers of binary operators are not supported")
    on, labels = False, ()
    if modifier.matching is not None:
        on = str(modifier.matching.type) == "LabelModifierType.Include"
        labels = tuple(modifier.matching.labels)
    matching = Matching(_CARDS[str(modifier.card)], on, labels, tuple(modifier.group_labels or ()))
    return Binary(operator, lhs, rhs, matching, bool(modifier.return_bool))


def _milliseconds(duration: timedelta | None) -> int:
    return 0 if duration is None else duration // _MILLISECOND
