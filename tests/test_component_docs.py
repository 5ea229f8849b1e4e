"""docs/component.md has every field, as it is described in the schema, and an example that loads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dspex_pipelines.orchestration.component import fields as written
from tests.orchestration.components import component_of, schema_errors
from tests.test_project import ROOT

PAGE = (ROOT / "docs" / "component.md").read_text()
SNIPPETS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
CLASSES: dict[str, type[written.Fields]] = {
    "## Fields": written.EvaluationFields,
    "### dataset": written.Dataset,
    "#### type: float": written.Float,
    "#### type: integer": written.Integer,
    "#### type: boolean": written.Boolean,
    "#### type: choice": written.Choice,
    "#### type: text": written.Text,
    "#### type: module": written.Module,
    "#### type: ordered": written.Ordered,
    "#### type: implies": written.Implies,
    "#### type: at_most": written.AtMost,
    "### search": written.Search,
    "### budget": written.Budget,
    "### hedging": written.Hedging,
    "### limits": written.RateLimit,
    "### prices": written.Price,
    "#### type: score_floor": written.ScoreFloor,
    "#### type: failure_rate": written.FailureRate,
    "#### type: coverage": written.Coverage,
    "#### type: no_regression": written.NoRegression,
    "### automation": written.Automation,
}


def table(fields: type[written.Fields]) -> str:
    """The fields as the page has them; a required one is bold."""
    rows = [
        f"| {f'**`{name}`**' if field.is_required() else f'`{name}`'} | {field.description} |"
        for name, field in fields.model_fields.items()
        if name != "type"
    ]
    return "\n".join(["| field | what it is |", "|---|---|", *rows])


@pytest.mark.parametrize("heading", CLASSES, ids=lambda one: one.strip("# "))
def test_every_field_is_in_the_table_under_its_heading(heading: str) -> None:
    section = PAGE.partition(f"\n{heading}\n")[2]
    section = re.split(r"^#", section, maxsplit=1, flags=re.MULTILINE)[0]
    assert table(CLASSES[heading]) in section


def test_the_example_declares_every_field(tmp_path: Path) -> None:
    example = SNIPPETS[0]
    assert schema_errors(example) == []
    component = component_of(example, tmp_path)
    assert component.model_fields_set == set(written.EvaluationFields.model_fields)
    assert component.evaluation(tmp_path).name == "sentiment"


@pytest.mark.parametrize("snippet", SNIPPETS[1:])
def test_snippets_are_of_the_schema(snippet: str) -> None:
    """A snippet without a type is a part of what stands under `attributes`."""
    whole: Any = snippet
    if not snippet.startswith("type:"):
        rest = {
            "dataset": "dataset: {source: a.csv, inputs: [a]}",
            "program": "program: a:b",
            "metrics": "metrics: [a:c]",
        }
        lines = [snippet, *(line for name, line in rest.items() if not re.search(rf"^{name}:", snippet, re.MULTILINE))]
        inner = "\n".join(lines).replace("\n", "\n  ")
        whole = f"type: dspex_pipelines.EvaluationComponent\nattributes:\n  {inner}\n"
    assert schema_errors(whole) == []


def test_the_component_in_python_is_the_evaluation_of_its_folder(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    snippet = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert snippet
    exec(snippet[1], names)
    context = dg.ComponentTree.for_test().load_context
    component = names["load"](context)
    assert component.evaluation(tmp_path / "in_python").space.names == ("weight_good", "weight_bad")
