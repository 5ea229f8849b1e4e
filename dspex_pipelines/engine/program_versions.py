"""Which version of its source a program or a metric is, and which files that source is."""

from __future__ import annotations

import ast
import contextlib
import csv
import functools
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dspex_pipelines.engine.compiled import installed_folders
from dspex_pipelines.engine.declared_files import UnchangedFiles, digest_of_files
from dspex_pipelines.engine.programs import resolve, spare_parameters
from dspex_pipelines.engine.syntax import parsed
from dspex_pipelines.errors import ProgramUnavailable
from dspex_pipelines.model.payload import digest_of
from dspex_pipelines.model.trial import ProgramSpec

DECLARED = "declared-"
_ENVIRONMENT = ".env-"
_LIBRARIES = frozenset({"dspy"})
"""Libraries whose own metrics are used as they are: their version is that of the distribution."""
_INFERRED_FROM = ".py" if sys.version_info < (3, 12) else ""
"""How the files end that importlib infers packages from: since Python 3.12 it is any."""


def program_version(
    entry_point: str,
    init: Mapping[str, Any],
    *,
    files: Iterable[Path] = (),
    declared: str = "",
    environment: Iterable[str] = (),
) -> str:
    """Return a hex digest of what decides how the program behaves.

    That is its parameters, the source it reaches by import inside its own project, the versions of the
    distributions that source imports, and *files*; or *declared* in place of source, distributions and files. What
    the variables named by *environment* say joins either, as a digest. Raises `ProgramUnavailable` when it cannot be
    found.
    """
    surroundings = _surroundings(environment)
    parameters = [entry_point, dict(init)]
    if declared:
        return f"{DECLARED}{digest_of([parameters, declared]).hex()}{surroundings}"
    version = digest_of([parameters, _source(entry_point)]).hex()
    named = list(files)
    contents = f".{digest_of_files(named, entry_point=entry_point)}" if named else ""
    return f"{version}{contents}{surroundings}"


def unchanged_files(spec: ProgramSpec, files: Sequence[Path]) -> UnchangedFiles:
    """Return those of the *files* that join the version of *spec*: none where it is declared."""
    if spec.version.startswith(DECLARED):
        files = ()
    digest = spec.version.partition(_ENVIRONMENT)[0].partition(".")[2]
    return UnchangedFiles(files, digest, entry_point=spec.entry_point)


def is_version_here(spec: ProgramSpec) -> bool:
    """Return whether the source this process would import is the version that *spec* names.

    A declared version is the user's word. Files that join a version are looked at by who keeps the outcomes.
    """
    if spec.version.startswith(DECLARED):
        return True
    return program_version(spec.entry_point, spec.init) == spec.version.partition(".")[0]


def other_environment(spec: ProgramSpec) -> tuple[str, ...]:
    """Return the variables that *spec*'s version depends on, if what they say here is not what it names; else none."""
    _, found, rest = spec.version.partition(_ENVIRONMENT)
    names = tuple(rest.partition("-")[0].split("+")) if found else ()
    return () if _surroundings(names) == f"{found}{rest}" else names


def _surroundings(names: Iterable[str]) -> str:
    """Return what joins a version of the environment: the names, and a digest of what they say."""
    wanted = sorted(set(names))
    if not wanted:
        return ""
    said = [[name, _without_user(os.environ.get(name))] for name in wanted]
    return f"{_ENVIRONMENT}{'+'.join(wanted)}-{digest_of(said).hex()}"


def _without_user(value: str | None) -> str | None:
    """Leave user and password out of an address: they may be secrets, and decide on no answer."""
    return value if value is None else re.sub(r"://[^/@\s]*@", "://", value)


def metric_version(entry_point: str) -> str:
    """Return a hex digest of a metric's source; raises `ProgramUnavailable` when it cannot be imported, or called."""
    target = resolve(entry_point)
    with contextlib.suppress(ValueError):  # some builtins have no signature
        try:
            inspect.signature(target).bind(None, None, **dict.fromkeys(spare_parameters(target)))
        except TypeError as error:
            reason = f"a metric is called with two arguments, (example, outputs); this one cannot be: {error}"
            raise ProgramUnavailable(entry_point=entry_point, reason=reason) from error
    return digest_of([entry_point, _source(entry_point)]).hex()


def project_modules(entry_point: str) -> dict[str, Path]:
    """Return the modules of the program's own project that it reaches by import, with their files."""
    module_name = entry_point.partition(":")[0]
    found: dict[str, Path] = {}
    todo = [module_name]
    top = module_name.split(".")[0]
    if top in _LIBRARIES:
        return {}
    root = _project_root(entry_point, module_name, top)
    while todo:
        name = todo.pop()
        path = _file_of(name, root, top)
        if name in found or path is None:
            continue
        found[name] = path
        todo.extend(_imports(name, path, is_package=path.name == "__init__.py"))
        # A package's own __init__ runs before any module in it.
        todo.extend([name.rpartition(".")[0]] if "." in name else [])
    return found


def _source(entry_point: str) -> list[Any]:
    modules = project_modules(entry_point)
    imported = _imported(entry_point, modules)
    own = {name.split(".")[0] for name in modules}
    packages = _distributions()
    distributions = sorted(
        f"{distribution.metadata['Name']}=={importlib.metadata.version(distribution.metadata['Name'])}"
        for name in imported - own
        for distribution in packages.get(name, ())
    )
    sources = sorted((name, path.read_bytes()) for name, path in modules.items())
    return [sources, distributions, list(sys.version_info[:2])]


def imported_packages(entry_point: str) -> set[str]:
    """Return the names of all top-level packages that the source of the program's own project imports."""
    return _imported(entry_point, project_modules(entry_point))


def _imported(entry_point: str, modules: Mapping[str, Path]) -> set[str]:
    imported = {
        name.split(".")[0]
        for module, path in modules.items()
        for name in _imports(module, path, is_package=path.name == "__init__.py")
    }
    return imported | ({entry_point.partition(":")[0].partition(".")[0]} & _LIBRARIES)


def know_distributions() -> None:
    """Find out now what is installed; otherwise the first version that is asked for has to."""
    _distributions()


@functools.cache
def _distributions() -> Mapping[str, Sequence[importlib.metadata.Distribution]]:
    """Return the distributions of each top-level package.

    The names are those of `importlib.metadata.packages_distributions`, which makes an object of every installed file
    and takes ten times as long.
    """
    found: dict[str, list[importlib.metadata.Distribution]] = {}
    for distribution in importlib.metadata.distributions():
        for name in _top_level(distribution):
            found.setdefault(name, []).append(distribution)
    return found


def _top_level(distribution: importlib.metadata.Distribution) -> Iterable[str]:
    if declared := (distribution.read_text("top_level.txt") or "").split():
        return declared
    if record := distribution.read_text("RECORD"):
        files = (row[0] for row in csv.reader(record.splitlines()) if row)
    else:
        files = map(str, distribution.files or ())
    names = {_module(name) for name in files if name.endswith(_INFERRED_FROM)}
    return {name for name in names if name and "." not in name}


def _module(file: str) -> str | None:
    folder, nested, _ = file.removeprefix("./").partition("/")
    return folder if nested else inspect.getmodulename(file)


def _project_root(entry_point: str, module_name: str, top: str) -> Path:
    """Return the folder that the program's top-level module or package lies in."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError) as error:
        raise ProgramUnavailable(entry_point=entry_point, reason=str(error)) from error
    if spec is None:
        raise ProgramUnavailable(entry_point=entry_point, reason=f"there is no module {module_name!r}")
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve().parent
    return Path(spec.origin or ".").resolve().parent


def _file_of(name: str, root: Path, top: str) -> Path | None:
    """Return the source file of *name* when it belongs to the project at *root*."""
    # In site-packages a project is one top-level package, not all of them.
    if root in installed_folders() and name.split(".", maxsplit=1)[0] != top:
        return None
    base = root.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _imports(module: str, path: Path, *, is_package: bool) -> list[str]:
    # The time of writing can be set back, that of the change to it cannot.
    status = path.stat()
    written = (status.st_mtime_ns, status.st_ctime_ns, status.st_size)
    return list(_parsed_imports(module, path, is_package, written))


@functools.lru_cache(maxsize=4096)
def _parsed_imports(
    module: str,
    path: Path,
    is_package: bool,  # noqa: FBT001
    _: tuple[int, int, int],
) -> tuple[str, ...]:
    try:
        tree = parsed(path.read_bytes())
    except SyntaxError:
        return ()
    names: list[str] = []
    package = module if is_package else module.rpartition(".")[0]
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - (node.level - 1)]
                base = ".".join([*above, base] if base else above)
            names.append(base)
            names.extend(f"{base}.{alias.name}" for alias in node.names)
    return tuple(names)


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below *tree*, but not what stands under ``if TYPE_CHECKING``."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo.extend(node.orelse)
        else:
            todo.extend(ast.iter_child_nodes(node))
