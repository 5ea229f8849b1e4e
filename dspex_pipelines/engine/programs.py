"""Programs by name: what they take, and whether that fits."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

from dspex_pipelines.engine.compiled import check_compiled
from dspex_pipelines.errors import InvalidValue, ProgramUnavailable
from dspex_pipelines.model.secrecy import refusal, saved_secret
from dspex_pipelines.model.trial import check_entry_point

SEED = "seed"
"""A program that has a parameter of this name gets the trial's seed."""
STATE = "state"
"""An init parameter of this name, where a DSPy module's constructor has none, is a file of saved state."""
_OF_OPTIMISERS = frozenset({"trace", "pred_name", "pred_trace"})


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
    """A `dspy.Module` (a class, a factory, or an instance): variables that nobody takes reach its parts by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramShape:
    """How a program is built and called."""

    kind: ProgramKind
    target: Any
    variables: frozenset[str]
    """Variables that go to the call or, where configured, to the constructor; others reach a module's parts."""
    takes_seed: bool
    is_async: bool
    state: str = ""
    """File of saved state that a DSPy module loads once it is built."""

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
    check_compiled(module_name.partition(".")[0])
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
    module = _module_class(target)
    if module is not None:
        return _inspect_module(entry_point, target, module, init, inputs=inputs, variables=names)
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
    in_constructor = names & _constructor(target).keys()
    if callable(getattr(target, "configure", None)) and names:
        kind, to_call = ProgramKind.CLASS_CONFIGURE, frozenset[str]()
        _check_constructor(entry_point, target, set(init))
    elif names and names <= in_constructor | frozenset(init):
        kind, to_call = ProgramKind.CLASS_CONFIGURED, frozenset[str]()
        _check_constructor(entry_point, target, set(init) | names)
    else:
        kind, to_call = ProgramKind.CLASS_SHARED, names
        _check_constructor(entry_point, target, set(init))
    takes_seed = _check_call(entry_point, call, inputs, to_call, skip_self=True)
    return ProgramShape(
        kind=kind,
        target=target,
        variables=names,
        takes_seed=takes_seed,
        is_async=_is_async(call),
    )


def _call_of(entry_point: str, target: type) -> Callable[..., Any]:
    call = getattr(target, "__call__", None)  # noqa: B004 - the method itself is wanted
    if call is type.__call__ or "__call__" not in {n for base in target.__mro__ for n in vars(base)}:
        call = None
    if call is None:
        raise ProgramUnavailable(
            entry_point=entry_point, reason="the class has no __call__; give it one that takes the inputs"
        )
    return cast("Callable[..., Any]", call)


# ---------------------------------------------------------------------------- DSPy modules


def is_dspy_module(target: type) -> bool:
    """Return whether the class is a `dspy.Module`, without importing dspy."""
    return any(base.__name__ == "Module" and base.__module__.split(".")[0] == "dspy" for base in target.__mro__)


def _module_class(target: Any) -> type | None:
    """Return the class of the DSPy module that *target* is or makes; None for a program of another kind.

    A factory says by its return annotation that it is one: it is not called to find out.
    """
    if inspect.isclass(target):
        made = target
    elif is_dspy_module(type(target)):
        made = type(target)
    else:
        made = _returned(target)
    return made if isinstance(made, type) and is_dspy_module(made) else None


def _returned(factory: Any) -> Any:
    function: Any = inspect.unwrap(factory)
    annotation = getattr(function, "__annotations__", {}).get("return")
    if not isinstance(annotation, str) or inspect.iscoroutinefunction(function):
        return annotation
    # Under `from __future__ import annotations` it is text; only a plain name can be that of a class.
    first, *names = annotation.strip("'\"").split(".")
    found = getattr(function, "__globals__", {}).get(first)
    for name in names:
        found = getattr(found, name, None)
    return found


def _inspect_module(
    entry_point: str,
    target: Any,
    module: type,
    init: Mapping[str, Any],
    *,
    inputs: Collection[str],
    variables: frozenset[str],
) -> ProgramShape:
    if inspect.isclass(target):
        where, parameters = f"{entry_point} (its constructor)", _constructor(target)
    elif isinstance(target, module):
        where, parameters = f"{entry_point} (an instance, which is copied)", dict[str, inspect.Parameter]()
    else:
        where, parameters = f"{entry_point} (a factory)", _parameters(target, skip_self=False)
    state = "" if STATE in parameters or STATE not in init else _checked_state(init[STATE])
    given = set(init) - ({STATE} if state else set())
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in sorted(given - parameters.keys()):
            takes = ", ".join(parameters) or "nothing"
            raise InvalidValue(field=f"init parameter {name!r}", value=init[name], fix=f"{where} takes {takes}")
    in_constructor = variables & parameters.keys()
    _check_supplied(where, parameters, given | in_constructor, "init parameters and variables")
    call = getattr(module, "aforward", None) or getattr(module, "forward", None)
    if call is None and inspect.isclass(target):
        reason = "the module has neither forward nor aforward; give it one that takes the inputs"
        raise ProgramUnavailable(entry_point=entry_point, reason=reason)
    # A factory that is annotated with `dspy.Module` itself does not say what the module takes.
    return ProgramShape(
        kind=ProgramKind.DSPY_MODULE,
        target=target,
        variables=in_constructor,
        takes_seed=call is not None and _check_call(entry_point, call, inputs, frozenset(), skip_self=True),
        is_async=call is not None and _is_async(call),
        state=state,
    )


def _checked_state(state: Any) -> str:
    field, fix = "init.state", "give the path of a .json file that module.save(path) has written"
    if not isinstance(state, str) or not state:
        raise InvalidValue(field=field, value=state, fix=fix)
    if state.endswith(".pkl"):
        why = "a .pkl runs whatever code is in it when it is loaded, and cannot be read or compared"
        raise InvalidValue(field=field, value=state, fix=f'{why}; save it again with module.save("….json")')
    if not state.endswith(".json"):
        raise InvalidValue(field=field, value=state, fix=fix)
    try:
        found = saved_secret(json.loads(Path(state).read_bytes()))
    except (OSError, ValueError, RecursionError):
        # Whoever loads it says so.
        return state
    if found:
        raise refusal(f"{state}: {found}", fix="take it out of the file: the model's key comes from the environment")
    return state


def takes_trace(metric: Callable[..., Any]) -> bool:
    """Return whether a metric has the third parameter that those for DSPy have."""
    return "trace" in _parameters(metric, skip_self=False)


def spare_parameters(metric: Callable[..., Any]) -> list[str]:
    """Return which of the parameters a metric needs beyond example and outputs are those that DSPy's optimisers give.

    They get None: nothing is being optimised when a trial is judged.
    """
    needed = [name for name, one in _parameters(metric, skip_self=False).items() if one.default is one.empty]
    return [name for name in needed[2:] if name in _OF_OPTIMISERS]


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
    # First what is given: the parameter that nobody supplies is often the same one, spelt otherwise.
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for what, names in (("input", inputs), ("variable", variables)) if not takes_any else ():
        for name in names:
            if name not in parameters:
                likely = difflib.get_close_matches(name, parameters.keys() - supplied, n=1)
                meant = f"; did you mean {likely[0]!r}?" if likely else ""
                raise InvalidValue(
                    field=f"{what} {name!r}",
                    value=name,
                    fix=f"{entry_point} has no parameter of this name; it takes {', '.join(parameters)}{meant}",
                )
    _check_supplied(entry_point, parameters, supplied, "inputs and variables")
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
