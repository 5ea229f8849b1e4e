"""The program: passages from the search over the standard library, then one call of a language model.

It is written as any DSPy program: nothing in it knows of variables, trials or metrics.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

import dspy

from dspex_pipelines.qa_rag.dataset import demonstrated, question_about
from dspex_pipelines.stdlib_search.corpus import Document, documents
from dspex_pipelines.stdlib_search.program import StdlibSearch

API_BASE = "DSPEX_QA_API_BASE"
API_KEY = "DSPEX_QA_API_KEY"
MODEL = "DSPEX_QA_MODEL"
DEFAULT_MODEL = "openai/gpt-4o-mini"
_PASSAGE_WORDS = 60


class NameIt(dspy.Signature):
    """Name the function, class or method of Python's standard library that the question asks for.

    It is the name that one of the passages begins with.
    """

    context: list[str] = dspy.InputField(desc="passages, each a qualified name and what is written about it")
    question: str = dspy.InputField()
    answer: str = dspy.OutputField(desc="the qualified name and nothing else")


class Retrieve(dspy.Module):
    """Finds the names of the `k` passages that fit a question best."""

    def __init__(self, k: int = 3) -> None:
        super().__init__()
        self.k = k

    def forward(self, question: str) -> list[str]:
        """Return at most `k` names, and at most ten, best first."""
        return _search()(question)["names"][: self.k]


class QaRag(dspy.Module):
    """Answers a question with a qualified name, out of the passages that it retrieves.

    Its predictions have `answer`, `retrieved` (the passages' names) and what else the predictor says. The model is
    asked at the address in `DSPEX_QA_API_BASE` with the key in the variable named by *api_key*; it is `DSPEX_QA_MODEL`,
    gpt-4o-mini if that is not set. Raises ValueError where one of the first two is not set.
    """

    def __init__(self, api_key: str = API_KEY) -> None:
        super().__init__()
        self.retrieve = Retrieve()
        self.answer = dspy.Predict(NameIt)
        self.demo_pool = list(_demos())
        self.set_lm(language_model(os.environ, api_key))

    def forward(self, question: str) -> dspy.Prediction:
        """Return the answer to *question*."""
        names = self.retrieve(question=question)
        prediction = self.answer(context=[_passage(name) for name in names], question=question)
        prediction.retrieved = names
        return prediction

    async def aforward(self, question: str) -> dspy.Prediction:
        """Return the answer to *question* without holding a thread while the model thinks."""
        names = self.retrieve(question=question)
        prediction = await self.answer.acall(context=[_passage(name) for name in names], question=question)
        prediction.retrieved = names
        return prediction


def language_model(environment: Mapping[str, str], api_key: str = API_KEY) -> dspy.LM:
    """Return the model that *environment* names; its key, in *api_key*, is told to nobody but the address it is for."""
    missing = [name for name in (API_BASE, api_key) if not environment.get(name)]
    if missing:
        raise dspy.LMNotConfiguredError(
            f"{' and '.join(missing)} not set; export {API_BASE}=https://... and {api_key}=... of a provider that "
            "speaks OpenAI's API, or run `python -m dspex_pipelines.loopback --answers qa_rag` for a local stand-in "
            "that needs no key: it prints the two lines to paste"
        )
    return dspy.LM(
        environment.get(MODEL) or DEFAULT_MODEL,
        api_base=environment[API_BASE],
        api_key=environment[api_key],
        cache=False,
    )


@functools.cache
def _search() -> StdlibSearch:
    return StdlibSearch(k1=1.5, b=0.75, stem=True, fields="body+signature+name", name_boost=1)


@functools.cache
def _documents() -> dict[str, Document]:
    return {document.name: document for document in documents()}


def _passage(name: str) -> str:
    """Return what is written under *name*, without the summary: that is what the question is made of."""
    document = _documents()[name]
    words = document.body.split()
    text = " ".join(words[:_PASSAGE_WORDS])
    return f"{name}{document.signature}: {text}{' ...' if len(words) > _PASSAGE_WORDS else ''}"


@functools.cache
def _demos() -> tuple[dspy.Example, ...]:
    return tuple(_demo(document) for document in demonstrated())


def _demo(document: Document) -> dspy.Example:
    question = question_about(document)
    others = [name for name in _search()(question)["names"] if name != document.name][:2]
    return dspy.Example(
        context=[_passage(name) for name in (document.name, *others)],
        question=question,
        reasoning=f"Of the passages, {document.name} is about that; the others are about something else.",
        answer=document.name,
    ).with_inputs("context", "question")
