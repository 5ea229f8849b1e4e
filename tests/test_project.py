"""What holds for the project as a whole."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dspex_pipelines
from tests import conftest

ROOT = Path(__file__).resolve().parent.parent
PINS = dict(line.split("==", 1) for line in (ROOT / "constraints.txt").read_text().splitlines() if line)


def tracked_files() -> list[Path]:
    """Every file of the project, committed or about to be."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        [
            *("git", "-c", "safe.directory=*", "-C", str(ROOT)),
            *("ls-files", "-z", "--cached", "--others", "--exclude-standard"),
        ],
        check=True,
        capture_output=True,
    )
    paths = (ROOT / name for name in listing.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file()]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_loaded_lazily_is_listed():
    assert set(dspex_pipelines.__all__) <= set(dir(dspex_pipelines))
    assert all(getattr(dspex_pipelines, name) is not None for name in dspex_pipelines.__all__)


def test_importing_the_package_is_cheap():
    heavy = ("grpc", "dagster", "pandas", "dspy", "pydantic")
    code = f"import sys, dspex_pipelines; print(*[m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_generated_code_is_in_step_with_its_protos():
    command = [sys.executable, "scripts/generate_protos.py", "--check"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_names_one_machine_or_one_package_registry():
    # In pieces, so that this file does not find itself.
    machine = rb"(?<![\w.-])/(?:work|root)" + rb"/"
    registry = rb"pypi[.]org|pythonhosted[.]org|--(?:extra-)?index[-]url\b|--find[-]links\b"
    foreign = re.compile(machine + rb"|" + registry)
    found = {
        str(path.relative_to(ROOT)): match.group().decode()
        for path in tracked_files()
        if (match := foreign.search(path.read_bytes()))
    }
    assert found == {}


def test_every_declared_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    names = {canonical(re.split(r"[\[<>=!~; ]", one, maxsplit=1)[0]) for one in declared}
    assert names - {canonical(name) for name in PINS} == set()


def test_no_pin_names_a_host_or_pulls_in_torch():
    assert [f"{n}=={v}" for n, v in PINS.items() if not re.fullmatch(r"[\w.+!-]+", v)] == []
    assert "torch" not in PINS


def test_what_a_fresh_machine_lacks_is_a_skip(monkeypatch, require):
    monkeypatch.delenv("DSPEX_TEST_ALL", raising=False)
    monkeypatch.setitem(conftest.FINDERS, "browser", lambda: None)
    with pytest.raises(pytest.skip.Exception, match="no browser"):
        require("browser")


def test_what_a_fresh_machine_lacks_is_a_failure_when_all_must_run(monkeypatch, require):
    monkeypatch.setenv("DSPEX_TEST_ALL", "1")
    monkeypatch.setitem(conftest.FINDERS, "browser", lambda: None)
    with pytest.raises(pytest.fail.Exception, match="no browser"):
        require("browser")
