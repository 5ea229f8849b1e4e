"""What is declared has no secrets in it: it is written into journals, results and run configs, and shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.redaction import secret_within

_MODEL = "lm"
FIX = "leave it out, have the program read it from an environment variable, and set that where the run is started"


class _Hidden:
    """Stands in a message for the value that nobody is to see."""

    def __repr__(self) -> str:
        return "a secret"


def check_no_secret(field: str, value: Any, *, fix: str = FIX) -> None:
    """Raise `InvalidValue` where *value*, or a part of it, is a secret or is named as one; it does not show it."""
    found = secret_within(value, field)
    if found:
        raise refusal(found.field, found.is_value_of, fix=fix)


def refusal(field: str, is_value_of: str = "", *, fix: str = FIX) -> InvalidValue:
    """Return the error that refuses a secret: *is_value_of* is the name of the variable that has it."""
    what = f"it is the value of {is_value_of}: " if is_value_of else ""
    return InvalidValue(field=field, value=_Hidden(), fix=f"{what}{fix}")


def saved_secret(state: Any) -> str:
    """Return where a module's saved state has a secret of one of its language models; empty where it has none."""
    if isinstance(state, Mapping):
        for name, value in cast("Mapping[str, Any]", state).items():
            if name == _MODEL and (found := secret_within(value, name)):
                return found.field
            if inside := saved_secret(value):
                return f"{name}.{inside}"
    return ""
