"""What is kept, shown or sent has no secrets in it: their values are replaced by their names.

A secret is the value of an environment variable whose name looks like one (`OPENAI_API_KEY`) or is listed in
`DSPEX_SECRETS`, a password within a variable that is a URL, and whatever else this process has been told of. There is
one set of them in a process. They are looked up in the environment when this is imported, and again by
`learn_environment`; what was once a secret stays one.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import quote, quote_plus, unquote, urlsplit

LEAST_CHARACTERS = 8
"""A shorter value is none: it would be found in what has nothing to do with it."""
LISTED = "DSPEX_SECRETS"
"""Environment variable: names of others whose values are secrets, whatever they are called; with commas between."""
EXEMPT = "DSPEX_NOT_SECRETS"
"""Environment variable: names of others that look like secrets and are none."""
UNNAMED = "[redacted]"
_PARTS = frozenset(
    (
        *("KEY", "KEYS", "APIKEY", "TOKEN", "SECRET", "SECRETS", "PASSWORD", "PASSWORDS", "PASSWD", "PASSPHRASE"),
        *("CREDENTIAL", "CREDENTIALS", "AUTHORIZATION", "BEARER", "JWT"),
    )
)
_ENDS = ("APIKEY", "TOKEN", "SECRET", "PASSWORD")
"""What parts end with that are written together with what goes before: `GITHUBTOKEN`."""
_LAST_PARTS = frozenset({"AUTH", "PASS", "PWD"})
"""Parts that mean something else where more follows, or nothing goes before: `SSH_AUTH_SOCK`, `PWD`."""
_FIELD_PARTS = frozenset(
    (
        *("apikey", "apikeys", "secret", "secrets", "password", "passwords", "passwd", "passphrase"),
        *("credential", "credentials"),
    )
)
_FIELD_PAIRS = frozenset(
    (first, f"{second}{plural}")
    for second, firsts in {
        "key": ("api", "access", "private", "account", "subscription"),
        "token": ("access", "api", "auth", "bearer", "refresh"),
    }.items()
    for first in firsts
    for plural in ("", "s")
)
_ABOUT = frozenset({"env", "environment", "variable", "var", "name", "file", "path", "folder", "header", "type"})
"""Last parts of the names of what tells where a secret is."""
_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")
"""The name of an environment variable, which is what a declaration may have in place of a secret."""
_FIELDS = frozenset({"authorization", "proxy_authorization", "bearer"})
_SETTING_WORDS = ("key", "token", "secret", "authorization", "header", "password", "credential")
_COUNT = re.compile(r"(max|min|budget|num)_([a-z]+_)*tokens")
"""The name of a setting that says how many tokens there may be."""
_LEAST_LINE = 16
"""Characters of a line of a secret of many lines that is one by itself."""
_LEAST_WITHIN = 16
"""Characters of a secret that is one in the middle of a declared value too."""
# What is given out as a key in a form that nothing else has.
_KEYS = (
    r"\bsk-[A-Za-z0-9_\-]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}|\bxox[abpros]-[A-Za-z0-9\-]{20,}"
    r"|\bAIza[A-Za-z0-9_\-]{30,}|\bA[KS]IA[A-Z0-9]{16}\b|\bhf_[A-Za-z0-9]{30,}"
    r"|\beyJ[A-Za-z0-9_\-]{10,}\.[A-Za-z0-9_\-]{10,}\.[A-Za-z0-9_\-]{10,}"
)
_KEY = re.compile(_KEYS)
_HEADER = re.compile(
    r"(\b(?:proxy-)?authorization\b|\b(?:x-)?api-key\b)([\"']?\s*[:=]\s*[\"']?)((?:bearer|basic|token)\s+)?"
    r"(?!\[redacted)[^\s\"',;}]{8,}",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(\bbearer\s+)(?!\[redacted)[A-Za-z0-9._~+/=\-]{16,}", re.IGNORECASE)
_PASSWORD_IN_URL = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.\-]*://[^\s/:@\"']*:)(?!\[redacted|\*\*\*)[^\s/@\"']+(@)")
_HINTS = (
    *("uthorization", "UTHORIZATION", "earer ", "EARER ", "pi-key", "PI-KEY", "pi-Key", "sk-", "://"),
    *("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "xox", "AIza", "AKIA", "ASIA", "hf_", "eyJ"),
)
"""One of these is in whatever the forms above are in: most texts are not looked at closer."""
T = TypeVar("T")


class Secrets:
    """Values that nobody is to see, and what stands in their place."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: dict[str, str] = {}
        """Each form that a secret is written in, to its name."""
        self._values: set[str] = set()
        self.open: frozenset[str] = frozenset()
        """Values that are none, wherever they are found."""
        self._bytes: tuple[bytes, ...] = ()
        self._texts: tuple[str, ...] = ()
        self._pattern: re.Pattern[str] | None = None
        self._longest = 0
        self._least_bytes = sys.maxsize
        self.heard: Callable[[Mapping[str, str]], None] = _nobody
        """Told of secrets, by name, as they become known here: who writes this process's log."""

    def learn(self, named: Mapping[str, str]) -> None:
        """Take the values of *named* for secrets, those apart that are too short."""
        known = self._values | self.open
        new = {name: value for name, value in named.items() if value not in known and _is_long(value)}
        if not new:
            return
        with self._lock:
            for name, value in new.items():
                self._values.add(value)
                for form in _forms(value):
                    self._names.setdefault(form, name)
            # The longest first: one may begin with another.
            texts = tuple(sorted(self._names, key=len, reverse=True))
            self._longest = len(texts[0])
            # Others read these meanwhile: what is looked for can be replaced.
            self._pattern = re.compile("|".join(map(re.escape, texts)))
            self._texts = texts
            self._bytes = tuple(text.encode(errors="surrogatepass") for text in texts)
            self._least_bytes = min(map(len, self._bytes))
        self.heard(new)

    @property
    def longest(self) -> int:
        """Characters of the longest."""
        return self._longest

    def holds(self, payload: bytes) -> bool:
        """Return whether one is in the bytes."""
        # Most scores, and many outputs, are shorter than any secret.
        return len(payload) >= self._least_bytes and any(secret in payload for secret in self._bytes)

    def name_of(self, text: str) -> str:
        """Return the name of the secret that the text is, or of a long one that is in it; empty where there is none."""
        known = (one for one in self._texts if text == one or (len(one) >= _LEAST_WITHIN and one in text))
        found = next(known, None)
        return "" if found is None else self._names[found]

    def out_of(self, text: str) -> str:
        """Return the text with names in place of what is known."""
        if self._pattern is None or not any(one in text for one in self._texts):
            return text
        return self._pattern.sub(lambda found: f"[redacted {self._names[found[0]]}]", text)


def _nobody(_: Mapping[str, str]) -> None:
    """Nobody wants to know."""


_SECRETS = Secrets()


# ---------------------------------------------------------------------------- what is one


def learn(named: Mapping[str, str]) -> None:
    """Take the values for secrets, each under its name."""
    _SECRETS.learn(named)


def learn_environment(environment: Mapping[str, str] | None = None) -> None:
    """Look for secrets in the environment: this process's, or one that others are going to have."""
    environment = os.environ if environment is None else environment
    exempt = (environment.get(name) for name in _names(environment.get(EXEMPT, "")))
    _SECRETS.open |= {value for value in exempt if value is not None}
    _SECRETS.learn(secrets_of(environment))


def tell(heard: Callable[[Mapping[str, str]], None]) -> None:
    """Have *heard* told of each secret that becomes known from now on."""
    _SECRETS.heard = heard


def secrets_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the values of an environment that are secrets, by name."""
    listed, exempt = (_names(environment.get(name, "")) for name in (LISTED, EXEMPT))
    found: dict[str, str] = {}
    for name in environment:
        # Programs may take variables out meanwhile.
        value = environment.get(name)
        if value is None or name in (LISTED, EXEMPT) or name in exempt or not _is_long(value):
            continue
        if name in listed or (is_secret_variable(name) and not _is_path(value)):
            found[name] = value
        elif password := password_of(value):
            found[name] = password
    return found


def is_secret_variable(name: str) -> bool:
    """Return whether an environment variable of that name holds a secret: `MY_API_KEY` does, `KEYBOARD` does not."""
    parts = [part for part in re.split(r"[^A-Z0-9]+", name.upper()) if part]
    if not _PARTS.isdisjoint(parts) or any(part.endswith(_ENDS) for part in parts):
        return True
    return len(parts) > 1 and parts[-1] in _LAST_PARTS


@lru_cache(maxsize=1_024)
def is_secret_field(name: str) -> bool:
    """Return whether an argument, setting or header of that name holds a secret: `api_key` does, `sort_key` not."""
    parts = [part for part in re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()) if part]
    if parts and parts[-1] in _ABOUT:
        return False
    pairs = pairwise(parts)
    return not _FIELD_PARTS.isdisjoint(parts) or "_".join(parts) in _FIELDS or not _FIELD_PAIRS.isdisjoint(pairs)


@lru_cache(maxsize=1_024)
def is_secret_setting(name: str) -> bool:
    """Return whether what a call has under that name is kept nowhere: keys, tokens and headers, by any name of theirs.

    More than by `is_secret_field`, which decides what is refused: what is left out in vain costs little.
    """
    lower = name.lower()
    return any(word in lower for word in _SETTING_WORDS) and _COUNT.fullmatch(lower) is None


def password_of(url: str) -> str:
    """Return the password within a URL; empty where there is none."""
    if "://" not in url:
        return ""
    try:
        return unquote(urlsplit(url).password or "")
    except ValueError:
        return ""


def _names(listed: str) -> frozenset[str]:
    return frozenset(name.strip() for name in listed.split(",") if name.strip())


def _is_long(value: str) -> bool:
    return len(value.strip()) >= LEAST_CHARACTERS


def _is_path(value: str) -> bool:
    """Return whether the value says where a secret lies, and is none itself."""
    try:
        return value.startswith(("/", "~", "./")) and Path(value).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _forms(value: str) -> Iterable[str]:
    """Return the ways in which a secret is written: within code, JSON and URLs, and line by line."""
    stripped = value.strip()
    forms = {value, stripped, repr(stripped)[1:-1], json.dumps(stripped)[1:-1]}
    forms |= {json.dumps(stripped, ensure_ascii=False)[1:-1]}
    encodable = stripped.encode(errors="surrogatepass")
    forms |= {quote(encodable, safe=""), quote(encodable), quote_plus(encodable)}
    lines = [line.strip() for line in stripped.splitlines()]
    if len(lines) > 1:
        forms |= {line for line in lines if len(line) >= _LEAST_LINE and not line.startswith("-----")}
    return forms


# ---------------------------------------------------------------------------- taken out


def redact(text: str) -> str:
    """Return a text without the secrets that are known, and without what only keys and headers look like."""
    text = _SECRETS.out_of(text)
    # A loop, not `any`: every text of every prompt comes by here.
    for hint in _HINTS:
        if hint in text:
            break
    else:
        return text
    text = _HEADER.sub(rf"\1\2\3{UNNAMED}", text)
    text = _BEARER.sub(rf"\1{UNNAMED}", text)
    text = _PASSWORD_IN_URL.sub(r"\1***\2", text)
    return _KEY.sub(UNNAMED, text)


def redact_beginning(text: str, most: int) -> str:
    """Return the first *most* characters of what `redact` makes of a text, looking at little more than these.

    None of them is the beginning of a secret that goes on behind them.
    """
    margin = _SECRETS.longest
    if len(text) <= most + margin:
        return redact(text)[:most]
    begun = redact(text[: most + margin])
    return begun[: min(most, max(0, len(begun) - margin))]


def redact_values(value: T) -> T:
    """Return a plain value, maps and lists of such included, with names in place of the secrets that are known.

    Nothing else is touched: a program's outputs are its own.
    """
    return cast("T", _values(value))


def longest() -> int:
    """Return how many characters the longest secret has that is known."""
    return _SECRETS.longest


def holds_secret(payload: bytes) -> bool:
    """Return whether a secret that is known is in the bytes."""
    return _SECRETS.holds(payload)


class DeclaredSecret(NamedTuple):
    """Where a declared value has a secret."""

    field: str
    is_value_of: str
    """The variable whose value it is; empty where it only is named, or looks, like one."""


def secret_within(value: Any, field: str) -> DeclaredSecret | None:
    """Return which part of a declared value is a secret, or is named as one; None where none is."""
    if isinstance(value, str):
        known = _SECRETS.name_of(value)
        named = is_secret_field(field.rpartition(".")[2].partition("[")[0]) and _VARIABLE.fullmatch(value) is None
        found = known or _KEY.search(value) or password_of(value) or (named and value.strip())
        return DeclaredSecret(field, known) if found else None
    if isinstance(value, Mapping):
        parts = ((one, f"{field}.{name}") for name, one in cast("Mapping[Any, Any]", value).items())
    elif isinstance(value, list | tuple | set | frozenset):
        parts = ((one, f"{field}[{index}]") for index, one in enumerate(cast("Iterable[Any]", value)))
    else:
        return None
    return next((found for one, name in parts if (found := secret_within(one, name))), None)


def _values(value: Any) -> Any:
    match value:
        case str():
            return _SECRETS.out_of(value)
        case bytes():
            if not _SECRETS.holds(value):
                return value
            return _SECRETS.out_of(value.decode(errors="surrogateescape")).encode(errors="surrogateescape")
        case Mapping():
            made: dict[Any, Any] = {}
            for key, one in cast("Mapping[Any, Any]", value).items():
                name = _values(key)
                # Two secrets of one name may have been keys.
                while name in made and isinstance(name, str):
                    name += "'"
                made[name] = _values(one)
            return made
        case list() | tuple():
            return [_values(one) for one in cast("list[Any]", value)]
        case _:
            return value


learn_environment()
