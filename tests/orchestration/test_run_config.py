"""What a run may be told, and what is refused before any trial."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.orchestration.config import EvaluationConfig, config_of, trials_per_op
from dspex_pipelines.orchestration.naming import run_config
from tests.orchestration.conftest import Lab, failure, steps
from tests.orchestration.declared import declare, rows


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"limit": -1}, "limit: -1 is not accepted; give an integer in [0, 2147483647]"),
        ({"samples": -1}, "samples: -1 is not accepted"),
        ({"samples": 5}, "samples: 5 is not accepted; there are only 3 different allowed configurations"),
        ({"repeats": 0}, "repeats: 0 is not accepted; give an integer in [1, 2147483647]"),
        ({"seed": -1}, "seed: -1 is not accepted"),
        ({"seed": 2**63}, "seed: 9223372036854775808 is not accepted"),
        ({"max_concurrency": -1}, "max_concurrency: -1 is not accepted"),
        ({"weight": 1_001}, "weight: 1001 is not accepted; give an integer in [0, 1000]"),
        ({"hedge_fraction": 1.5}, "hedge_fraction: 1.5 is not accepted; give a number in [0, 1]"),
        ({"hedge_fraction": math.nan}, "hedge_fraction: nan is not accepted; give a number in [0, 1]"),
        ({"trials_per_op": -1}, "trials_per_op: -1 is not accepted"),
        ({"timeout_s": -0.5}, "timeout_s: -0.5 is not accepted; give seconds, 0 or more"),
        ({"timeout_s": math.nan}, "timeout_s: nan is not accepted; give seconds, 0 or more"),
        ({"timeout_s": math.inf}, "timeout_s: inf is not accepted"),
    ],
    ids=str,
)
def test_a_bad_value_is_named_before_any_trial(lab: Lab, values: dict[str, Any], said: str) -> None:
    result = lab.declare(declare("fifth_raises", rows(2))).evaluate(**values)
    assert not result.success
    assert said in failure(result)
    assert steps(result, "run_trials") == []
    assert not (lab.folder / "journal.sqlite").exists()


@pytest.mark.parametrize("value", ["0", "-1", "many", "²", "1.5"])
def test_a_bad_tag_is_named_before_any_trial(lab: Lab, value: str) -> None:
    result = lab.declare(declare("fifth_raises", rows(2))).evaluate(tags={"dspex/max_concurrency": value})
    assert not result.success
    assert failure(result) == f"dspex/max_concurrency: {value!r} is not accepted; give an integer of 1 or more"
    assert not (lab.folder / "journal.sqlite").exists()


def test_an_unknown_name_is_refused_with_its_name(lab: Lab) -> None:
    lab.declare(declare("fifth_raises", rows(2)))
    config = run_config(lab.evaluation, EvaluationConfig())
    config["ops"]["tested__evaluation"]["config"]["limits"] = 3
    with pytest.raises(dg.DagsterInvalidConfigError, match='unexpected config entry "limits"'):
        lab.run([lab.dataset_key, lab.results_key], config=config)


def test_every_value_has_a_default_and_a_help_text() -> None:
    for name, field in EvaluationConfig.model_fields.items():
        assert field.description, name
        assert not field.is_required(), name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"program": "tests.orchestration.programs:fifth_raise"}, "did you mean fifth_raises"),
        ({"program": "tests.orchestration.nowhere:f"}, "there is no module 'tests.orchestration.nowhere'"),
        ({"metrics": ("tests.orchestration.programs:rigt",)}, "did you mean right"),
        ({"program": "tests.orchestration.programs:plain"}, "variable 'k'"),
        ({"program": "tests.orchestration.programs:logged"}, "parameter 'log'"),
    ],
    ids=["program", "module", "metric", "variable", "parameter"],
)
def test_a_declaration_that_does_not_fit_loads_and_says_why_when_planned(
    lab: Lab, changes: dict[str, Any], said: str
) -> None:
    result = lab.declare(dataclasses.replace(declare("fifth_raises", rows(2)), **changes)).evaluate()
    assert not result.success
    assert said in failure(result)
    assert steps(result, "run_trials") == []


@pytest.mark.parametrize(
    ("declared", "asked", "tag", "most"), [(64, 0, "2", 2), (3, 0, "9", 3), (64, 2, "", 2), (2, 0, "", 2)]
)
def test_trials_in_flight_are_bounded(lab: Lab, tmp_path: Path, declared: int, asked: int, tag: str, most: int) -> None:
    folder = tmp_path / "crowd"
    folder.mkdir()
    source = rows(24, folder=str(folder), least=most)
    evaluation = declare(
        "crowd", source, inputs=("x", "folder", "least"), max_concurrency=declared, space=ConfigurationSpace()
    )
    lab.declare(evaluation)
    tags = {"dspex/max_concurrency": tag} if tag else {}
    table, _ = lab.evaluated(max_concurrency=asked, tags=tags)
    assert table["outputs"].astype(int).max() == most


@pytest.mark.parametrize(
    ("asked", "total", "size", "steps"),
    [(0, 1, 50_000, 1), (0, 50_001, 50_000, 2), (0, 2_000_000, 100_000, 20), (7, 20, 7, 3), (1, 20, 1, 20)],
)
def test_trials_in_a_step(asked: int, total: int, size: int, steps: int) -> None:
    chosen = trials_per_op(EvaluationConfig(trials_per_op=asked), total)
    assert chosen == size
    assert -(-total // chosen) == steps


def test_some_configurations_are_chosen_by_their_digests(lab: Lab) -> None:
    lab.declare(declare("fifth_raises", rows(2)))
    table, _ = lab.evaluated()
    first, second = sorted(set(table["configuration"]))
    some, metadata = lab.evaluated(configurations=[first[:6]])
    assert set(some["configuration"]) == {first}
    assert (metadata["trials run"], metadata["trials reused"]) == (0, 2)
    assert set(lab.evaluated(configurations=[first, second])[0]["configuration"]) == {first, second}
    result = lab.evaluate(configurations=[first, "0000"])
    assert failure(result).startswith(
        "configurations: '0000' is not accepted; give the first characters of the digest of one of the run's 2, such as"
    )


def test_what_is_wrong_with_a_setting_is_said() -> None:
    for values, said in (
        ({"reuse": "some"}, "reuse: 'some' is not accepted; give all, successes or none"),
        ({"limit": "many"}, "limit: 'many' is not accepted; give a valid integer"),
        ({"limits": 3}, "limits: 3 is not accepted; there is no such setting; there are limit, samples,"),
    ):
        with pytest.raises(InvalidValue) as refused:
            config_of(values)
        assert said in str(refused.value)
