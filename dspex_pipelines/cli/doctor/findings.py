"""What a check has found, how checks are run, and how findings are told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from rich.console import Console
from rich.text import Text

from dspex_pipelines.errors import DspexError, InvalidValue
from dspex_pipelines.redaction import redact


class Level(StrEnum):
    """How good or bad it is. Only a problem keeps an evaluation from being run."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, and what to do about it where it is not well."""

    level: Level
    found: str
    fix: str = ""

    def to_document(self, check: str) -> dict[str, str]:
        """Return it as plain values, without secrets."""
        return {"check": check, "level": self.level.value, "found": redact(self.found), "fix": redact(self.fix)}


def ok(found: str) -> Finding:
    """Return that it is well."""
    return Finding(Level.OK, found)


def warning(found: str, fix: str) -> Finding:
    """Return that it works, and could be better."""
    return Finding(Level.WARNING, found, fix)


def problem(found: str, fix: str) -> Finding:
    """Return that it keeps an evaluation from being run."""
    return Finding(Level.PROBLEM, found, fix)


@dataclass(frozen=True, slots=True)
class Check:
    """Looks at one thing; `look` returns what it has found, and may raise anything."""

    name: str
    look: Callable[[], Finding | Iterable[Finding]]


def refused(error: InvalidValue) -> Finding:
    """Return a refused value as what it is: found, and to be mended as it says itself."""
    return problem(f"{error.field}: {error.value!r} is not accepted", error.fix)


def examined(checks: Iterable[Check]) -> list[dict[str, str]]:
    """Run the checks and return what they found; one that raises has found a problem."""
    return [finding.to_document(check.name) for check in checks for finding in _findings(check)]


def _findings(check: Check) -> Sequence[Finding]:
    try:
        found = check.look()
        return [found] if isinstance(found, Finding) else list(found)
    except InvalidValue as error:
        return [refused(error)]
    except DspexError as error:
        said, _, fix = str(error).partition("; ")
        return [problem(said, fix or "mend what that says, and look again")]
    except (Exception, SystemExit) as error:  # noqa: BLE001 - code of the user's and of others runs here
        first = (str(error).splitlines() or [""])[0]
        said = f"{type(error).__name__}: {first}".removesuffix(": ")
        return [problem(f"it could not be looked at: {said}", "mend what that says, and look again")]


def print_findings(documents: Sequence[dict[str, str]], console: Console) -> None:
    """Print them for people, and at the end how many are not well."""
    width = max(len(one["check"]) for one in documents)
    for one in documents:
        style = _STYLES[Level(one["level"])]
        line = Text.assemble((f"{one['level']:<8}", style), f" {one['check']:<{width}}  {one['found']}")
        console.print(line, soft_wrap=True)
        if one["fix"]:
            console.print(Text(f"{'':<{10 + width}} → {one['fix']}"), soft_wrap=True)
    counts = Counter(one["level"] for one in documents)
    told = [_counted(counts[level], level) for level in (Level.PROBLEM, Level.WARNING) if counts[level]]
    console.print(Text(", ".join(told) or "All is well."))


def _counted(count: int, level: Level) -> str:
    return f"{count} {level.value}{'' if count == 1 else 's'}"
