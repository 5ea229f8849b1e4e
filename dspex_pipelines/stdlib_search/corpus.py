"""The documented public functions, classes and methods of the installed Python standard library."""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import re
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass


def _split(names: str) -> list[str]:
    return names.split()


TOPICS: dict[str, list[str]] = {
    "text": _split("""
        string re difflib textwrap unicodedata stringprep readline codecs html html.parser
        html.entities gettext locale shlex cmd optparse argparse getopt pprint reprlib tokenize
        token
    """),
    "numbers": _split("""
        numbers math cmath decimal fractions random statistics itertools functools operator datetime
        calendar time zoneinfo struct hashlib hmac secrets
    """),
    "data": _split("""
        collections collections.abc heapq bisect array weakref types copy enum graphlib json
        json.encoder json.decoder pickle copyreg shelve marshal dbm sqlite3 csv configparser tomllib
        plistlib xml.dom.minidom xml.etree.ElementTree xml.sax xml.sax.handler xml.sax.saxutils
        base64 binascii quopri dataclasses builtins
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


@dataclass(frozen=True, slots=True)
class Document:
    """One documented name. `body` is the docstring after its summary."""

    name: str
    module: str
    topic: str
    signature: str
    summary: str
    body: str


@functools.cache
def documents() -> tuple[Document, ...]:
    """Return the documents in the order of their names; the same ones in every process."""
    found: dict[str, Document] = {}
    seen: set[int] = set()
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for topic, names in TOPICS.items():
            for name in names:
                for document in _module(name, topic, seen):
                    found.setdefault(document.name, document)
    return tuple(found[name] for name in sorted(found))


def _module(name: str, topic: str, seen: set[int]) -> Iterator[Document]:
    try:
        module = importlib.import_module(name)
    except ImportError:  # not on this platform
        return
    public = getattr(module, "__all__", None) or [key for key in vars(module) if key[0] != "_"]
    for key in sorted(set(public)):
        value = vars(module).get(key)
        if not _is_documented_kind(value) or id(value) in seen or not _belongs(value, name):
            continue
        seen.add(id(value))
        yield from _document(f"{name}.{key}", value, topic)
        if inspect.isclass(value):
            for method_name, method in sorted(vars(value).items()):
                function = getattr(method, "__func__", method)
                if not method_name.startswith("_") and _is_documented_kind(function):
                    yield from _document(f"{name}.{key}.{method_name}", function, topic)


_CALLABLES = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
)


def _is_documented_kind(value: object) -> bool:
    return inspect.isclass(value) or isinstance(value, _CALLABLES)


def _belongs(value: object, module: str) -> bool:
    """Whether the object is the module's own: re-exports of other public modules appear there."""
    home = getattr(value, "__module__", None) or module
    top = module.partition(".")[0]
    return home == module or home.lstrip("_").partition(".")[0] == top or home.startswith("_") or home == "builtins"


def _document(name: str, value: object, topic: str) -> Iterator[Document]:
    written = getattr(value, "__doc__", None)
    text = inspect.cleandoc(written) if isinstance(written, str) else ""
    if _PRIVATE.search(name) or not text:
        return
    lines = text.splitlines()
    if re.match(r"^[\w.]+\(.*\)( ->.*)?$", lines[0]):
        lines = lines[1:]  # a signature, as builtins have it
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip(), maxsplit=1)
    summary = " ".join(paragraphs[0].split())
    body = paragraphs[1].strip() if len(paragraphs) > 1 else ""
    if not summary or not body or summary in " ".join(body.split()):
        return
    yield Document(name, name.partition(".")[0], topic, _signature(value), summary, body)


def _signature(value: object) -> str:
    try:
        return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(value)))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""


def python() -> str:
    """Return the version of Python whose library this is."""
    return sys.version.split()[0]
