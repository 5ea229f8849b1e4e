"""What is declared in YAML is what is declared in Python; what cannot be is named with its file and line."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml
from hypothesis import given, settings

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.declarations import STDLIB_SEARCH
from dspex_pipelines.definitions import defs
from dspex_pipelines.engine.documents import InvalidPart, evaluation_from_document
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model import automation, budget, calls, checks, limits, partitions, search, space, variables
from dspex_pipelines.model.evaluation import Dataset, Evaluation
from dspex_pipelines.orchestration.build import build_evaluation
from dspex_pipelines.orchestration.component import fields as written
from dspex_pipelines.orchestration.component.errors import InvalidDeclaration
from dspex_pipelines.orchestration.component.scaffolding import EvaluationScaffolder
from tests.orchestration.any_evaluation import FOLDER, evaluations
from tests.orchestration.components import PROGRAMS, TYPE, VALID, component_of, document_of, schema_errors
from tests.orchestration.conftest import Lab


@settings(max_examples=60, deadline=None)
@given(declared=evaluations)
def test_what_is_written_in_yaml_is_what_is_declared_in_python(declared: Evaluation) -> None:
    FOLDER.mkdir(exist_ok=True)
    document = {"type": TYPE, "attributes": document_of(declared, FOLDER)}
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    assert schema_errors(text) == []
    found = component_of(text, FOLDER).evaluation(FOLDER)
    assert found == declared
    assert found.space.digest == declared.space.digest


@pytest.mark.parametrize(
    ("yaml_class", "python_class"),
    [
        (written.Dates, partitions.Dates),
        (written.Float, variables.Float),
        (written.Integer, variables.Integer),
        (written.Boolean, variables.Boolean),
        (written.Choice, variables.Choice),
        (written.Text, variables.Text),
        (written.Module, variables.Module),
        (written.Ordered, space.Ordered),
        (written.Implies, space.Implies),
        (written.AtMost, space.AtMost),
        (written.Search, search.Search),
        (written.Budget, budget.Budget),
        (written.RateLimit, limits.RateLimit),
        (written.Price, calls.Price),
        (written.Automation, automation.Automation),
        (written.ScoreFloor, checks.ScoreFloor),
        (written.FailureRate, checks.FailureRate),
        (written.Coverage, checks.Coverage),
        (written.NoRegression, checks.NoRegression),
        (written.Dataset, Dataset),
        (written.EvaluationFields, Evaluation),
    ],
    ids=lambda one: one.__name__,
)
def test_yaml_has_the_fields_of_the_declaration_each_described(
    yaml_class: type[written.Fields], python_class: type
) -> None:
    renamed = {"variables": "space", "constraints": "space", "callable": "source", "asset": "source", "type": "name"}
    known = {field.name for field in dataclasses.fields(python_class)}
    fields = yaml_class.model_fields
    assert {name if name in known else renamed[name] for name in fields} | {"name"} == known | {"name"}
    assert [name for name, field in fields.items() if not field.description and name != "type"] == []


def test_checks_are_declared_by_their_type() -> None:
    shipped = {type(check) for check in STDLIB_SEARCH.checks}
    assert shipped == set(checks.KINDS)
    with pytest.raises(InvalidPart) as refused:
        evaluation_from_document({**yaml.safe_load(VALID)["attributes"], "checks": [{"type": "floor"}]}, folder=Path())
    assert "checks" in refused.value.path
    assert "give one of score_floor, failure_rate, coverage, no_regression" in str(refused.value)


HOW = "    how: {type: choice, options: [one, '2', 3]}\n"


def edited(*changes: tuple[str, str]) -> str:
    text = VALID
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    return text


@pytest.mark.parametrize(
    ("change", "where", "says"),
    [
        pytest.param(("  budget", "  bugdet"), "", "'bugdet' is not one of", id="unknown-field"),
        pytest.param(("low: 1", "lo: 1"), "variables.k", "'lo' is not one of", id="unknown-field-of-a-variable"),
        pytest.param(("type: integer", "type: int"), "variables.k.type", "'integer'", id="unknown-type"),
        pytest.param(("low: 1", "low: one"), "variables.k.low", "not of type 'integer'", id="wrong-type"),
        pytest.param(("low: 1", "low: 1.5"), "variables.k.low", "not of type 'integer'", id="no-integer"),
        pytest.param(("type: at_most", "type: most"), "constraints.0.type", "'at_most'", id="unknown-constraint"),
        pytest.param(("weights: {k: 1}", "weights: {k: a}"), "constraints.0.weights.k", "'number'", id="weight"),
        pytest.param(("max_errors: 0.5", "max_errors: -1"), "budget.max_errors", "minimum of 0", id="out-of-bounds"),
        pytest.param(
            ("  budget", "  hedging: {quantile: 1.0}\n  budget"), "hedging.quantile", "maximum of 1", id="quantile"
        ),
        pytest.param(
            ("  budget", "  checks: [{type: failure_rate, at_most: 2}]\n  budget"),
            "checks.0.at_most",
            "maximum of 1",
            id="check-out-of-bounds",
        ),
        pytest.param(("inputs: [x]", "inputs: x"), "dataset.inputs", "'array'", id="no-list"),
        pytest.param(("inputs: [x]", "partitions: all"), "dataset.partitions", "'dynamic'", id="unknown-partitions"),
        pytest.param(("inputs: [x]", "partitions: {every: hour}"), "dataset.partitions.every", "'day'", id="period"),
        pytest.param(("  budget", "  search: all\n  budget"), "search", "'grid'", id="unknown-search"),
        pytest.param(("  dataset", "  datsaet"), "", "'dataset' is a required property", id="missing-field"),
        pytest.param(("name: tested", "name: 5"), "name", "not of type 'string'", id="no-text"),
    ],
)
def test_the_schema_names_where_and_what_would_be_accepted(change: tuple[str, str], where: str, says: str) -> None:
    assert schema_errors(VALID) == []
    found = schema_errors(edited(change))
    assert any(path == where and says in message for path, message in found), found
    assert not any("under any of the given schemas" in message for _, message in found)


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        pytest.param(("  budget", "  bugdet"), 15, "bugdet", id="unknown-field"),
        pytest.param(("low: 1", "low: 5"), 11, "a low of at most high", id="crossed-bounds"),
        pytest.param(("points: [1, 2]", "points: [9]"), 11, "[1, 3]", id="point-out-of-bounds"),
        pytest.param(("type: integer", "type: int"), 11, "'integer'", id="unknown-type"),
        pytest.param(("bound: 2", "bound: .nan"), 14, "give a finite number", id="nan"),
        pytest.param(("weights: {k: 1}", "weights: {q: 1}"), 14, "the variables are k, how", id="unknown-variable"),
        pytest.param(("max_errors: 0.5", "max_errors: 1.5"), 16, "a whole number, or a fraction", id="budget"),
        pytest.param(("name: tested", "name: not this"), 3, "letters, digits and underscores", id="name"),
        pytest.param((f"{PROGRAMS}:fifth", f"{PROGRAMS}.fifth"), 8, "module:attribute", id="entry-point"),
        pytest.param(("source: data.csv", "callable: nowhere:rows"), 5, "no module 'nowhere'", id="callable"),
        pytest.param(("source: data.csv", f"callable: {PROGRAMS}:rihgt"), 5, "did you mean", id="callable-attribute"),
        pytest.param(("source: data.csv", "asset: a//b"), 5, "slashes between its parts", id="asset"),
        pytest.param(("source: data.csv", "description: none"), 4, "source, callable, asset", id="no-source"),
        pytest.param(("inputs: [x]", "inputs: []"), 6, "at least one input column", id="no-inputs"),
        pytest.param(("inputs: [x]", "inputs: [x]\n    partitions: [a, b]"), 4, "name the column", id="partitions"),
        pytest.param(("inputs: [x]", "inputs: [x]\n    partitions: {start: soon}"), 7, "an ISO date", id="date"),
        pytest.param(
            ("  budget", "  limits: [{model: a}]\n  budget"), 15, "at least one of requests_per_minute", id="limit"
        ),
        pytest.param(
            (
                "  budget",
                "  checks:\n    - {type: coverage}\n    - {type: score_floor, metric: q, at_least: 1}\n  budget",
            ),
            17,
            "give one of right",
            id="metric-of-a-check",
        ),
        pytest.param(
            ("  budget", "  hedging: {fraction: .nan}\n  budget"), 15, "less than or equal to 1", id="hedging"
        ),
        pytest.param(("  budget", "  owners: [ada]\n  budget"), 15, "an email address", id="owner"),
        pytest.param(("  budget", "  automation: {schedule: daily}\n  budget"), 15, "give five fields", id="schedule"),
        pytest.param(("max_errors: 0.5", 'max_errors: "{{ nobody }}"'), 16, "nobody", id="template"),
    ],
)
def test_what_cannot_be_is_named_with_its_file_and_line(
    tmp_path: Path, change: tuple[str, str], line: int, says: str
) -> None:
    with pytest.raises(Exception, match="defs.yaml") as caught:  # of templates it is Dagster's own
        component_of(edited(change), tmp_path)
    said = str(caught.value)
    assert f"{tmp_path / 'defs.yaml'}:{line}" in said, said
    assert says in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        pytest.param((":fifth_raises", ":fifth_rases"), 8, "did you mean fifth_raises", id="program"),
        pytest.param((":right'", ":rihgt'"), 9, "did you mean right", id="metric"),
        pytest.param(("inputs: [x]", "inputs: [xx]"), 6, "did you mean 'x'?", id="input-nobody-takes"),
        pytest.param(
            (VALID[VALID.index("    k: {") : VALID.index("  budget")], f"    kk: {{type: boolean}}\n{HOW}"),
            11,
            "did you mean 'k'?",
            id="variable-nobody-takes",
        ),
    ],
)
def test_dg_check_defs_imports_what_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], line: int, says: str
) -> None:
    text = edited(change, (HOW, ""))
    component_of(text, tmp_path)  # otherwise the location loads, and planning says what is wrong
    monkeypatch.setenv("DAGSTER_IS_DEFS_VALIDATION_CLI", "1")
    with pytest.raises(InvalidDeclaration) as caught:
        component_of(text, tmp_path)
    assert f"{tmp_path / 'defs.yaml'}:{line}" in str(caught.value)
    assert says in str(caught.value)


def test_templates_are_worked_out_and_all_else_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIALS_AT_A_TIME", "7")
    text = edited(
        ("  budget", "  max_concurrency: \"{{ env('TRIALS_AT_A_TIME') }}\"\n  budget"),
        ("options: [one, '2', 3]", "options: ['[1]', '2', 3, '{% raw %}{{ question }}{% endraw %}']"),
    )
    assert schema_errors(text) == []
    evaluation = component_of(text, tmp_path).evaluation(tmp_path)
    assert evaluation.max_concurrency == 7
    assert evaluation.space.variables[1] == variables.Choice(name="how", options=("[1]", "2", 3, "{{ question }}"))


def test_paths_are_those_beside_the_file_and_the_folder_names_the_evaluation(tmp_path: Path) -> None:
    evaluation = component_of(edited(("  name: tested\n", "")), tmp_path).evaluation(tmp_path / "sentiment")
    assert evaluation.name == "sentiment"
    assert evaluation.dataset.source == tmp_path / "sentiment" / "data.csv"


def test_the_shipped_evaluation_is_the_one_that_is_declared_in_yaml() -> None:
    assert STDLIB_SEARCH.name == "stdlib_search"
    ours, theirs = build_evaluation(STDLIB_SEARCH).resolve_asset_graph(), defs.resolve_asset_graph()
    assert {key: ours.get(key).code_version for key in ours.get_all_asset_keys()} == {
        key: theirs.get(key).code_version for key in theirs.get_all_asset_keys()
    }
    assert len(list(ours.get_all_asset_keys())) == 3


def scaffolded(project: Path, name: str) -> Path:
    folder = project / "src" / "declared_here" / name
    folder.mkdir(parents=True)
    request = dg.ScaffoldRequest(
        type_name=TYPE, target_path=folder, scaffold_format="yaml", project_root=project, params=None
    )
    EvaluationScaffolder().scaffold(request)
    return folder


@pytest.fixture
def own_pool(tmp_path: Path) -> Iterator[str]:
    """Workers that find modules below the test's own folder."""
    runtime_root = Path(tempfile.mkdtemp(prefix="dspex-t-"))
    cwd = tmp_path / "src"
    cwd.mkdir()
    runtime = runtime_root / "dspex"
    with local_pool.lease(workers=1, slots=8, idle_s=60, cwd=cwd, runtime_root=runtime) as lease:
        yield lease.address
    local_pool.stop(runtime_root=runtime)
    shutil.rmtree(runtime_root)


def test_what_is_scaffolded_names_a_command_that_there_is(tmp_path: Path) -> None:
    text = (scaffolded(tmp_path, "shortened") / "defs.yaml").read_text()
    named = re.search(rf"dg (\w+) ([\w-]+) {re.escape(TYPE)}, or docs/component.md", text)
    assert named
    command = str(Path(sys.executable).with_name("dg"))
    done = subprocess.run([command, *named.groups(), "--help"], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_scaffolded_runs(tmp_path: Path, own_pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path / "src")
    folder = scaffolded(tmp_path, "shortened")
    text = (folder / "defs.yaml").read_text()
    assert schema_errors(text) == []
    monkeypatch.setenv("DAGSTER_IS_DEFS_VALIDATION_CLI", "1")
    evaluation = component_of(text, folder).evaluation(folder)
    assert evaluation.program == "declared_here.shortened.program:shorten"
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        lab = Lab(instance, tmp_path / "store", own_pool).declare(evaluation)
        table, _ = lab.evaluated()
        assert len(table) == 30
        assert set(table["status"]) == {"ok"}
        assert lab.ranked()["best"] == "words=3 ellipsis=True"


def test_a_name_that_no_module_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="letters, digits and underscores"):
        scaffolded(tmp_path, "my-evaluation")


def test_every_comment_of_the_scaffold_that_is_a_field_is_one(tmp_path: Path) -> None:
    text = (scaffolded(tmp_path, "commented") / "defs.yaml").read_text()
    uncommented = re.sub(r"^  # (\w+: )", r"  \1", text, flags=re.MULTILINE)
    assert uncommented != text
    assert schema_errors(uncommented) == []
