"""Metrics as they are written for DSPy and for us, and the programs that they judge."""

from __future__ import annotations

import asyncio
import threading
from typing import ClassVar

import dspy

from tests.worker.dspy_echo import Counting, echo


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
