"""Answers for `qa_rag`, from nothing but the prompt: the name of the passage that shares most words with the question.

The judgement is blurred by noise. Less of it is left where the prompt asks for reasoning and where it shows how others
were answered, more where the temperature is high: which is what an evaluation is to find out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from dspex_pipelines.loopback.behaviour import fraction
from dspex_pipelines.loopback.chat import ChatRequest, OutputField

_NAME = re.compile(r"[\w.]+")
_WORD = re.compile(r"[a-z]{3,}")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_STEM_LETTERS = 5
_NOISE = 0.7
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
        for rank, (passage, fit) in enumerate(zip(passages, _fits(question, passages), strict=True))
    ]
    best = passages[max(range(len(passages)), key=scores.__getitem__)]
    name = best[: match.end()] if (match := _NAME.match(best)) else best
    return {"answer": name, "reasoning": f"Of {len(passages)} passages, {name} fits the question best."}


def _passages(context: str) -> list[str]:
    try:
        given: object = json.loads(context)
    except ValueError:
        return []
    return [str(passage) for passage in cast("list[object]", given)] if isinstance(given, list) else []


def _fits(question: str, passages: Sequence[str]) -> list[float]:
    """Return for each passage how much of the question's words it has, rare ones counting more."""
    asked = _stems(question)
    written = [_stems(passage) for passage in passages]
    spread = Counter(word for words in written for word in words & asked)
    weights = {word: 1 / count for word, count in spread.items()}
    total = _sum(weights.values()) or 1.0
    return [_sum(weights[word] for word in words & asked) / total for words in written]


def _sum(weights: Iterable[float]) -> float:
    # A set has another order in every process, and a sum of floats another end.
    return sum(sorted(weights))


def _stems(text: str) -> set[str]:
    return {word[:_STEM_LETTERS] for word in _WORD.findall(_CAMEL.sub(" ", text).lower())}
