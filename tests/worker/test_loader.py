"""A program answers only for the version of its source that was asked for, whatever was edited since."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dspex_pipelines.engine.program_versions import program_version
from dspex_pipelines.errors import ProgramUnavailable
from dspex_pipelines.model.trial import MetricSpec, ProgramSpec
from dspex_pipelines.worker.instances import ProgramLoader
from tests.worker.conftest import metric, program

Write = Callable[..., Path]
# Of the same length, so that within a second not even Python's own cache of compiled modules sees the edit.
HELPER = "def answer():\n    return {}\n"
DIRECT = "\n\n".join(
    f"def {name}:\n    return {{0}}\n" for name in ("program(x)", "other(x)", "metric(example, outputs)")
)
THROUGH = "from edited_helper import answer\n\n\ndef program(x):\n    return answer()\n"


@pytest.fixture(autouse=True)
def compiled_modules_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)


def load(loader: ProgramLoader, of: ProgramSpec, *metrics: MetricSpec):
    return loader.load(of, metrics, ("x",), ())


@pytest.mark.parametrize(
    ("source", "first", "then"),
    [
        pytest.param(DIRECT, "edited_one:program", "edited_one:program", id="the-program"),
        pytest.param(DIRECT, "edited_one:program", "edited_one:other", id="another-program-of-its-module"),
        pytest.param(THROUGH, "edited_one:program", "edited_one:program", id="what-it-imports"),
        pytest.param(THROUGH, "edited_one:program", "edited_two:program", id="what-another-imports-too"),
    ],
)
def test_an_edit_is_picked_up_by_a_loader_that_has_the_version_before(
    project: Write, source: str, first: str, then: str
) -> None:
    def write(answer: int) -> None:
        text = source.format(answer)
        project(edited_helper=HELPER.format(answer), edited_one=text, edited_two=text)

    loader = ProgramLoader()
    write(1)
    before = load(loader, program(first))
    assert before.shape.target(0) == 1
    write(2)
    after = [load(loader, program(name)) for name in (then, first)]
    assert [loaded.shape.target(0) for loaded in after] == [2, 2]
    assert before.shape.target(0) == 1


def test_an_edited_metric_is_picked_up_beside_a_program_that_stays(project: Write) -> None:
    project(edited_one=DIRECT.format(1), edited_two=DIRECT.format(1))
    loader = ProgramLoader()
    of = program("edited_one:program")
    ((_, before),) = load(loader, of, metric("edited_two:metric")).metrics
    project(edited_two=DIRECT.format(2))
    ((_, after),) = load(loader, of, metric("edited_two:metric")).metrics
    assert (before(None, None), after(None, None)) == (1, 2)


@pytest.mark.parametrize("edited", ["program", "metric"])
def test_a_version_that_is_no_longer_there_is_unavailable(project: Write, edited: str) -> None:
    project(edited_one=DIRECT.format(1), edited_two=DIRECT.format(1))
    of, judge = program("edited_one:program"), metric("edited_two:metric")
    name = "edited_one" if edited == "program" else "edited_two"
    project(**{name: DIRECT.format(2)})
    with pytest.raises(ProgramUnavailable, match=f"{name}:{edited}.*run the evaluation again"):
        load(ProgramLoader(), of, judge)


def test_a_source_that_changes_while_it_is_imported_is_not_taken_for_either(project: Write) -> None:
    folder = project()
    rewrite = f"import pathlib\npathlib.Path({str(folder / 'edited_one.py')!r}).write_text('x = 1')\n"
    project(edited_one=rewrite + DIRECT.format(1))
    with pytest.raises(ProgramUnavailable, match="run the evaluation again"):
        load(ProgramLoader(), program("edited_one:program"))


def test_a_source_edited_back_answers_again(project: Write) -> None:
    loader = ProgramLoader()
    project(edited_one=DIRECT.format(1))
    first = program("edited_one:program")
    project(edited_one=DIRECT.format(2))
    with pytest.raises(ProgramUnavailable):
        load(loader, first)
    assert load(loader, program("edited_one:program")).shape.target(0) == 2
    project(edited_one=DIRECT.format(1))
    assert load(loader, first).shape.target(0) == 1


def test_what_one_program_has_loaded_is_not_loaded_again_for_another_parameter(project: Write) -> None:
    """Heavy things are loaded once per worker: only an edit makes the modules be imported anew."""
    project(edited_one="class Program:\n    def __init__(self, n): ...\n    def __call__(self, x): ...\n")
    loader = ProgramLoader()
    targets = [load(loader, program("edited_one:Program", n=n)).shape.target for n in (1, 2)]
    assert targets[0] is targets[1]


def test_a_declared_file_that_changed_is_read_again_at_import(project: Write, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    project(edited_one=f"PROMPT = open({str(prompt)!r}).read()\n\n\ndef program(x):\n    return PROMPT\n")
    loader = ProgramLoader()
    for text in ("short", "sharp"):
        prompt.write_text(text)
        version = program_version("edited_one:program", {}, files=[prompt])
        of = replace(program("edited_one:program"), version=version)
        assert load(loader, of).shape.target(0) == text


def test_a_program_is_not_run_where_the_environment_it_depends_on_is_another(
    project: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(edited_one=DIRECT.format(1))
    monkeypatch.setenv("EDITED_API_BASE", "http://one/v1")
    version = program_version("edited_one:program", {}, environment=["EDITED_API_BASE"])
    of = ProgramSpec(entry_point="edited_one:program", version=version)
    assert load(ProgramLoader(), of).shape.target(0) == 1
    monkeypatch.setenv("EDITED_API_BASE", "http://two/v1")
    with pytest.raises(ProgramUnavailable, match="says otherwise of EDITED_API_BASE than") as refusal:
        load(ProgramLoader(), of)
    assert "http" not in str(refusal.value)


def test_a_declared_version_is_the_users_word(project: Write) -> None:
    loader = ProgramLoader()
    for answer, declared, expected in [(1, "a", 1), (2, "a", 1), (2, "b", 2)]:
        project(edited_one=DIRECT.format(answer))
        version = program_version("edited_one:program", {}, declared=declared)
        of = ProgramSpec(entry_point="edited_one:program", version=version)
        assert load(loader, of).shape.target(0) == expected


def test_the_package_itself_is_never_imported_anew(project: Write) -> None:
    text = "from dspex_pipelines.errors import InvalidValue\n\n\ndef program(x):\n    return {}, InvalidValue\n"
    loader = ProgramLoader()
    before = sys.modules["dspex_pipelines.errors"]
    for answer in (1, 2):
        project(edited_one=text.format(answer))
        loaded = load(loader, program("edited_one:program"))
        assert loaded.shape.target(0) == (answer, before.InvalidValue)
    assert sys.modules["dspex_pipelines.errors"] is before
