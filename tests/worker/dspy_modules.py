"""DSPy programs of every shape."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import dspy

from dspex_pipelines.engine.calls.trial_calls import running_trial
from tests.worker.dspy_echo import OlderModel, OldModel, echo


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
