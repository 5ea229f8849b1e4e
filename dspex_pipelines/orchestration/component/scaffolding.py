"""`dg scaffold defs dspex_pipelines.EvaluationComponent NAME`: an evaluation that runs as it is written."""

import re
from pathlib import Path
from typing import Any

import dagster as dg

from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.orchestration.component.starter import DATA, PROGRAM

DECLARATION = """\
type: {type}

attributes:
  description: Which settings shorten a text as expected?

  dataset:
    source: data.csv # beside this file; a folder or a pattern such as data/*.csv will do as well
    example_id: id
    inputs: [text] # columns that the program gets
    labels: [expected] # columns that metrics compare with

  program: {module}.program:shorten # any callable: its parameters are inputs and variables
  metrics: # of (example, outputs); the first one ranks
    - {module}.program:same

  variables:
    words: {{type: integer, low: 1, high: 5, points: [2, 3, 4]}}
    ellipsis: {{type: boolean}}

  search: grid # or {{samples: 50, seed: 1}}: so many drawn at random

  # What else there is: dg utils inspect-component {type}, or docs/component.md of dspex_pipelines.
  # timeout_s: 60
  # budget: {{max_errors: 0.2, max_time_s: 600}}
  # automation: {{schedule: 0 3 * * *}}
"""


class EvaluationScaffolder(dg.Scaffolder[Any]):
    """Writes `defs.yaml`, `program.py` and `data.csv`."""

    def scaffold(self, request: dg.ScaffoldRequest[Any]) -> None:
        """Write the files; raises `InvalidValue` for a name that no module can have."""
        if request.append or request.scaffold_format != "yaml":
            dg.scaffold_component(request)
            return
        module = module_of(request.target_path, request.project_root)
        files = {
            "defs.yaml": DECLARATION.format(type=request.type_name, module=module),
            "program.py": PROGRAM,
            "data.csv": DATA,
        }
        for name, text in files.items():
            (request.target_path / name).write_text(text, encoding="utf-8")


def module_of(folder: Path, project_root: Path | None) -> str:
    """Return the module that *folder* is in its project; raises `InvalidValue` where it cannot be one."""
    parts = folder.relative_to(project_root or folder.parent).parts
    parts = parts[1:] if parts[0] == "src" else parts
    for part in parts:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", part):
            fix = "give letters, digits and underscores: the program in it is imported by that name"
            raise InvalidValue(field="name of the folder", value=part, fix=fix)
    return ".".join(parts)
