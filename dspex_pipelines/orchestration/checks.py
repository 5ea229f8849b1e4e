"""The asset checks of an evaluation: one step judges what is declared, partition by partition."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from dspex_pipelines.analysis.checks import Finding, judge
from dspex_pipelines.analysis.trials_files import damaged
from dspex_pipelines.errors import DspexError
from dspex_pipelines.model.checks import Check, Coverage, FailureRate, NoRegression, ScoreFloor
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.orchestration.baseline import Materialised, find_baseline, materialised
from dspex_pipelines.orchestration.data.partitions import partitions_def
from dspex_pipelines.orchestration.failing import stay_failed, step_failure
from dspex_pipelines.orchestration.io_managers import UNREADABLE
from dspex_pipelines.orchestration.resources import ResultStore
from dspex_pipelines.orchestration.secrecy import without_secrets
from dspex_pipelines.orchestration.tags import RESULTS

SHOWN = 100
"""Partitions that a check names; each has an event of its own."""
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
        names = {one.name for one in context.selected_asset_check_keys}
        selected = [check for check in evaluation.checks if check.name in names]
        run_id = context.op_execution_context.run_id
        with without_secrets():
            try:
                verdicts = [
                    _judged(context.instance, store, evaluation, partition, selected)
                    for partition in context.op_execution_context.partition_keys
                ]
            except DspexError as error:
                raise step_failure(context.instance, run_id, error) from error
        step = context.op_execution_context.get_step_execution_context()
        for check, *of_partitions in zip(selected, *verdicts, strict=True):
            # What a step yields is of all partitions together, unless the run names one; a range of one names none.
            for one in () if step.has_partition_key else of_partitions:
                dg.DagsterEvent.asset_check_evaluation(step, one.evaluation(key, check))
            result = _result(check, of_partitions)
            if check.blocking and not result.passed:
                # The same results would be judged in the same way.
                stay_failed(context.instance, run_id)
            yield result

    return [checks]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    """What a check finds of the results of one partition."""

    partition: str
    results: Materialised
    finding: Finding

    def evaluation(self, key: dg.AssetKey, check: Check) -> dg.AssetCheckEvaluation:
        """Return it as an event of that partition alone."""
        return dg.AssetCheckEvaluation(
            asset_key=key,
            check_name=check.name,
            passed=self.finding.passed,
            metadata=_metadata(check, self.finding),
            target_materialization_data=self.results.target(),
            severity=dg.AssetCheckSeverity[check.severity.upper()],
            description=self.finding.said,
            blocking=check.blocking,
            partition=self.partition,
        )


def _result(check: Check, verdicts: Sequence[_Verdict]) -> dg.AssetCheckResult:
    """Return what the step says: of several partitions, what the first one that fails does, and how many do."""
    failing = [one for one in verdicts if not one.finding.passed]
    shown = failing[0] if failing else verdicts[0]
    said, metadata = shown.finding.said, _metadata(check, shown.finding)
    if len(verdicts) > 1:
        said = f"{shown.partition}: {said}; it holds in {len(verdicts) - len(failing)} of {len(verdicts)} partitions"
        metadata = {**metadata, "partitions": _partitions_table(verdicts)}
    return dg.AssetCheckResult(
        check_name=check.name,
        passed=not failing,
        severity=dg.AssetCheckSeverity[check.severity.upper()],
        description=said,
        metadata=metadata,
    )


def _partitions_table(verdicts: Sequence[_Verdict]) -> dg.MetadataValue:
    """Return the verdicts by partition, failures first, as many as are read."""
    shown = sorted(verdicts, key=lambda one: one.finding.passed)[:SHOWN]
    records = [
        dg.TableRecord({"partition": one.partition, "holds": one.finding.passed, "said": one.finding.said})
        for one in shown
    ]
    columns = [dg.TableColumn("partition", "string"), dg.TableColumn("holds", "bool"), dg.TableColumn("said", "string")]
    return dg.MetadataValue.table(records, dg.TableSchema(columns=columns))


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


def _judged(
    instance: dg.DagsterInstance, store: ResultStore, evaluation: Evaluation, partition: str, checks: list[Check]
) -> list[_Verdict]:
    """Return the verdict of each check on the newest results of a partition."""
    key = dg.AssetKey([evaluation.name, RESULTS])
    newest = next(materialised(instance, key, partition), None)
    if newest is None or not newest.path.exists():
        raise DspexError(f"{evaluation.name} has no results of {partition!r}; materialise them")
    try:
        trials = newest.trials(checks)
    except UNREADABLE as error:
        raise damaged(newest.path, error) from error
    folder = store.datasets(instance, evaluation.name, partition)
    verdicts: list[_Verdict] = []
    for check in checks:
        baseline = (
            find_baseline(instance, folder, newest, dg.AssetCheckKey(key, check.name), check)
            if isinstance(check, NoRegression)
            else ""
        )
        finding = judge(check, trials, score_range=evaluation.score_range, baseline=baseline)
        verdicts.append(_Verdict(partition=partition, results=newest, finding=finding))
    return verdicts


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
            f"{finding.fix or _ADVICE[type(check)]}. TARGET is what `dspex evaluate` is given."
        )
    return metadata
