"""What a program declares to depend on in the environment is part of its version; what it says there is not shown."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from dspex_pipelines.engine.program_versions import is_version_here, other_environment, program_version
from dspex_pipelines.model.trial import ProgramSpec

ENTRY_POINT = "tests.programs:echo"
BASE = "DSPEX_TEST_API_BASE"
MODEL = "DSPEX_TEST_MODEL"


def version(*names: str, declared: str = "") -> str:
    return program_version(ENTRY_POINT, {}, declared=declared, environment=names)


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(MODEL, raising=False)
    return lambda value: monkeypatch.setenv(BASE, value)


def test_nothing_declared_leaves_the_version_what_it_was(base) -> None:
    before = version()
    base("http://one/v1")
    assert version() == before
    assert re.fullmatch(r"[0-9a-f]{32}", before)
    assert re.fullmatch(r"declared-[0-9a-f]{32}", version(declared="1"))


@pytest.mark.parametrize("declared", ["", "1"])
def test_another_value_is_another_version_and_the_value_is_not_in_it(base, declared: str) -> None:
    unset = version(BASE, declared=declared)
    found = {unset}
    for value in ("", "http://one/v1", "http://two/v1"):
        base(value)
        found.add(version(BASE, declared=declared))
        assert not value or "one" not in version(BASE, declared=declared)
    assert len(found) == 4
    base("http://one/v1")
    assert version(BASE, declared=declared) in found
    assert version(BASE, MODEL) == version(MODEL, BASE) != version(BASE)


def test_user_and_password_of_an_address_are_not_even_digested(base) -> None:
    base("http://one/v1")
    plain = version(BASE)
    base("http://me:hunter2@one/v1")
    assert version(BASE) == plain


@pytest.mark.parametrize("declared", ["", "1"])
def test_a_worker_knows_whether_its_environment_is_the_one_that_was_planned_in(base, declared: str) -> None:
    base("http://one/v1")
    spec = ProgramSpec(entry_point=ENTRY_POINT, version=version(BASE, MODEL, declared=declared))
    assert is_version_here(spec)
    assert other_environment(spec) == ()
    base("http://two/v1")
    assert is_version_here(spec), "its source is"
    assert other_environment(spec) == (BASE, MODEL)
    assert other_environment(replace(spec, version=version(declared=declared))) == ()
