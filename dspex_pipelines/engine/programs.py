"""Programs by name: what they take, whether that fits, and which version of their source they are."""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

from dspex_pipelines.errors import InvalidValue, ProgramUnavailable
from dspex_pipelines.model.payload import digest_of
from dspex_pipelines.model.trial import ProgramSpec, check_entry_point

DECLARED = "declared-"
SEED = "seed"
"""A program that has a parameter of this name gets the trial's seed."""


class ProgramKind(Enum):
    """Where a program's variables go, and so what is shared between trials."""

    FUNCTION = "function"
    """Called with inputs and variables."""
    CLASS_SHARED = "class_shared"
    """Built once with its init parameters; variables are arguments of the call."""
    CLASS_CONFIGURED = "class_configured"
    """Variables are arguments of the constructor: an instance per configuration."""
    CLASS_CONFIGURE = "class_configure"
    """Variables go to its `configure(variables)`: an instance per configuration."""
    DSPY_MODULE = "dspy_module"
    """A `dspy.Module` without `configure`: variables its constructor does not take reach its language model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramShape:
    """How a program is built and called."""

    kind: ProgramKind
    target: Any
    variables: frozenset[str]
    """Variables that go to the call (or, where configured, to the constructor); not a DSPy model's settings."""
    takes_seed: bool
    is_async: bool

    @property
    def configured(self) -> bool:
        """Whether an instance belongs to one configuration."""
        return self.kind not in (ProgramKind.FUNCTION, ProgramKind.CLASS_SHARED)


def resolve(entry_point: str) -> Any:
    """Return the callable that ``module:attribute`` names; raises `ProgramUnavailable`."""
    target = resolve_value(entry_point)
    if not callable(target):
        raise ProgramUnavailable(
            entry_point=entry_point, reason=f"it is a {type(target).__name__}, which cannot be called"
        )
    return target


def resolve_value(entry_point: str) -> Any:
    """Return what ``module:attribute`` names; raises `ProgramUnavailable` with the reason and the fix."""
    try:
        check_entry_point("entry point", entry_point)
    except InvalidValue as error:
        raise ProgramUnavailable(entry_point=entry_point, reason=error.fix) from error
    module_name, _, attribute = entry_point.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ProgramUnavailable(
            entry_point=entry_point,
            reason=(
                f"there is no module {error.name!r}; it was looked for in {Path.cwd()} and the installed "
                "packages, so run from your project's folder or install the package"
            ),
        ) from error
    except Exception as error:
        raise ProgramUnavailable(
            entry_point=entry_point, reason=f"importing it raised {type(error).__name__}: {error}"
        ) from error
    for name in attribute.split("."):
        if not hasattr(target, name):
            near = difflib.get_close_matches(name, dir(target), n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ProgramUnavailable(entry_point=entry_point, reason=f"{module_name} has no attribute {name!r}{hint}")
        target = getattr(target, name)
    return target


def inspect_program(
    entry_point: str,
    init: Mapping[str, Any],
    *,
    inputs: Collection[str],
    variables: Collection[str],
) -> ProgramShape:
    """Return how the program is built and called with these inputs and variables.

    Raises `ProgramUnavailable` when it cannot be imported, and `InvalidValue` naming the parameter that
    nobody supplies, or the input or variable that the program takes nowhere.
    """
    target = resolve(entry_point)
    names = frozenset(variables)
    if not inspect.isclass(target):
        if init:
            raise InvalidValue(
                field="init", value=dict(init), fix=f"{entry_point} is a function; only a class is built"
            )
        takes_seed = _check_call(entry_point, target, inputs, names, skip_self=False)
        return ProgramShape(
            kind=ProgramKind.FUNCTION,
            target=target,
            variables=names,
            takes_seed=takes_seed,
            is_async=_is_async(target),
        )
    call = _call_of(entry_point, target)
    is_dspy = is_dspy_module(target)
    in_constructor = names & _constructor(target).keys()
    if callable(getattr(target, "configure", None)) and names:
        kind, to_call = ProgramKind.CLASS_CONFIGURE, frozenset[str]()
        _check_constructor(entry_point, target, set(init))
    elif names and names <= in_constructor | frozenset(init):
        kind, to_call = ProgramKind.CLASS_CONFIGURED, frozenset[str]()
        _check_constructor(entry_point, target, set(init) | names)
    elif is_dspy:
        kind, to_call = ProgramKind.DSPY_MODULE, frozenset[str]()
        _check_constructor(entry_point, target, set(init) | in_constructor)
    else:
        kind, to_call = ProgramKind.CLASS_SHARED, names
        _check_constructor(entry_point, target, set(init))
    takes_seed = _check_call(entry_point, call, inputs, to_call, skip_self=True)
    return ProgramShape(
        kind=kind,
        target=target,
        variables=in_constructor if kind is ProgramKind.DSPY_MODULE else names,
        takes_seed=takes_seed,
        is_async=_is_async(call),
    )


def _call_of(entry_point: str, target: type) -> Callable[..., Any]:
    if is_dspy_module(target):
        call = getattr(target, "aforward", None) or getattr(target, "forward", None)
    else:
        call = getattr(target, "__call__", None)  # noqa: B004 - the method itself is wanted
        if call is type.__call__ or "__call__" not in {n for base in target.__mro__ for n in vars(base)}:
            call = None
    if call is None:
        raise ProgramUnavailable(
            entry_point=entry_point, reason="the class has no __call__; give it one that takes the inputs"
        )
    return cast("Callable[..., Any]", call)


def is_dspy_module(target: type) -> bool:
    """Return whether the class is a `dspy.Module`, without importing dspy."""
    return any(base.__name__ == "Module" and base.__module__.split(".")[0] == "dspy" for base in target.__mro__)


def _is_async(call: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(call))


def _parameters(call: Callable[..., Any], *, skip_self: bool) -> dict[str, inspect.Parameter]:
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature
        return {}
    return {parameter.name: parameter for parameter in parameters[1 if skip_self else 0 :]}


def _constructor(target: type) -> dict[str, inspect.Parameter]:
    if type(target).__call__ is not type.__call__:
        # A metaclass that builds the instances, as DSPy's, takes anything and hands it on.
        return _parameters(target.__init__, skip_self=True)
    return _parameters(target, skip_self=False)


def _check_constructor(entry_point: str, target: type, given: set[str]) -> None:
    parameters = _constructor(target)
    _check_supplied(f"{entry_point} (its constructor)", parameters, given, "init parameters and variables")


def _check_call(
    entry_point: str,
    call: Callable[..., Any],
    inputs: Collection[str],
    variables: Collection[str],
    *,
    skip_self: bool,
) -> bool:
    parameters = _parameters(call, skip_self=skip_self)
    if twice := sorted(set(inputs) & set(variables)):
        raise InvalidValue(field="variable", value=twice[0], fix="an input has this name too; rename one of them")
    given = {*inputs, *variables}
    takes_seed = SEED in parameters and SEED not in given
    supplied = given | ({SEED} if takes_seed else set())
    _check_supplied(entry_point, parameters, supplied, "inputs and variables")
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return takes_seed
    for what, names in (("input", inputs), ("variable", variables)):
        for name in names:
            if name not in parameters:
                raise InvalidValue(
                    field=f"{what} {name!r}",
                    value=name,
                    fix=f"{entry_point} has no parameter of this name; it takes {', '.join(parameters)}",
                )
    return takes_seed


def _check_supplied(where: str, parameters: Mapping[str, inspect.Parameter], given: set[str], of: str) -> None:
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise InvalidValue(
                field=f"parameter {parameter.name!r} of {where}",
                value=parameter.name,
                fix="arguments are given by name; make it an ordinary parameter",
            )
        if parameter.default is parameter.empty and parameter.name not in given:
            raise InvalidValue(
                field=f"parameter {parameter.name!r} of {where}",
                value=parameter.name,
                fix=f"nobody supplies it: the {of} are {', '.join(sorted(given)) or 'none'}",
            )


# ---------------------------------------------------------------------------- versions


def program_version(
    entry_point: str, init: Mapping[str, Any], *, files: Iterable[Path] = (), declared: str = ""
) -> str:
    """Return a hex digest of what decides how the program behaves.

    That is its parameters, the source it reaches by import inside its own project, the versions of the
    distributions that source imports, and *files*; or *declared* in place of source and distributions.
    Raises `ProgramUnavailable` when it cannot be found.
    """
    parameters = [entry_point, dict(init)]
    if declared:
        return f"{DECLARED}{digest_of([parameters, declared]).hex()}"
    version = digest_of([parameters, _source(entry_point)]).hex()
    contents: list[list[Any]] = []
    for file in files:
        try:
            contents.append([str(file), file.read_bytes()])
        except OSError as error:
            raise ProgramUnavailable(entry_point=entry_point, reason=f"declared file: {error}") from error
    return f"{version}.{digest_of(contents).hex()}" if contents else version


def is_version_here(spec: ProgramSpec) -> bool:
    """Return whether the source this process would import is the version that *spec* names.

    A declared version is the user's word. Files that join a version are not read again here.
    """
    if spec.version.startswith(DECLARED):
        return True
    return program_version(spec.entry_point, spec.init) == spec.version.partition(".")[0]


def metric_version(entry_point: str) -> str:
    """Return a hex digest of a metric's source; raises `ProgramUnavailable` when it cannot be imported, or called."""
    target = resolve(entry_point)
    with contextlib.suppress(ValueError):  # some builtins have no signature
        try:
            inspect.signature(target).bind(None, None)
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
    imported = {
        name.split(".")[0]
        for module, path in modules.items()
        for name in _imports(module, path, is_package=path.name == "__init__.py")
    }
    own = {name.split(".")[0] for name in modules}
    packages = _distributions()
    distributions = sorted(
        f"{distribution}=={importlib.metadata.version(distribution)}"
        for name in imported - own
        for distribution in packages.get(name, ())
    )
    sources = sorted((name, path.read_bytes()) for name, path in modules.items())
    return [sources, distributions, list(sys.version_info[:2])]


def know_distributions() -> None:
    """Find out now what is installed; otherwise the first version that is asked for has to, in a fifth of a second."""
    _distributions()


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


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


@functools.cache
def _installed() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple(Path(path).resolve() for path in map(sysconfig.get_path, names) if path)


def _file_of(name: str, root: Path, top: str) -> Path | None:
    """Return the source file of *name* when it belongs to the project at *root*."""
    # In site-packages a project is one top-level package, not all of them.
    if root in _installed() and name.split(".", maxsplit=1)[0] != top:
        return None
    base = root.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _imports(module: str, path: Path, *, is_package: bool) -> list[str]:
    return list(_parsed_imports(module, path, is_package, path.stat().st_mtime_ns))


@functools.lru_cache(maxsize=4096)
def _parsed_imports(module: str, path: Path, is_package: bool, _: int) -> tuple[str, ...]:  # noqa: FBT001
    try:
        tree = ast.parse(path.read_bytes())
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
