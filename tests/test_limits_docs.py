"""docs/limits.md says which tags and limits there are: they are those of the code and of the shipped instance."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from click.testing import CliRunner
from dagster._cli import create_dagster_cli

from dspex_pipelines.orchestration import tags
from tests.test_readme import ROOT

PAGE = (ROOT / "docs" / "limits.md").read_text()
SHIPPED = yaml.safe_load((ROOT / "dagster.yaml").read_text())


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def block(title: str, language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", section(title), re.DOTALL)
    return found


def test_the_page_names_every_tag() -> None:
    named = re.findall(r"^\| `(dspex/\w+)` \|", section("Which tags a run has"), re.MULTILINE)
    known = (tags.KIND, tags.EVALUATION, tags.TARGET, tags.WORKERS, tags.PROVIDER, tags.MODEL, tags.COST)
    assert named == list(known)
    assert f"longer than {tags.VALUE_CHARACTERS} characters" in PAGE


@pytest.mark.parametrize("title", ["Which tags a run has", "Which limits ship"])
def test_what_it_shows_of_the_instance_is_what_ships(title: str) -> None:
    shown = yaml.safe_load(block(title, "yaml"))
    assert shown == {name: SHIPPED[name] for name in shown}


def test_tags_of_the_evaluation_go_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dspex_pipelines.declarations import STDLIB_SEARCH

    (tmp_path / "evaluation.py").write_text(
        "from dspex_pipelines.declarations import STDLIB_SEARCH as EVALUATION\n"  # what a user's file declares
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "evaluation", raising=False)  # another folder's
    names: dict[str, Any] = {}
    exec(block("Which tags a run has", "python"), names)
    job = names["defs"].resolve_job_def(f"{STDLIB_SEARCH.name}_job")
    assert {"dspex/cost": "free", "team": "search"}.items() <= job.tags.items()


def test_the_changed_limits_are_loaded(tmp_path: Path) -> None:
    changed = yaml.safe_load(block("Changing them", "yaml"))
    settings = {**SHIPPED, "concurrency": {**SHIPPED["concurrency"], **changed["concurrency"]}}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(settings))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        queue = instance.get_concurrency_config().run_queue_config
    assert queue
    assert list(queue.tag_concurrency_limits) == changed["concurrency"]["runs"]["tag_concurrency_limits"]


def test_the_pools_limit_is_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(SHIPPED))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    program, *arguments = shlex.split(block("Changing them", "sh"))
    assert program == "dagster"
    done = CliRunner().invoke(create_dagster_cli(), arguments)
    assert done.exit_code == 0, done.output
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        (pool,) = instance.event_log_storage.get_pool_limits()
    assert (pool.name, pool.limit) == (tags.POOL, 4)
