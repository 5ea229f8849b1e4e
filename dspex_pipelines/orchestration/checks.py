"""The asset checks of an evaluation: one step judges what is declared, partition by partition."""

import math
import warnings
from collections.abc import Iterator, Mapping

import dagster as dg
import pyarrow.parquet as pq

from dspex_pipelines.analysis.checks import Finding, columns_of, judge
from dspex_pipelines.model.checks import Check, Coverage, FailureRate, NoRegression, ScoreFloor
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.orchestration.baseline import find_baseline, materialised
from dspex_pipelines.orchestration.partitions import partitions_def
from dspex_pipelines.orchestration.resources import ResultStore
from dspex_pipelines.orchestration.secrecy import without_secrets
from dspex_pipelines.orchestration.tags import RESULTS

_ADVICE = {
    ScoreFloor: "`dspex leaderboard TARGET` ranks the configurations; `dspex trials TARGET --failed` lists what failed",
    FailureRate: "`dspex trials TARGET --failed` lists them; `dspex replay TRIAL TARGET` runs one again, alone",
    Coverage: "evaluate the partition again: it goes on where its budget stopped it, with the whole budget anew",
    NoRegression: "`dspex trials TARGET --failed` lists what fails now; the previous run's page has the results that "
    "they are held against",
}


def evaluation_checks(evaluation: Evaluation) -> list[dg.AssetChecksDefinition]:
    """Return the checks that *evaluation* declares, all in one step; none for none."""
    if not evaluation.checks:
        return []
    key = dg.AssetKey([evaluation.name, RESULTS])

    @dg.multi_asset_check(
        name=f"{evaluation.name}__checks",
        specs=[_spec(evaluation, check, key) for check in evaluation.checks],
        can_subset=True,
        description=f"Judges the newest results of a partition of {evaluation.name}.",
    )
    def checks(context: dg.AssetCheckExecutionContext, store: ResultStore) -> Iterator[dg.AssetCheckResult]:
        selected = {one.name for one in context.selected_asset_check_keys}
        with without_secrets():
            yield from _results(
                context.instance,
                store,
                evaluation,
                context.partition_key,
                [check for check in evaluation.checks if check.name in selected],
            )

    return [checks]


def _spec(evaluation: Evaluation, check: Check, key: dg.AssetKey) -> dg.AssetCheckSpec:
    with warnings.catch_warnings():
        # In preview is that checks have partitions at all; without them nobody knows which one a verdict is of.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(
            check.name,
            asset=key,
            description=check.statement,
            blocking=check.blocking,
            partitions_def=partitions_def(evaluation),
        )


def _results(
    instance: dg.DagsterInstance, store: ResultStore, evaluation: Evaluation, partition: str, checks: list[Check]
) -> Iterator[dg.AssetCheckResult]:
    key = dg.AssetKey([evaluation.name, RESULTS])
    newest = next(materialised(instance, key, partition), None)
    if newest is None or not newest.path.exists():
        raise dg.Failure(f"{evaluation.name} has no results of {partition!r}; materialise them", allow_retries=False)
    columns = columns_of(checks, pq.read_schema(newest.path).names)
    trials = pq.read_table(newest.path, columns=columns).to_pandas()
    folder = store.datasets(instance, evaluation.name, partition)
    for check in checks:
        baseline = (
            find_baseline(instance, folder, newest, dg.AssetCheckKey(key, check.name), check)
            if isinstance(check, NoRegression)
            else ""
        )
        finding = judge(check, trials, score_range=evaluation.score_range, baseline=baseline)
        yield dg.AssetCheckResult(
            check_name=check.name,
            passed=finding.passed,
            severity=dg.AssetCheckSeverity[check.severity.upper()],
            description=finding.said,
            metadata=_metadata(check, finding),
        )


def _metadata(check: Check, finding: Finding) -> Mapping[str, dg.MetadataValue]:
    told = {"value": finding.value, "bound": finding.bound, **finding.facts}
    metadata: dict[str, dg.MetadataValue] = {}
    for name, fact in told.items():
        if isinstance(fact, str):
            metadata[name] = dg.MetadataValue.text(fact)
        elif isinstance(fact, int):
            metadata[name] = dg.MetadataValue.int(fact)
        elif not math.isnan(fact):
            metadata[name] = dg.MetadataValue.float(fact)
    if "previous run" in metadata:
        metadata["previous run"] = dg.MetadataValue.dagster_run(str(finding.facts["previous run"]))
    if not finding.passed:
        metadata["what to do"] = dg.MetadataValue.md(
            f"{_ADVICE[type(check)]}. TARGET is what `dspex evaluate` is given."
        )
    return metadata
