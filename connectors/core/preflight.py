"""Preflight: named checks that say, before or beside a running agent, what would keep it from working and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How a check ended. ``WARN`` does not stop the agent from working; ``SKIP`` means an earlier failure made it pointless."""

    PASS = "pass"  # noqa: S105 - an outcome, not a password
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found (``detail``) and what to do about it (``advice``, empty when it passed)."""

    name: str
    outcome: Outcome
    detail: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """A named check. ``run`` returns (outcome, detail, advice); ``needs`` names checks that must not have failed before it."""

    name: str
    run: Callable[[], tuple[Outcome, str, str]]
    needs: tuple[str, ...] = ()


def run_checks(checks: Iterable[Check]) -> list[CheckResult]:
    """Run the checks in order. A check that raises fails with what it raised; one whose needs failed is skipped."""
    results: list[CheckResult] = []
    broken: set[str] = set()
    for check in checks:
        missing = [name for name in check.needs if name in broken]
        if missing:
            broken.add(check.name)
            results.append(CheckResult(check.name, Outcome.SKIP, f"not tried: {missing[0]} failed"))
            continue
        try:
            outcome, detail, advice = check.run()
        except Exception as exc:  # noqa: BLE001 - a check that breaks is a finding, not a crash
            outcome, detail, advice = Outcome.FAIL, f"{type(exc).__name__}: {exc}", "Report this; the check itself failed."
        if outcome is Outcome.FAIL:
            broken.add(check.name)
        results.append(CheckResult(check.name, outcome, detail, advice))
    return results


def failed(results: Iterable[CheckResult]) -> bool:
    """Whether any check failed (a warning is no failure)."""
    return any(result.outcome is Outcome.FAIL for result in results)


def as_document(results: Iterable[CheckResult]) -> dict[str, object]:
    """The results as a JSON document: ``ok`` and, in order, ``checks`` of ``name``, ``outcome``, ``detail`` and ``advice``."""
    listed = list(results)
    checks = [{"name": r.name, "outcome": r.outcome.value, "detail": r.detail, "advice": r.advice} for r in listed]
    return {"ok": not failed(listed), "checks": checks}


def as_text(results: Iterable[CheckResult], *, unicode: bool = True) -> str:
    """The results for a person: one aligned line for each, what to do below it; ``unicode=False`` keeps to ASCII marks."""
    listed = list(results)
    marks = _MARKS if unicode else _ASCII_MARKS
    width = max((len(r.name) for r in listed), default=0)
    indent = " " * (max(map(len, marks.values())) + width + 3)
    lines = []
    for result in listed:
        mark = marks[result.outcome].ljust(max(map(len, marks.values())))
        lines.append(f"{mark} {result.name.ljust(width)}  {_one_line(result.detail)}")
        if result.advice:
            lines.append(f"{indent}{'→' if unicode else '->'} {_one_line(result.advice)}")
    return "\n".join(lines)


def _one_line(text: str) -> str:
    """``text`` without line breaks and terminal controls: details may quote what a stranger's server answered."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


_MARKS = {Outcome.PASS: "✓", Outcome.WARN: "!", Outcome.FAIL: "✗", Outcome.SKIP: "-"}
_ASCII_MARKS = {Outcome.PASS: "ok", Outcome.WARN: "warn", Outcome.FAIL: "FAIL", Outcome.SKIP: "skip"}
