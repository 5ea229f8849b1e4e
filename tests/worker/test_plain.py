"""Outputs of any depth become plain values, the same each time, or are refused with their place."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import dspy
import pydantic
import pytest

from dspex_pipelines.errors import SerializationError
from dspex_pipelines.model.payload import decode
from dspex_pipelines.worker.plain import encode_outputs


class Colour(Enum):
    RED = "red"


class Size(IntEnum):
    SMALL = 1


class Person(pydantic.BaseModel):
    name: str
    born: dt.date
    colour: Colour


@dataclass
class Point:
    x: int
    colours: list[Colour]


class Opaque:
    pass


ADA = Person(name="Ada", born=dt.date(1815, 12, 10), colour=Colour.RED)
TOLD_ADA = {"name": "Ada", "born": "1815-12-10", "colour": "red"}
NEW_YEAR = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        pytest.param(dspy.Prediction(answer="a", score=1), {"answer": "a", "score": 1}, id="prediction"),
        pytest.param(dspy.Prediction(person=ADA), {"person": TOLD_ADA}, id="pydantic-in-a-prediction"),
        pytest.param(dspy.Prediction(people=[ADA, ADA]), {"people": [TOLD_ADA, TOLD_ADA]}, id="pydantic-in-a-list"),
        pytest.param({"deep": [{"person": ADA}]}, {"deep": [{"person": TOLD_ADA}]}, id="pydantic-in-plain-values"),
        pytest.param(dspy.Prediction(one=dspy.Example(q="Q")), {"one": {"q": "Q"}}, id="example"),
        pytest.param([dspy.Prediction(a=dspy.Prediction(b=1))], [{"a": {"b": 1}}], id="predictions-in-one-another"),
        pytest.param(dspy.Prediction(colour=Colour.RED, size=Size.SMALL), {"colour": "red", "size": 1}, id="enums"),
        pytest.param({Colour.RED: 1}, {"red": 1}, id="enum-as-a-key"),
        pytest.param(dspy.Prediction(at=NEW_YEAR), {"at": "2026-01-01T00:00:00+00:00"}, id="time"),
        pytest.param({"for": dt.timedelta(minutes=1)}, {"for": 60.0}, id="duration"),
        pytest.param([Decimal("1.10"), UUID(int=0), PurePosixPath("/a")], ["1.10", str(UUID(int=0)), "/a"], id="texts"),
        pytest.param(Point(1, [Colour.RED]), {"x": 1, "colours": ["red"]}, id="dataclass"),
        pytest.param(
            dspy.Prediction(history=dspy.History(messages=[{"role": "user"}])),
            {"history": {"messages": [{"role": "user"}]}},
            id="dspys-history",
        ),
        pytest.param((1, (2, ADA)), [1, [2, TOLD_ADA]], id="tuples"),
    ],
)
def test_outputs_are_told_as_plain_values(outputs: Any, told: Any) -> None:
    payload = encode_outputs(outputs)
    assert decode(payload) == told
    assert encode_outputs(outputs) == payload


def endless() -> list[Any]:
    made: list[Any] = [Opaque()]
    made.append(made)
    return made


@pytest.mark.parametrize(
    ("outputs", "path"),
    [
        pytest.param(dspy.Prediction(a=[{"b": Opaque()}]), "outputs['a'][0]['b']", id="object"),
        pytest.param(dspy.Prediction(a={1, 2}), "outputs['a']", id="set"),
        pytest.param(dspy.Prediction(a=Opaque), "outputs['a']", id="class"),
        pytest.param(dspy.Prediction(a=2**70), "outputs['a']", id="large-integer"),
        pytest.param({"red": 1, Colour.RED: 2, "o": ADA}, "outputs", id="two-keys-of-one-name"),
        pytest.param(endless(), "outputs[1]", id="endless"),
    ],
)
def test_what_cannot_be_told_is_refused_with_its_place(outputs: Any, path: str) -> None:
    with pytest.raises(SerializationError) as refusal:
        encode_outputs(outputs)
    assert refusal.value.path.startswith(path)
