r"""Label conditions made ready to be tried on many values.

Prometheus matches with RE2, whose time is linear in the text. Python's ``re`` backtracks, and one unlucky pattern would hold the whole
process; patterns therefore run on the Rust engine that pydantic brings, which is linear too, bounds the size of what it compiles and
knows RE2's syntax (without ``\C`` and ``\Q...\E``; ``\d``, ``\s`` and ``\w`` mean Unicode there).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic_core import SchemaError, SchemaValidator, core_schema

from app.errors import InvalidRequestError
from app.telemetry.store import Matcher

MAX_PATTERN = 16_384
_SPECIAL = frozenset("\\.^$*+?{}[]()")


@dataclass(frozen=True, slots=True)
class CompiledMatcher:
    """A matcher ready for use: ``accepts`` says whether a value passes, ``accepts_missing`` whether a series without the label does.

    ``exact_value`` is the only value that passes, where that is known beforehand.
    """

    name: str
    accepts: Callable[[str], bool]
    accepts_missing: bool
    exact_value: str | None = None


def compile_matchers(matchers: Sequence[Matcher]) -> list[CompiledMatcher]:
    """Make matchers ready.

    Raises:
        InvalidRequestError: a regular expression is not valid.
    """
    return [_compile(matcher) for matcher in matchers]


def _compile(matcher: Matcher) -> CompiledMatcher:
    value = matcher.value
    if matcher.operator == "=":
        return CompiledMatcher(matcher.name, lambda text: text == value, value == "", value or None)
    if matcher.operator == "!=":
        return CompiledMatcher(matcher.name, lambda text: text != value, value != "")
    accepts = compile_pattern(value)
    if matcher.operator == "=~":
        return CompiledMatcher(matcher.name, accepts, accepts(""))
    return CompiledMatcher(matcher.name, lambda text: not accepts(text), not accepts(""))


def compile_pattern(pattern: str) -> Callable[[str], bool]:
    """A test for whether all of a text matches ``pattern``; ``.`` matches newlines too, as in Prometheus.

    Raises:
        InvalidRequestError: the pattern is not valid, or too large.
    """
    if len(pattern) > MAX_PATTERN:
        raise InvalidRequestError(f"A regular expression may have {MAX_PATTERN} characters at most.")
    if _SPECIAL.isdisjoint(pattern):  # alternatives of plain words, which is what dashboards send
        return frozenset(pattern.split("|")).__contains__
    _validator(pattern)  # alone first: what is unbalanced must not become valid within the anchors
    return _validator(rf"\A(?s:{pattern})\z").isinstance_python


def _validator(pattern: str) -> SchemaValidator:
    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex", strict=True))
    except (SchemaError, UnicodeEncodeError) as error:
        reason = str(error).strip().splitlines()[-1].strip().removeprefix("error: ")
        raise InvalidRequestError(f"The regular expression {pattern!r} is not valid: {reason}.") from error
