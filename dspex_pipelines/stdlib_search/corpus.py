"""The documented public functions, classes and methods of the installed Python standard library."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast


def _split(names: str) -> list[str]:
    return names.split()


# Modules whose import is felt outside Python (readline sets up the terminal, antigravity opens a browser, tkinter wants
# a display) are left out, as are deprecated ones.
TOPICS: dict[str, list[str]] = {
    "text": _split("""
        string re difflib textwrap unicodedata stringprep codecs html html.parser
        html.entities xml.dom.minidom xml.etree.ElementTree xml.sax xml.sax.handler xml.sax.saxutils
        gettext locale shlex cmd optparse argparse getopt pprint reprlib tokenize token
    """),
    "numbers": _split("""
        numbers math cmath decimal fractions random statistics itertools functools operator datetime
        calendar time zoneinfo struct hashlib hmac secrets
    """),
    "data": _split("""
        collections collections.abc heapq bisect array weakref types copy enum graphlib json
        json.encoder json.decoder pickle copyreg shelve marshal dbm sqlite3 csv configparser tomllib
        plistlib base64 binascii quopri dataclasses builtins
    """),
    "files": _split("""
        pathlib os.path fileinput stat filecmp tempfile glob fnmatch linecache shutil zlib gzip bz2
        lzma zipfile tarfile os io mmap errno
    """),
    "network": _split("""
        socket ssl select selectors signal asyncio email email.message email.parser email.policy
        email.header email.utils mailbox mimetypes urllib.request urllib.parse urllib.error
        urllib.robotparser http http.client http.server http.cookies http.cookiejar ftplib poplib
        imaplib smtplib socketserver xmlrpc.client xmlrpc.server ipaddress wsgiref.util
        wsgiref.headers wsgiref.simple_server webbrowser uuid
    """),
    "runtime": _split("""
        threading multiprocessing concurrent.futures subprocess sched queue contextvars logging
        logging.config logging.handlers sys sysconfig warnings contextlib abc atexit traceback gc
        inspect site code codeop zipimport pkgutil modulefinder runpy importlib importlib.abc
        importlib.machinery importlib.util importlib.resources importlib.metadata ast symtable dis
        pickletools unittest unittest.mock doctest bdb faulthandler pdb timeit trace tracemalloc
        cProfile pstats typing platform ctypes venv
    """),
}
_PRIVATE = re.compile(r"(^|\.)_")
_SIGNATURE_LINE = re.compile(r"[\w.]+\(.*\)(\s*(->|-->|=>).*)?|[\w.]+\(.*\)?\s*(->|-->|=>).*")
_PLAIN_WORD = re.compile(r"[A-Za-z]{2,}")
# Test runners, debuggers and notebooks replace these, so what stands there is not the library's.
_REPLACED_BY_OTHERS = frozenset(
    ("sys.breakpointhook", "sys.displayhook", "sys.excepthook", "sys.unraisablehook", "threading.excepthook")
)
_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
)
_LOADING = threading.Lock()

Kind = Literal["class", "function", "method"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One documented name.

    `name` is the public one, as in `json.loads` or `pathlib.Path.glob`. `summary` is the docstring's first paragraph on
    one line, `body` the rest, which never repeats the summary. `signature` has names and annotations but no default
    values, and is empty where Python knows none.
    """

    name: str
    kind: Kind
    module: str
    topic: str
    signature: str
    summary: str
    body: str


def documents() -> tuple[Document, ...]:
    """Return the documents in the order of their names; the same ones in every process.

    The first call imports the modules of `TOPICS`, which takes a quarter of a second; threads that come meanwhile wait
    for it.
    """
    # A cache alone would let all threads that come first do the work, and let them undo each other's warning filters.
    with _LOADING:
        return _load()


@functools.cache
def _load() -> tuple[Document, ...]:
    found: dict[str, Document] = {}
    seen: set[int] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for topic, names in TOPICS.items():
            for name in names:
                for document in _module(name, topic, seen):
                    found.setdefault(document.name, document)
    return tuple(found[name] for name in sorted(found))


def _module(name: str, topic: str, seen: set[int]) -> Iterator[Document]:
    try:
        module = importlib.import_module(name)
    except Exception:  # noqa: BLE001 - not on this platform, or broken in this installation
        return
    public: list[str] = getattr(module, "__all__", None) or [key for key in vars(module) if key[0] != "_"]
    # Not vars(module): some modules load what they export when it is first asked for.
    exported = {key: getattr(module, key, None) for key in public if f"{name}.{key}" not in _REPLACED_BY_OTHERS}
    for key, value in _own_names_first(exported):
        if not _is_documented_kind(value) or id(value) in seen or not _belongs(value, name):
            continue
        seen.add(id(value))
        yield from _document(f"{name}.{key}", value, "class" if inspect.isclass(value) else "function", topic)
        if inspect.isclass(value):
            yield from _members(value, f"{name}.{key}", topic)


def _members(owner: type, name: str, topic: str) -> Iterator[Document]:
    for key, member in sorted(vars(owner).items()):
        value = getattr(member, "__func__", member)
        # A member that was defined elsewhere is an alias: a class kept as an attribute, a shim, a second name.
        own = getattr(value, "__qualname__", None) == f"{owner.__qualname__}.{key}"
        if own and _is_documented_kind(value):
            yield from _document(f"{name}.{key}", value, "class" if inspect.isclass(value) else "method", topic)


def _own_names_first(values: Mapping[str, object]) -> list[tuple[str, object]]:
    """Return the pairs by name, aliases last, so that an object is met under the name it was defined with."""
    return sorted(values.items(), key=lambda item: (getattr(item[1], "__name__", None) != item[0], item[0]))


def _is_documented_kind(value: object) -> bool:
    return inspect.isclass(value) or isinstance(value, _FUNCTIONS)


def _belongs(value: object, module: str) -> bool:
    """Whether the object is the module's own: re-exports of other public modules appear there."""
    home = getattr(value, "__module__", None) or module
    top = home.partition(".")[0]
    is_private = top.startswith("_") and top in sys.stdlib_module_names
    return top.lstrip("_") == module.partition(".")[0] or is_private or home == "builtins"


def _document(name: str, value: object, kind: Kind, topic: str) -> Iterator[Document]:
    written = getattr(value, "__doc__", None)
    text = inspect.cleandoc(written) if isinstance(written, str) else ""
    if _PRIVATE.search(name) or not text:
        return
    paragraphs = re.split(r"\n\s*\n", _without_signature(text), maxsplit=1)
    summary = " ".join(paragraphs[0].split())
    body = paragraphs[1].strip() if len(paragraphs) > 1 else ""
    is_question = len(_PLAIN_WORD.findall(summary)) > 1
    if not is_question or not body or summary in " ".join(body.split()):
        return
    module = name.partition(".")[0]
    signature = _signature(cast("Callable[..., Any]", value))
    yield Document(name=name, kind=kind, module=module, topic=topic, signature=signature, summary=summary, body=body)


def _without_signature(text: str) -> str:
    """Return the docstring without the signatures that those of C functions begin with, and their continuations."""
    lines = text.splitlines()
    while lines and _SIGNATURE_LINE.fullmatch(lines[0]):
        del lines[0]
        while lines and (not lines[0] or lines[0][0].isspace()):
            del lines[0]
    return "\n".join(lines).strip()


class _Elided:
    def __repr__(self) -> str:
        return "..."


def _signature(value: Callable[..., Any]) -> str:
    """Return the signature without default values: some are paths or objects of this very process."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    parameters = [
        parameter if parameter.default is parameter.empty else parameter.replace(default=_Elided())
        for parameter in signature.parameters.values()
    ]
    return str(signature.replace(parameters=parameters))


def python() -> str:
    """Return the version of Python whose library this is."""
    return sys.version.split()[0]
