"""DSPy programs of every shape, whose models answer here and say what they were asked with."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import dspy
from dspy.lm15 import Message, RateLimitError, Response, TextPart, Usage

from dspex_pipelines.engine.calls import running_trial


def answered(**fields: object) -> str:
    """What a model says in the form of DSPy's chat adapter."""
    return "".join(f"[[ ## {name} ## ]]\n{value}\n\n" for name, value in fields.items()) + "[[ ## completed ## ]]\n"


class Echo:
    """Answers with the settings that it was asked with, as JSON."""

    asked = 0
    refusals = 0

    def complete(self, request):
        Echo.asked += 1
        if Echo.refusals > 0:
            Echo.refusals -= 1
            raise RateLimitError("slow down", status=429)
        config = request.config
        said = {"model": request.model, "temperature": config.temperature, "max_tokens": config.max_tokens}
        said["shots"] = sum(message.role == "assistant" for message in request.messages)
        system = request.system if isinstance(request.system, str) else ""
        said["system"] = system.rpartition("your objective is:")[2].strip()
        text = answered(reasoning="so", answer=json.dumps(said))
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant([TextPart(text)]),
            finish_reason="stop",
            usage=Usage(input_tokens=10, output_tokens=5, total_tokens=15),
        )


class EchoLater:
    async def complete(self, request):
        await asyncio.sleep(0)
        return Echo().complete(request)


def echo(model: str = "local/echo", **settings: object) -> dspy.LM:
    return dspy.LM(model, engine=Echo(), async_engine=EchoLater(), **{"cache": False, **settings})


class Retriever:
    """No module, but with a number of its own."""

    def __init__(self) -> None:
        self.k = 3


class QA(dspy.Module):
    """A retriever with a number, two predictors, and a pool of demonstrations."""

    def __init__(self, style: str = "plain", rank=None) -> None:
        super().__init__()
        self.retrieve = Retriever()
        self.answer = dspy.Predict("question -> answer")
        self.style, self.rank = style, rank
        self.depth = 1
        self.demo_pool = [
            {"question": "1+1?", "answer": "2"},
            dspy.Example(question="2+2?", answer="4"),
            {"question": "no answer"},
            {"question": "3+3?", "answer": "6"},
        ]
        self.set_lm(echo())

    def forward(self, question: str) -> dspy.Prediction:
        said = self.answer(question=question)
        rank = getattr(self.rank, "__name__", self.rank)
        told = {"k": self.retrieve.k, "depth": self.depth, "rank": rank, "style": self.style}
        kind = type(self.answer).__name__
        return dspy.Prediction(said=said.answer, kind=kind, demos=len(self.answer.predictors()[0].demos), **told)


class TwoStep(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.Predict("question -> answer")
        self.answer = dspy.ChainOfThought("question -> answer")
        self.set_lm(echo())

    def forward(self, question: str) -> dspy.Prediction:
        first = self.think(question=question)
        second = self.answer(question=question)
        return dspy.Prediction(first=first.answer, second=second.answer)


class TwoStepLater(TwoStep):
    async def aforward(self, question: str) -> dspy.Prediction:
        first = await self.think.acall(question=question)
        second = await self.answer.acall(question=question)
        return dspy.Prediction(first=first.answer, second=second.answer)


def rank_backwards(items):
    return list(reversed(items))


def make_qa(style: str = "made") -> QA:
    """A factory: its annotation says so."""
    return QA(style=style)


def make_something(style: str = "made") -> dspy.Module:
    return QA(style=style)


def make_nothing() -> QA:
    return "no module"


def makes_unsaid(question: str):
    return dspy.Prediction(answer=question)


ready_made = QA(style="ready")
chain = dspy.ChainOfThought("question -> answer")
chain.set_lm(echo())


class Stateful(dspy.Module):
    """Its constructor has a `state` of its own."""

    def __init__(self, state: str) -> None:
        super().__init__()
        self.state = state

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(state=self.state)


class UnderSettings(dspy.Module):
    """Has no model of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(said=self.answer(question=question).answer, history=len(dspy.settings.lm.history))


class Unhashable(QA):
    __hash__ = None

    def __eq__(self, other: object) -> bool:
        raise AssertionError("not to be compared")


class Garbled(dspy.Module):
    """Its model says what cannot be read, the first time that a trial is run."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> number: int")
        self.set_lm(echo())

    def forward(self, question: str) -> dspy.Prediction:
        return self.answer(question=question)


class AsksWhenBuilt(dspy.Module):
    """Calls a model in its constructor, as those that prepare something do."""

    def __init__(self) -> None:
        super().__init__()
        echo()("Prepare.")
        self.trial = running_trial() is not None

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(trial=self.trial)


class UsesState(QA):
    """Has the model of its settings."""

    def __init__(self) -> None:
        super().__init__()
        dspy.configure(lm=echo())


class ConfiguresItself(UnderSettings):
    """Configures DSPy in its constructor, as scripts do."""

    def __init__(self, warmth: float = 0.0) -> None:
        super().__init__()
        dspy.configure(lm=echo(temperature=warmth))
        self.seen = dspy.settings.lm.kwargs["temperature"]


class ConfiguresInTrial(UnderSettings):
    def forward(self, question: str) -> dspy.Prediction:
        dspy.configure(lm=echo("local/other"))
        return super().forward(question=question)


class Writes(dspy.Module):
    """Writes to its model, and says what it found there."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        dspy.configure(lm=echo())

    def forward(self, question: str) -> dspy.Prediction:
        model = dspy.settings.lm
        found = {"stop": model.kwargs.get("stop"), "history": len(model.history)}
        said = self.answer(question=question).answer
        model.kwargs["stop"] = [question]
        return dspy.Prediction(said=said, **found)


class WritesLater(Writes):
    async def aforward(self, question: str) -> dspy.Prediction:
        model = dspy.settings.lm
        found = {"stop": model.kwargs.get("stop"), "history": len(model.history)}
        await asyncio.sleep(0)
        said = (await self.answer.acall(question=question)).answer
        model.kwargs["stop"] = [question]
        return dspy.Prediction(said=said, **found)


class WithConfigure(QA):
    def configure(self, variables: Mapping[str, object]) -> None:
        self.given = dict(variables)

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(given=self.given, style=self.style)


class Parallel(dspy.Module):
    """Calls its predictor in threads: DSPy's, which know the trial."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        self.set_lm(echo())

    def forward(self, question: str) -> dspy.Prediction:
        examples = [dspy.Example(question=f"{question} {number}").with_inputs("question") for number in range(4)]
        said = dspy.Parallel(num_threads=2, disable_progress_bar=True)([(self.answer, one) for one in examples])
        return dspy.Prediction(count=len(said))


class OldModel(dspy.BaseLM):
    """As custom models were written: `forward` alone."""

    def forward(self, prompt=None, messages=None, **kwargs):
        said = json.dumps({"model": self.model, "temperature": {**self.kwargs, **kwargs}.get("temperature")})
        return _completion(self.model, answered(answer=said))

    async def aforward(self, prompt=None, messages=None, **kwargs):
        return self.forward(prompt=prompt, messages=messages, **kwargs)


class OlderModel(dspy.BaseLM):
    """As they were written before: `__call__` alone."""

    def __call__(self, prompt=None, messages=None, **kwargs):
        return [answered(answer="older")]


class Record(dict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _completion(model, text):
    message = Record(content=text, tool_calls=None, reasoning_content=None, provider_specific_fields=None)
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    return Record(choices=[Record(message=message, finish_reason="stop", logprobs=None)], usage=usage, model=model)


class OfModel(dspy.Module):
    """Calls whatever model its init names, and one of its own by itself."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        self.model = {
            "old": lambda: OldModel("local/old", temperature=0.5),
            "older": lambda: OlderModel("local/older"),
            "managed": echo,
        }[kind]()

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(said=self.answer(question=question, lm=self.model).answer)


class CallsItself(dspy.Module):
    """Calls a model without a predictor."""

    def __init__(self) -> None:
        super().__init__()
        self.model = echo()

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(said=self.model(question)[0])


class Cached(dspy.Module):
    def __init__(self, temperature: float = 0.0) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        self.set_lm(echo(cache=True, temperature=temperature))

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(said=self.answer(question=question).answer)


class InOwnThreads(UnderSettings):
    def forward(self, question: str) -> dspy.Prediction:
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(super().forward, question=question).result()


class Tracking(TwoStep):
    """Wants DSPy's own account of what it used."""

    def forward(self, question: str) -> dspy.Prediction:
        with dspy.context(track_usage=True):
            said = self.think(question=question)
        return dspy.Prediction(used=said.get_lm_usage())


def function_program(question: str) -> str:
    """No module, but it calls DSPy's."""
    return ready_made.answer(question=question).answer


# ---------------------------------------------------------------------------- metrics


def as_dspy_has_it(example, prediction, trace=None) -> bool:
    assert trace is None
    return example.label == prediction.label and example.inputs().question == example.question


def as_dspy_requires_it(example, prediction, trace) -> float:
    return 1.0 if trace is None else 0.0


def as_optimisers_have_it(gold, prediction, trace, pred_name, pred_trace) -> dspy.Prediction:
    return dspy.Prediction(score=0.25, feedback="more")


async def as_dspy_has_it_later(example, prediction, trace=None) -> float:
    await asyncio.sleep(0)
    return 0.75 if isinstance(prediction, dspy.Prediction) and isinstance(example, dspy.Example) else 0.0


def as_we_have_it(example, outputs) -> dict[str, float]:
    return {
        "input": example.inputs["question"] == "Which?",
        "label": example.labels["label"] == outputs["label"],
        "id": example.example_id == "one",
        "group": example.group == "",
        "metadata": dict(example.metadata) == {},
    }


class Judge(dspy.Module):
    """A metric that is a module, as DSPy's own are."""

    threads: ClassVar[set[int]] = set()

    def __init__(self) -> None:
        super().__init__()
        self.judge = dspy.Predict("question -> answer")
        self.set_lm(echo("local/judge"))

    def forward(self, example, pred, trace=None):
        Judge.threads.add(threading.get_ident())
        self.judge(question=example.question)
        return dspy.Prediction(score=0.5 if trace is None else 1.0)


judge = Judge()
predicts = dspy.Predict("question -> answer")
predicts.set_lm(echo("local/judge"))


def judged_by_predictor(example, prediction) -> bool:
    return bool(predicts(question=example.question).answer)


class Labels(dspy.Module):
    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(label="yes", answer="The  Paris!")


class LabelsLater(dspy.Module):
    async def aforward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(label="yes", answer="Paris")


def labels(question: str) -> dict[str, str]:
    """No module, but judged as one."""
    return {"label": "yes", "answer": "paris"}


# ---------------------------------------------------------------------------- for comparison with dspy.Evaluate


class Counting:
    """Answers by what it is asked, right in some cases."""

    def complete(self, request):
        asked = request.messages[-1].text or ""
        number = int(asked.partition("What is ")[2].split(" ", maxsplit=1)[0])
        text = answered(answer=f"number {number % 7 if number % 3 else number % 5}")
        usage = Usage(input_tokens=1, output_tokens=1, total_tokens=2)
        message = Message.assistant([TextPart(text)])
        return Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)


class Counts(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        self.set_lm(dspy.LM("local/counting", engine=Counting(), cache=False))

    def forward(self, question: str) -> dspy.Prediction:
        return self.answer(question=question)


class CountsOrFails(Counts):
    def forward(self, question: str) -> dspy.Prediction:
        prediction = super().forward(question=question)
        if question.split()[2].endswith("4"):
            raise ZeroDivisionError(question)
        return prediction


def is_right(example, prediction, trace=None) -> bool:
    return example.answer.split()[-1].strip("!") == prediction.answer.split()[-1]


def how_right(example, prediction, trace=None) -> float:
    return 1 / (1 + abs(int(example.answer.split()[-1].strip("!")) - int(prediction.answer.split()[-1])))
