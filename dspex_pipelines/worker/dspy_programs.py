"""DSPy modules as programs: how one is built, and which of its parts a variable reaches by its name.

Variables go, each to the first that takes it:

1. to the constructor's (or factory's) parameter of that name;
2. to the module's own `configure(variables)`, which gets all the others;
3. to a part: ``retrieve.k`` is attribute `k` of sub-module `retrieve`; ``answer.temperature``, ``answer.model``,
   ``answer.max_demos`` and ``answer.instructions`` are about the predictors under `answer`; ``answer`` with a value
   such as ``dspy:ChainOfThought`` replaces that sub-module;
4. undotted, to all predictors: `max_demos`, `instructions`, and what else there is as settings of the language model.

This imports dspy, so it is itself imported only once a program needs it.
"""

from __future__ import annotations

import difflib
import inspect
import weakref
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import dspy

from dspex_pipelines.engine.programs import ProgramShape, resolve_value
from dspex_pipelines.errors import InvalidValue, ProgramUnavailable
from dspex_pipelines.model.trial import reads_as_entry_point
from dspex_pipelines.model.variables import Value

MAX_DEMOS = "max_demos"
INSTRUCTIONS = "instructions"
MODEL = "model"
DEMO_POOL = "demo_pool"
"""Attribute of a module that has the demonstrations which `max_demos` chooses from."""
_MAX_TOKENS = "max_tokens"
_MAX_TOKENS_OF_REASONING = "max_completion_tokens"
LM_PARAMETERS = frozenset(
    (
        *(MODEL, "temperature", _MAX_TOKENS, _MAX_TOKENS_OF_REASONING, "top_p", "top_k", "n", "stop", "seed"),
        *("logprobs", "frequency_penalty", "presence_penalty", "reasoning_effort", "cache", "num_retries", "timeout"),
        "rollout_id",
    )
)
"""Names that are a language model's before they are anything else's; it may take others too."""
_ALIKE = 0.8
_REASONING = "reasoning"
"""What `dspy.ChainOfThought` adds to the task's own fields."""


class ByIdentity:
    """A value for each of some objects while they live, whether or not they can be compared or hashed."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[weakref.ref[Any], Any]] = {}

    def __setitem__(self, key: Any, value: Any) -> None:
        number = id(key)
        self._of[number] = (weakref.ref(key, lambda _: self._of.pop(number, None)), value)

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of *key*; *default* where it has none."""
        return self._of.get(id(key), (None, default))[1]


_names = ByIdentity()
_models = ByIdentity()


def build_module(shape: ProgramShape, init: Mapping[str, Any], values: Mapping[str, Value], *, entry_point: str) -> Any:
    """Return the module, built, with its saved state and with every variable where it belongs.

    Raises `InvalidValue` for a variable that reaches nothing, `ProgramUnavailable` for state that cannot be loaded, and
    whatever its constructor raises.
    """
    taken = {name: _argument(shape.target, name, values[name]) for name in shape.variables}
    arguments = {name: value for name, value in init.items() if not (shape.state and name == "state")}
    if isinstance(shape.target, dspy.Module):
        module: Any = shape.target.deepcopy()
    else:
        module = shape.target(**{**arguments, **taken})
    if not isinstance(module, dspy.Module):
        reason = f"it returned a {type(module).__name__}, where its annotation says a dspy.Module"
        raise ProgramUnavailable(entry_point=entry_point, reason=reason)
    if shape.state:
        _load(module, shape.state, entry_point)
    others = {name: value for name, value in values.items() if name not in taken}
    if others and callable(getattr(module, "configure", None)):
        module.configure(others)
    elif others:
        _Parts(module, dspy.settings.lm).set(others)
    for name, predictor in module.named_predictors():
        _names[predictor] = name
    return module


def predictor_name(predictor: Any) -> str:
    """Return the name of a predictor in its module, or its signature where it belongs to none that was built here."""
    name = _names.get(predictor, "self")
    return str(predictor.signature.signature) if name == "self" else name


def configured_model(module: Any) -> Any | None:
    """Return the default language model with the settings that variables gave it; None where they gave it none."""
    return _models.get(module)


def _load(module: Any, path: str, entry_point: str) -> None:
    try:
        module.load(path)
    except FileNotFoundError as error:
        reason = f"its saved state is not there: {error}; declare it with files=({path!r},)"
        raise ProgramUnavailable(entry_point=entry_point, reason=reason) from error
    except Exception as error:
        reason = f"its saved state {path} cannot be loaded: {type(error).__name__}: {error}"
        raise ProgramUnavailable(entry_point=entry_point, reason=reason) from error


def _argument(target: Any, name: str, value: Value) -> Any:
    """Return what a constructor gets for a variable: the object itself where its value names one to import."""
    function = target.__init__ if inspect.isclass(target) else target
    parameter = inspect.signature(function).parameters.get(name)
    if parameter is not None and parameter.annotation in (str, "str"):
        return value
    return resolve_value(str(value)) if _names_an_object(value) else value


def _names_an_object(value: object) -> bool:
    """Return whether it is written as `Module` variables are, and its package is there; other text may have a colon."""
    if not reads_as_entry_point(value):
        return False
    try:
        return find_spec(value.partition(":")[0].partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


class _Parts:
    """A module's sub-modules, predictors and language models, and how variables get there."""

    def __init__(self, module: Any, default_model: Any) -> None:
        self._module = module
        self._default = default_model

    def set(self, values: Mapping[str, Value]) -> None:
        """Set what each variable reaches: sub-modules first, and what holds for all before what holds for one."""
        todo = dict(values)
        for name in sorted(todo, key=lambda name: name.count(".")):
            if self._replaces(name, todo[name]):
                self._replace(name, str(todo.pop(name)))
        settings = {name: todo.pop(name) for name in list(todo) if "." not in name and self._is_setting(name)}
        if settings:
            self._set_models(settings)
        for name in sorted(todo, key=lambda name: (name.count("."), name.endswith(f".{MODEL}"))):
            self._set_one(name, todo[name])

    def _is_setting(self, name: str) -> bool:
        """Return whether an undotted variable is about the language model: no attribute has its name."""
        if name in (MAX_DEMOS, INSTRUCTIONS):
            return False
        return name in LM_PARAMETERS or name not in vars(self._module)

    def _set_one(self, name: str, value: Value) -> None:
        owner, last = self._owner(name)
        match last:
            case _ if not isinstance(owner, dspy.Module):
                if not hasattr(owner, last):
                    raise self._nowhere(name, value, f"a {type(owner).__name__} has no attribute {last!r}")
                setattr(owner, last, value)
            case "max_demos":
                self._set_demos(name, value, owner)
            case "instructions":
                self._set_instructions(name, value, owner)
            case _ if last not in LM_PARAMETERS and last in vars(owner) and not isinstance(owner, dspy.Predict):
                setattr(owner, last, self._in_place_of(getattr(owner, last), name, value))
            case "model":
                for predictor in self._predictors(name, value, owner):
                    predictor.lm = _with_settings(self._model_of(name, value, predictor), {MODEL: value})
            case _:
                _check_spelling(name, value, last)
                for predictor in self._predictors(name, value, owner):
                    predictor.config = {**predictor.config, self._spelt(last, predictor): value}

    def _in_place_of(self, there: Any, name: str, value: Value) -> Any:
        """Return what an attribute is set to: a value in place of a value, what can be called in place of the like."""
        if there is None or isinstance(there, str | int | float):
            return value
        if callable(there) and not isinstance(there, dspy.Module) and _names_an_object(value):
            return resolve_value(str(value))
        raise self._nowhere(name, value, f"the attribute is a {type(there).__name__}, which this cannot stand for")

    def _owner(self, name: str) -> tuple[Any, str]:
        """Return what has the last part of a dotted name, and that part."""
        *path, last = name.split(".")
        owner = self._module
        for step in path:
            if not hasattr(owner, step):
                raise self._nowhere(name, name, f"there is no {step!r}")
            owner = getattr(owner, step)
        return owner, last

    # Sub-modules

    def _replaces(self, name: str, value: Value) -> bool:
        if not _names_an_object(value):
            return False
        try:
            owner, last = self._owner(name)
        except InvalidValue:
            return False  # told when it is its turn
        return isinstance(getattr(owner, last, None), dspy.Module) and last not in LM_PARAMETERS

    def _replace(self, name: str, value: str) -> None:
        owner, last = self._owner(name)
        old, wanted = getattr(owner, last), resolve_value(value)
        if type(old) is wanted:
            return
        predictor = self._only_predictor(name, value, old)
        signature = predictor.signature
        if isinstance(old, dspy.ChainOfThought):
            # Its reasoning is its own, not the task's.
            signature = signature.delete(_REASONING)
        new = wanted(signature)
        if not isinstance(new, dspy.Module):
            fix = f"give one that makes a dspy.Module of a signature; it made a {type(new).__name__}"
            raise InvalidValue(field=f"variable {name!r}", value=value, fix=fix)
        for one in new.predictors():
            one.lm, one.config = predictor.lm, {**one.config, **predictor.config}
            one.demos = [demo for demo in predictor.demos if _fits(demo, one)]
        setattr(owner, last, new)

    # Demonstrations and instructions

    def _set_demos(self, name: str, value: Value, owner: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            fix = "give a number of demonstrations, 0 or more"
            raise InvalidValue(field=f"variable {name!r}", value=value, fix=fix)
        found: Any = getattr(owner, DEMO_POOL, None) or getattr(self._module, DEMO_POOL, None) or []
        pool = [dspy.Example(demo) if isinstance(demo, Mapping) else demo for demo in found]
        reached = False
        for predictor in self._predictors(name, value, owner):
            demos = predictor.demos or [demo for demo in pool if _fits(demo, predictor)]
            reached = reached or bool(demos)
            predictor.demos = demos[:value]
        if value and not reached:
            why = f"no predictor has demonstrations, and {DEMO_POOL} has none with a predictor's output fields"
            raise self._nowhere(name, value, why)

    def _set_instructions(self, name: str, value: Value, owner: Any) -> None:
        predictor = self._only_predictor(name, value, owner)
        predictor.signature = predictor.signature.with_instructions(str(value))

    # Language models

    def _set_models(self, settings: Mapping[str, Value]) -> None:
        """Give every predictor's model, and the default one, these settings: each a copy of its own."""
        for name, value in settings.items():
            _check_spelling(name, value, name)
        predictors = self._module.predictors()
        models = {id(one.lm): one.lm for one in predictors if one.lm is not None}
        if self._default is None and not models:
            names = ", ".join(settings)
            raise ValueError(
                f"the variables {names} set up a language model, but the module has none: set one with "
                "dspy.configure(lm=…) at the top of its file or in its constructor with set_lm, or give the module a "
                f"configure(variables) method. {self._what_there_is()}"
            )
        mine = {number: _with_settings(model, settings) for number, model in models.items()}
        for predictor in predictors:
            if predictor.lm is not None:
                predictor.lm = mine[id(predictor.lm)]
        if self._default is not None:
            self._default = _with_settings(self._default, settings)
            _models[self._module] = self._default

    def _model_of(self, name: str, value: Value, predictor: Any) -> Any:
        model = predictor.lm or self._default
        if model is None:
            raise self._nowhere(name, value, "there is no language model whose settings it could change")
        return model

    def _spelt(self, parameter: str, predictor: Any) -> str:
        return _spelt(parameter, predictor.lm or self._default)

    # Finding

    def _predictors(self, name: str, value: object, owner: Any) -> list[Any]:
        predictors: list[Any] = owner.predictors()
        if not predictors:
            raise self._nowhere(name, value, f"there is no predictor under {name.rpartition('.')[0] or 'the module'}")
        return predictors

    def _only_predictor(self, name: str, value: object, owner: Any) -> Any:
        predictors = self._predictors(name, value, owner)
        if len(predictors) > 1:
            raise self._nowhere(name, value, f"it is about one predictor, and there are {len(predictors)}")
        return predictors[0]

    def _nowhere(self, name: str, value: object, why: str) -> InvalidValue:
        return InvalidValue(field=f"variable {name!r}", value=value, fix=f"{why}. {self._what_there_is()}")

    def _what_there_is(self) -> str:
        def listed(what: str, names: Iterable[str]) -> str:
            return f"{what}: {', '.join(names) or 'none'}"

        own = vars(self._module).items()
        modules = [name for name, one in own if isinstance(one, dspy.Module)]
        values = [name for name, one in own if isinstance(one, str | int | float) and not name.startswith("_")]
        predictors = [name for name, _ in self._module.named_predictors()]
        return "; ".join(map(listed, ("Sub-modules", "predictors", "attributes"), (modules, predictors, values)))


def _fits(demo: Any, predictor: Any) -> bool:
    """Return whether it shows what the predictor is to answer; DSPy says itself where the reasoning is not given."""
    wanted = [name for name in predictor.signature.output_fields if name != _REASONING]
    return bool(wanted) and all(name in demo for name in wanted)


def _check_spelling(name: str, value: object, parameter: str) -> None:
    """Raise for what is nearly a parameter of a language model: the provider would refuse, or ignore it."""
    near = [] if parameter in LM_PARAMETERS else difflib.get_close_matches(parameter, LM_PARAMETERS, 1, _ALIKE)
    if near:
        raise InvalidValue(field=f"variable {name!r}", value=value, fix=f"did you mean {near[0]}?")


def _spelt(parameter: str, model: Any) -> str:
    """Return how the model calls a parameter: OpenAI's reasoning models have another name for `max_tokens`."""
    reasons = parameter == _MAX_TOKENS and _MAX_TOKENS_OF_REASONING in getattr(model, "kwargs", {})
    return _MAX_TOKENS_OF_REASONING if reasons else parameter


def _with_settings(model: Any, settings: Mapping[str, Value]) -> Any:
    """Return a copy of the language model with these settings."""
    mine = model.copy(**{name: value for name, value in settings.items() if name == MODEL})
    if MODEL in settings and isinstance(model, dspy.LM):
        # The two families name the limit differently; a new one asks the library which it is.
        limits = [mine.kwargs.pop(name, None) for name in (_MAX_TOKENS, _MAX_TOKENS_OF_REASONING)]
        like: Any = dspy.LM(str(settings[MODEL]))
        mine.kwargs[_MAX_TOKENS_OF_REASONING if _MAX_TOKENS_OF_REASONING in like.kwargs else _MAX_TOKENS] = next(
            (limit for limit in limits if limit is not None), None
        )
        mine.provider = like.provider
    return mine.copy(**{_spelt(name, mine): value for name, value in settings.items() if name != MODEL})
