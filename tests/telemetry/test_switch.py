"""On and off, and what is said when what is asked for is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dspex_pipelines.errors import DspexError, InvalidValue
from dspex_pipelines.telemetry import is_on, run_spans, span_sink

ROOT = Path(__file__).parents[2]
MISSING = "import sys; sys.modules['opentelemetry'] = None; "


def python(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "DSPEX_"))}
    command = [sys.executable, "-c", source]
    return subprocess.run(
        command, cwd=ROOT, env={**given, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("said", "disabled", "on"),
    [("1", "", True), ("true", "", True), ("", "", False), ("0", "", False), ("1", "true", False)],
)
def test_the_switch(monkeypatch: pytest.MonkeyPatch, said: str, disabled: str, on: bool) -> None:
    monkeypatch.setenv("DSPEX_OTEL", said)
    monkeypatch.setenv("OTEL_SDK_DISABLED", disabled)
    assert is_on() is on


def test_a_switch_that_is_neither_on_nor_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPEX_OTEL", "collector:4318")
    with pytest.raises(InvalidValue, match="DSPEX_OTEL"):
        span_sink()


def test_off_gives_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSPEX_OTEL", raising=False)
    assert span_sink() is None
    with run_spans("e", run_id="r", attributes={}) as spans:
        assert spans is None


def test_a_run_that_is_not_sampled_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    exporting = pytest.importorskip("dspex_pipelines.telemetry.exporting", exc_type=DspexError)
    monkeypatch.setattr(exporting, "_exporter", None)
    monkeypatch.setenv("DSPEX_OTEL", "1")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with run_spans("e", run_id="r", attributes={}) as spans:
        assert spans is None


def test_off_imports_nothing_of_opentelemetry() -> None:
    modules = (
        "dspex_pipelines.worker.serving, dspex_pipelines.worker.isolated, dspex_pipelines.orchestration.evaluation"
    )
    source = f"import sys, {modules}; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    assert python(source).stdout == "[]\n"


def test_a_worker_without_the_extra_says_how_to_get_it() -> None:
    arguments = ["worker", "--address", "unix:/nowhere", "--worker-id", "w"]
    source = f"{MISSING}sys.argv = {arguments}; from dspex_pipelines.worker.__main__ import main; main()"
    done = python(source, DSPEX_OTEL="1")
    assert done.returncode == 1
    assert "pip install 'dspex-pipelines[otel]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_without_the_extra_says_how_to_get_it_before_there_is_a_pool(tmp_path: Path) -> None:
    arguments = ["dspex", "evaluate", "stdlib_search", "--limit", "2"]
    source = f"{MISSING}import os; os.chdir({str(tmp_path)!r}); sys.argv = {arguments}; "
    source += "from dspex_pipelines.cli.commands import main; sys.exit(main())"
    done = python(source, DSPEX_OTEL="1", XDG_RUNTIME_DIR=str(tmp_path), PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    assert "pip install 'dspex-pipelines[otel]'" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*.sock"))
