"""`dspex init`: the files that a first evaluation needs."""

from __future__ import annotations

from pathlib import Path

from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.orchestration.component.starter import DATA, PROGRAM

DECLARATION = '''"""What is evaluated: run it with `dspex evaluate`."""

from dspex_pipelines import Boolean, ConfigurationSpace, Dataset, Evaluation, Integer

EVALUATION = Evaluation(
    name="shorten",
    dataset=Dataset(source="data.csv", example_id="id", inputs=("text",), labels=("expected",)),
    program="program:shorten",
    metrics=("program:same",),
    space=ConfigurationSpace(
        variables=(Integer(name="words", low=1, high=5, points=(2, 3, 4)), Boolean(name="ellipsis")),
    ),
)
'''

FILES = {"program.py": PROGRAM, "data.csv": DATA, "evaluation.py": DECLARATION}


def write_starter(folder: Path) -> list[Path]:
    """Write the files; raises `InvalidValue` and writes nothing when one is there already."""
    for name in FILES:
        if (folder / name).exists():
            raise InvalidValue(field="folder", value=str(folder / name), fix="it exists already; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
        written.append(folder / name)
    return written
