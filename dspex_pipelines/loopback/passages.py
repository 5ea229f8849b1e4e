"""Answers for `qa_rag`, from nothing but the prompt: the name of the passage that shares most words with the question.

The judgement is blurred by noise. Less of it is left where the prompt asks for reasoning and where it shows how others
were answered, more where the temperature is high: which is what an evaluation is to find out.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import cast

from dspex_pipelines.loopback.behaviour import fraction
from dspex_pipelines.loopback.chat import ChatRequest, OutputField

_NAME = re.compile(r"[\w.]+")
_WORD = re.compile(r"[a-z]{2,}")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_STEM_LETTERS = 5
_STOP = frozenset(
    """
    an and are as at be by class does for from function if in into is it method not of on or that the this to which with
    """.split()  # noqa: SIM905 - reads better
)
_OF_TEXT = 2.0
_OF_NAME = 0.5
_NOISE = 0.8
_OF_HEAT = 0.8
_OF_REASONING = 0.4
_OF_A_DEMO = 0.8
_MOST_DEMOS = 4
_OF_RANK = 0.02


def choose_passage(
    request: ChatRequest, fields: Sequence[OutputField], inputs: Mapping[str, str], /
) -> Mapping[str, object]:
    """Return `answer`, and `reasoning` where it is among *fields*; nothing where the prompt has no passages."""
    passages = _passages(inputs.get("context", ""))
    question = inputs.get("question", "")
    if not passages:
        return {}
    reasons = any(field.name == "reasoning" for field in fields)
    demos = sum(message.role == "assistant" for message in request.messages)
    noise = _NOISE * (1 + _OF_HEAT * request.temperature) * _OF_A_DEMO ** min(demos, _MOST_DEMOS)
    if reasons:
        noise *= _OF_REASONING
    # Of the question alone, so that the same ones are hard under all settings. Only heat makes seeds differ.
    key = hashlib.blake2b(question.encode(), digest_size=16).digest()
    draw = f"passage {request.seed if request.temperature else None}"
    scores = [
        fit + noise * (2 * fraction(key, f"{draw} {passage}") - 1) - _OF_RANK * rank
        for rank, (passage, fit) in enumerate((passage, _fit(question, passage)) for passage in passages)
    ]
    name = _name(passages[max(range(len(passages)), key=scores.__getitem__)])
    return {"answer": name, "reasoning": f"Of {len(passages)} passages, {name} fits the question best."}


def _name(passage: str) -> str:
    """Return the name that *passage* begins with, all of it where there is none."""
    match = _NAME.match(passage)
    return match.group() if match else passage


def _passages(context: str) -> list[str]:
    try:
        given: object = json.loads(context)
    except ValueError:
        return []
    return [str(passage) for passage in cast("list[object]", given)] if isinstance(given, list) else []


def _fit(question: str, passage: str) -> float:
    """Return how well the words of *passage* fit those of *question*: the cosine of both, and what its name shares."""
    asked, written, name = _stems(question), _stems(passage), _name(passage)
    if not asked or not written:
        return 0.0
    cosine = len(asked & written) / math.sqrt(len(asked) * len(written))
    names = (_stems(name), _stems(name.rpartition(".")[2]))
    return _OF_TEXT * cosine + sum(_OF_NAME * len(asked & words) / len(words) for words in names if words)


def _stems(text: str) -> set[str]:
    words = _WORD.findall(_CAMEL.sub(" ", text).lower())
    return {word[:_STEM_LETTERS] for word in words if word not in _STOP}
