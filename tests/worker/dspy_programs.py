"""DSPy modules that answer out of a dummy model, and say under which settings."""

from __future__ import annotations

from collections.abc import Mapping

import dspy
from dspy.utils import DummyLM


class Answers(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        self.set_lm(DummyLM([{"answer": "fine"}] * 10))

    def forward(self, question: str) -> dspy.Prediction:
        return self.told(self.answer(question=question))

    def told(self, prediction: dspy.Prediction) -> dspy.Prediction:
        model = self.answer.lm
        if model.kwargs.get("temperature"):
            prediction.temperature = model.kwargs["temperature"]
            prediction.module, prediction.model = id(self), id(model)
        return prediction


class AnswersLater(dspy.Module):
    """Has `aforward` alone."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = Answers()

    async def aforward(self, question: str) -> dspy.Prediction:
        return self.answers.told(await self.answers.answer.acall(question=question))


class Both(AnswersLater):
    """Is asynchronous where that is possible."""

    def forward(self, question: str) -> dspy.Prediction:
        raise AssertionError("aforward is there")


class Configured(Answers):
    def configure(self, variables: Mapping[str, float]) -> None:
        self.answer.lm.kwargs["temperature"] = variables["temperature"]


class Taking(Answers):
    """Takes two variables, and leaves others to its language model."""

    def __init__(self, words: int, ellipsis: str) -> None:
        super().__init__()
        self.words, self.ellipsis = words, ellipsis

    def forward(self, question: str) -> dspy.Prediction:
        prediction = super().forward(question)
        prediction.shown = " ".join(question.split()[: self.words]) + self.ellipsis
        prediction.built = id(self)
        prediction.settings = {n: v for n, v in self.answer.lm.kwargs.items() if n in {"words", "temperature"}}
        return prediction


class Unset(dspy.Module):
    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=question)


def is_short(example, outputs) -> bool:
    return len(outputs.answer) < 10
