"""Checks of the interpreter, the packages and the machine."""

from __future__ import annotations

import importlib
import os
import platform
import resource
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement

from dspex_pipelines.cli.doctor.findings import Check, Finding, ok, problem, warning

PACKAGE = "dspex-pipelines"
LEAST_PYTHON = (3, 11)
LEAST_FILES = 1_024
"""A worker has its log, its stream and some descriptors for each isolated trial; programs open their own."""
_EXTRAS = {
    "dspy": ("dspy", "programs that are DSPy modules"),
    "otel": ("opentelemetry-sdk", "spans (DSPEX_OTEL)"),
    "postgresql": ("psycopg", "a journal in PostgreSQL (DSPEX_JOURNAL_URL)"),
}


def checks() -> list[Check]:
    """Return the checks of this module."""
    return [
        Check("python", python),
        Check("packages", packages),
        Check("extras", extras),
        Check("grpc", grpc),
        Check("spans", spans),
        Check("open files", open_files),
    ]


def python() -> Finding:
    """Look at the interpreter."""
    found = f"{platform.python_implementation()} {platform.python_version()} in {sys.prefix}"
    if sys.version_info[:2] < LEAST_PYTHON:
        return problem(found, f"use Python {'.'.join(map(str, LEAST_PYTHON))} or newer")
    if sys.platform != "linux":
        return warning(found, "use Linux for large runs: elsewhere workers may outlive a pool that is killed")
    return ok(found)


def packages() -> Finding:
    """Look whether every package that is needed is there, in a version that those that need it accept."""
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return warning(f"{PACKAGE} runs from its source and is not installed", "pip install --editable .")
    wrong = list(_unmet(PACKAGE))
    if wrong:
        return problem("; ".join(wrong), f"pip install --upgrade {PACKAGE}, in an environment of its own")
    return ok(f"{PACKAGE} {version}, and all it requires in versions that go together")


def _unmet(package: str) -> Iterator[str]:
    """Yield what is missing, or too old or new, of what *package* requires and of what that requires."""
    waiting, seen = [package], {package}
    while waiting:
        name = waiting.pop()
        for requirement in _requirements(name):
            try:
                version = metadata.version(requirement.name)
            except metadata.PackageNotFoundError:
                yield f"{requirement.name} is missing, which {name} requires"
                continue
            if not requirement.specifier.contains(version, prereleases=True):
                yield f"{name} requires {requirement.name} {requirement.specifier}, {version} is installed"
            if requirement.name not in seen:
                seen.add(requirement.name)
                waiting.append(requirement.name)


def _requirements(name: str) -> Iterator[Requirement]:
    """Yield what a package requires here, extras apart."""
    for text in metadata.requires(name) or ():
        try:
            requirement = Requirement(text)
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        except (InvalidRequirement, UndefinedEnvironmentName):
            continue
        if wanted:
            yield requirement


def extras() -> Iterator[Finding]:
    """Look which extras are installed; none is needed unless something asks for it."""
    for extra, (package, purpose) in _EXTRAS.items():
        try:
            yield ok(f"{extra}: {package} {metadata.version(package)}, for {purpose}")
        except metadata.PackageNotFoundError:
            yield ok(f"{extra}: not installed; for {purpose}: pip install '{PACKAGE}[{extra}]'")


def grpc() -> Finding:
    """Look whether the wire's generated code fits the protobuf and gRPC that are installed."""
    # Refuses by itself a protobuf that is older than what the code was generated with.
    from google.protobuf.internal import api_implementation

    importlib.import_module("dspex_pipelines.bridge.pool_status")
    kind = api_implementation.Type()
    found = f"grpcio {metadata.version('grpcio')}, protobuf {metadata.version('protobuf')} ({kind})"
    if kind == "python":
        return warning(found, "reinstall protobuf: its compiled part is missing, and frames take far longer without")
    return ok(found)


def spans() -> Finding:
    """Look whether what sends spans is there when they are asked for."""
    from dspex_pipelines import telemetry

    if not telemetry.is_on():
        return ok("off; DSPEX_OTEL=1 turns them on")
    telemetry.check()
    return ok(f"on, sent to {os.environ.get('OTEL_EXPORTER_OTLP_ENDPOINT', 'the default endpoint')}")


def open_files() -> Finding:
    """Look how many files a process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return ok("no limit")
    if soft < LEAST_FILES:
        most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
        fix = f"ulimit -n {LEAST_FILES} (at most {most} here), in the shell that starts the pool"
        return warning(f"a process may open {soft:,} files, which many isolated trials pass", fix)
    return ok(f"a process may open {soft:,}")
