"""A program's own modules run as they are written, whatever they were compiled of; and are not compiled each time."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAVED_AT = 1_700_000_000
SOURCE = "def answer():\n    return {}\n"
CHECKED = "from dspex_pipelines.engine.programs import resolve; print(resolve('{}:answer')())"
ORDINARY = "import {0}; print({0}.answer())"
DECLARED = "from dspex_pipelines.cli.targets import find_evaluation; print(find_evaluation('').timeout_s)"
IMPORTED_BEFORE = (
    "import {0}; from dspex_pipelines.engine.compiled import runs_other_code; print(int(runs_other_code('{0}')))"
)


def save(folder: Path, file: str, number: int) -> Path:
    """Save a module at a time that is always the same; all of them have the same size."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SOURCE.format(number))
    os.utime(path, (SAVED_AT, SAVED_AT))
    return path


def compiled(path: Path, mode: py_compile.PycInvalidationMode = py_compile.PycInvalidationMode.TIMESTAMP) -> Path:
    file = py_compile.compile(str(path), doraise=True, invalidation_mode=mode)
    assert file is not None
    return Path(file)


def said(folder: Path, code: str) -> int:
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return int(subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=folder))


def test_neither_is_what_the_declaration_and_its_own_imports_were(tmp_path: Path) -> None:
    """Functions that give the data are among them, and are called where trials are planned."""
    (tmp_path / "evaluation.py").write_text(
        "from dspex_pipelines import Dataset, Evaluation\nimport own\nEVALUATION = Evaluation(\n"
        "    name='any', program='own:answer', metrics=('own:answer',), timeout_s=own.answer(),\n"
        "    dataset=Dataset(source='data.csv', inputs=('x',)),\n)\n"
    )
    compiled(save(tmp_path, "own.py", 1))
    save(tmp_path, "own.py", 2)
    assert said(tmp_path, DECLARED) == 2


@pytest.mark.parametrize(
    ("module", "files"),
    [
        pytest.param("own", ["own.py"], id="a-module"),
        pytest.param("package", ["package/__init__.py"], id="a-package"),
        pytest.param("package.inner", ["package/__init__.py", "package/inner.py"], id="a-module-of-a-package"),
        pytest.param("space.inner", ["space/inner.py"], id="a-module-of-a-namespace"),
    ],
)
def test_what_was_compiled_of_an_earlier_source_is_not_run(tmp_path: Path, module: str, files: list[str]) -> None:
    for file in files:
        compiled(save(tmp_path, file, 1))
        save(tmp_path, file, 2)
    assert said(tmp_path, ORDINARY.format(module)) == 1, "Python does not notice"
    assert said(tmp_path, CHECKED.format(module)) == 2
    assert said(tmp_path, ORDINARY.format(module)) == 2, "what has been compiled since names its source"
    for file in files:
        save(tmp_path, file, 3)
    assert said(tmp_path, ORDINARY.format(module)) == 3
    assert said(tmp_path, CHECKED.format(module)) == 3


def test_what_was_compiled_of_this_source_is_run(tmp_path: Path) -> None:
    """Or an isolated trial would compile all that it imports."""
    # Of another one, to tell it from that, which it says it is of.
    other = compiled(save(tmp_path, "own.py", 1), py_compile.PycInvalidationMode.CHECKED_HASH)
    source = save(tmp_path, "own.py", 2).read_bytes()
    code = other.read_bytes()
    other.write_bytes(code[:8] + importlib.util.source_hash(source) + code[16:])
    assert said(tmp_path, CHECKED.format("own")) == 1


def test_the_first_import_leaves_what_the_next_one_can_use(tmp_path: Path) -> None:
    path = save(tmp_path, "own.py", 1)
    assert said(tmp_path, CHECKED.format("own")) == 1
    code = Path(importlib.util.cache_from_source(str(path))).read_bytes()
    assert code[8:16] == importlib.util.source_hash(path.read_bytes())


def test_what_is_installed_is_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "site-packages"
    code = compiled(save(folder, "own.py", 1))
    before = code.read_bytes()
    assert said(folder, CHECKED.format("own")) == 1
    assert code.read_bytes() == before


@pytest.mark.parametrize(("then", "other"), [(1, 0), (2, 1)])
def test_a_module_that_was_imported_before_is_known_to_run_other_code(tmp_path: Path, then: int, other: int) -> None:
    compiled(save(tmp_path, "own.py", 1))
    save(tmp_path, "own.py", then)
    assert said(tmp_path, IMPORTED_BEFORE.format("own")) == other
