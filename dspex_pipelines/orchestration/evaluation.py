"""The evaluation asset: plan_trials ─▶ run_trials × N (dynamic) ─▶ collect_evaluation."""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg

from dspex_pipelines.analysis.leaderboard import leaderboard
from dspex_pipelines.analysis.results import collect_trials
from dspex_pipelines.analysis.trials_files import TrialsFiles
from dspex_pipelines.engine.batch import BatchSummary, planned_outcomes, run_batch
from dspex_pipelines.engine.executor import Progress
from dspex_pipelines.engine.journal.ledger import Ledger, why_stopped
from dspex_pipelines.engine.program_versions import metric_version, program_version, unchanged_files
from dspex_pipelines.engine.programs import inspect_program
from dspex_pipelines.engine.running_scores import RunningScores
from dspex_pipelines.engine.spans import RunSpans
from dspex_pipelines.errors import DspexError
from dspex_pipelines.model.budget import Budget
from dspex_pipelines.model.calls import CallPolicy
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.model.hedging import Hedging, hedged_in_words
from dspex_pipelines.model.payload import digest_of
from dspex_pipelines.model.plan import Batch, Plan
from dspex_pipelines.model.search import Search
from dspex_pipelines.model.trial import MetricSpec, ProgramSpec
from dspex_pipelines.model.usage import Usage
from dspex_pipelines.orchestration.config import (
    EvaluationConfig,
    Reuse,
    checked,
    chosen_configurations,
    launchpad_config,
    search_of,
    trials_per_op,
)
from dspex_pipelines.orchestration.data.datasets import load_examples, planned_examples
from dspex_pipelines.orchestration.data.partitions import backfill_policy, partitions_def, version_of
from dspex_pipelines.orchestration.failing import step_failure
from dspex_pipelines.orchestration.freshness import stale_results
from dspex_pipelines.orchestration.importing import import_as_loaded
from dspex_pipelines.orchestration.io_managers import TRIALS_FILE, EvaluatedPartition
from dspex_pipelines.orchestration.leaderboard import board_metadata
from dspex_pipelines.orchestration.manifest import Manifest
from dspex_pipelines.orchestration.progress import ToldProgress
from dspex_pipelines.orchestration.references import code_references
from dspex_pipelines.orchestration.resources import (
    ProgressResource,
    ResultStore,
    WorkerPoolResource,
)
from dspex_pipelines.orchestration.secrecy import without_secrets
from dspex_pipelines.orchestration.summary import (
    TrialsFile,
    hedging_metadata,
    how_to_go_on,
    most_failures,
    trials_metadata,
    usage_metadata,
)
from dspex_pipelines.orchestration.tags import POOL, RESULTS
from dspex_pipelines.orchestration.waiting import Waiting
from dspex_pipelines.telemetry import run_spans
from dspex_pipelines.wire import loop


def evaluation_asset(evaluation: Evaluation, *, run_tags: Mapping[str, str]) -> dg.AssetsDefinition:
    """Return the graph asset that runs every planned trial of a partition and keeps one row for each.

    Its planning step carries *run_tags*: from there the run coordinator gives them to every run of it.
    """
    plan_trials = _plan_op(evaluation, run_tags)

    def to_plan(config: EvaluationConfig) -> dict[str, Any]:
        return {"plan_trials": {"config": config.model_dump(mode="json")}}

    to_plan.__annotations__["config"] = launchpad_config(evaluation)

    @dg.graph_asset(
        name=RESULTS,
        key_prefix=evaluation.name,
        ins={"dataset": dg.AssetIn(key=dg.AssetKey([evaluation.name, "dataset"]))},
        partitions_def=partitions_def(evaluation),
        backfill_policy=backfill_policy(evaluation),
        group_name=evaluation.name,
        kinds={"parquet"},
        owners=list(evaluation.owners),
        config=dg.config_mapping(to_plan),
        code_version=_code_version(evaluation),
        automation_condition=stale_results(),
        metadata=code_references(evaluation),
        description=evaluation.description or f"Every trial of {evaluation.name}, one row each.",
    )
    def trials(dataset: Any) -> Any:
        manifest, batches = plan_trials.alias("plan_trials")(dataset)

        def run(batch: Any) -> Any:
            return run_trials(manifest, batch)

        done = batches.map(run)
        return collect_evaluation(manifest, done.collect())

    return trials


def _code_version(evaluation: Evaluation) -> str | None:
    """Return the digest of program, space, metrics and search; none where one cannot be found, as planning will say."""
    try:
        metrics = [[metric.name, metric.entry_point, metric.version] for metric in _metrics(evaluation)]
        search = [[evaluation.search.samples, evaluation.search.seed]] if evaluation.search != Search() else []
        return digest_of([_program(evaluation).digest, evaluation.space.digest, metrics, *search]).hex()
    except DspexError:
        return None


def _plan_op(evaluation: Evaluation, run_tags: Mapping[str, str]) -> dg.OpDefinition:
    @dg.op(
        name=f"{evaluation.name}__plan_trials",  # definitions of several evaluations live side by side
        ins={"dataset": dg.In(dg.Nothing)},
        out={"manifest": dg.Out(str), "batches": dg.DynamicOut(dict)},
        tags=run_tags,
        description="Works out every trial of the run, and says so before any of them runs.",
    )
    def plan_trials(context: dg.OpExecutionContext, config: EvaluationConfig, store: ResultStore) -> Iterator[Any]:
        with without_secrets():
            try:
                limits = checked(config, evaluation, dict(context.run.tags))
                plans = [_plan(context, evaluation, config, store, partition) for partition in context.partition_keys]
            except DspexError as error:
                raise step_failure(context.instance, context.run.run_id, error) from error
        about = {
            "calls": evaluation.calls.to_document(),
            "score_range": evaluation.score_range,
            "files": list(map(str, evaluation.files)),
            **limits,
        }
        yield dg.Output(Manifest.text_of(plans, about), output_name="manifest")
        size = trials_per_op(config, sum(plan.total for plan in plans))
        steps = 0
        for number, plan in enumerate(plans):
            context.log.info(
                f"{plan.partition}: {plan.total:,} trials: {len(plan.configurations)} configurations × {plan.rows} "
                f"examples × {plan.repeats} repeats, {size:,} in a step, {limits['max_concurrency']} at a time"
            )
            for batch in plan.batches(size):
                yield dg.DynamicOutput(
                    {"plan": number, "start": batch.start, "stop": batch.stop},
                    mapping_key=f"batch_{steps:06d}",
                    output_name="batches",
                )
                steps += 1

    return plan_trials


def _plan(
    context: dg.OpExecutionContext,
    evaluation: Evaluation,
    config: EvaluationConfig,
    store: ResultStore,
    partition: str,
) -> Plan:
    search = search_of(config, evaluation)
    content = _dataset_digest(context.instance, evaluation, partition)
    folder = store.datasets(context.instance, evaluation.name, partition)
    examples = load_examples(folder, content, limit=config.limit or None)
    import_as_loaded(context.run)
    inspect_program(
        evaluation.program,
        evaluation.init,
        inputs=evaluation.dataset.inputs,
        variables=evaluation.space.names,
    )
    return Plan(
        evaluation=evaluation.name,
        partition=partition,
        dataset_digest=content,
        rows=len(examples),
        limit=config.limit,
        program=_program(evaluation),
        metrics=_metrics(evaluation),
        space_json=evaluation.space.to_json(),
        configurations=chosen_configurations(config, search, evaluation.space),
        repeats=config.repeats,
        seed=search.seed,
        generation=context.run.root_run_id or context.run_id if config.reuse is Reuse.none else "",
        failures_since=_started_at(context) if config.reuse is Reuse.successes else 0.0,
    )


def _started_at(context: dg.OpExecutionContext) -> float:
    """Return when the root run was made: its own failures are not run again by its retries."""
    record = context.instance.get_run_record_by_id(context.run.root_run_id or context.run_id)
    return record.create_timestamp.timestamp() if record is not None else time.time()


def _program(evaluation: Evaluation) -> ProgramSpec:
    return ProgramSpec(
        entry_point=evaluation.program,
        init=evaluation.init,
        version=program_version(
            evaluation.program,
            evaluation.init,
            files=evaluation.files,
            declared=evaluation.version,
            environment=evaluation.environment,
        ),
        isolation=evaluation.isolation,
    )


def _metrics(evaluation: Evaluation) -> tuple[MetricSpec, ...]:
    return tuple(MetricSpec(entry_point=metric, version=metric_version(metric)) for metric in evaluation.metrics)


def _dataset_digest(instance: dg.DagsterInstance, evaluation: Evaluation, partition: str) -> str:
    """Return the digest of the newest materialised data set: what is read is what is recorded."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey([evaluation.name, "dataset"]), asset_partitions=[partition]),
        limit=1,
    ).records
    if not records or not (materialization := records[0].asset_materialization):
        raise DspexError(f"{evaluation.name}/dataset has no partition {partition!r} yet; materialise it first")
    return str(materialization.metadata["digest"].value)


@dg.op(
    ins={"manifest": dg.In(str), "batch": dg.In(dict)},
    out=dg.Out(dict),
    pool=POOL,
    tags={"dspex/step": "run_trials"},
    description="Runs the batch's trials through the worker pool; a trial's failure is an outcome.",
)
def run_trials(
    context: dg.OpExecutionContext,
    worker_pool: WorkerPoolResource,
    store: ResultStore,
    progress: dg.ResourceParam[ProgressResource],
    manifest: str,
    batch: dict[str, int],
) -> dict[str, Any]:
    """Run what the journal lacks of a batch."""
    told = Manifest(manifest)
    document, plan = told.rest, told.plan(batch["plan"])
    folder = store.datasets(context.instance, plan.evaluation, plan.partition)
    examples = planned_examples(folder, plan)
    reporter = progress.reporter
    piece = Batch(start=batch["start"], stop=batch["stop"])
    scores = RunningScores()
    log = ToldProgress(
        plan=plan, batch=piece, say=context.log.info, observe=context.log_event, started_at=_started_at(context)
    )
    budget = Budget(**document["budget"])
    hedging = Hedging(**document["hedging"]) if document.get("hedging") else None
    usage = Usage()
    bounds_usage = bool(budget.max_tokens or budget.max_cost_usd)
    warned: set[str] = set()
    files = unchanged_files(plan.program, list(map(Path, document.get("files", ()))))

    def wait(why: str, for_s: float) -> None:
        log.waits(why, for_s)
        reporter.waits(why, for_s)

    def warn() -> None:
        # A budget that does not hold is told at once; what it is too late for, with the sums at the end.
        for about, what in usage.warnings(budget).items() if bounds_usage else ():
            if about not in warned:
                warned.add(about)
                context.log.warning(what)
                reporter.warns(what, about)

    async def run(spans: RunSpans | None) -> BatchSummary:
        async with worker_pool.connect(document.get("weight", 1)) as pool, Waiting(pool.status, wait) as waiting:
            pool.traceparent = "" if spans is None else spans.root.traceparent

            def tell(now: Progress) -> None:
                waiting.moved()
                log.moved(now, usage, scores)
                reporter.used(usage)
                reporter.moved(now)
                warn()

            with store.journal(context.instance) as journal:
                return await run_batch(
                    plan=plan,
                    batch=piece,
                    examples=examples,
                    pool=pool,
                    journal=journal,
                    max_concurrency=document["max_concurrency"],
                    timeout_s=document["timeout_s"],
                    most_attempts=document["most_attempts"],
                    calls=CallPolicy.from_document(document["calls"]),
                    ledger=Ledger(journal, run_id=context.run_id, budget=budget),
                    usage=usage,
                    scores=scores,
                    hedging=hedging,
                    spans=spans,
                    check=files.check,
                    on_progress=tell,
                )

    reporter.started(plan.partition, batch["stop"] - batch["start"], plan.total)
    about = {"dspex.partition": plan.partition, "dspex.batch.start": batch["start"], "dspex.batch.stop": batch["stop"]}
    with without_secrets():
        try:
            with run_spans(plan.evaluation, run_id=context.run_id, attributes=about) as spans:
                summary = loop.run(run(spans))
        except DspexError as error:
            raise step_failure(context.instance, context.run.run_id, error) from error
    if hedging is not None:
        reporter.hedged(summary.hedged, summary.hedges_won)
    reporter.ended(complete=not summary.stopped, reused=summary.reused, rescored=summary.rescored)
    context.log.info(
        f"{summary.planned:,} trials: {summary.ran:,} run ({summary.failed:,} failed), "
        f"{summary.rescored:,} scored again, {summary.reused:,} reused, in {summary.elapsed_s:.1f} s"
    )
    if hedging is not None:
        context.log.info(hedged_in_words(summary.hedged, summary.hedges_won))
    for line in usage.lines():
        context.log.info(line.strip())
    for what in usage.warnings(budget).values():
        context.log.warning(what)
    if summary.stopped:
        context.log.warning(f"The run has stopped: {summary.stopped}. What is done is kept. {how_to_go_on(plan)}")
    return {"plan": batch["plan"], "usage": usage.to_document(), **asdict(summary)}


@dg.op(
    ins={"manifest": dg.In(str), "done": dg.In(list)},
    out=dg.Out(list, io_manager_key="trials_io_manager"),
    description="Gathers the outcome of every planned trial; refuses to make results of fewer, unless a budget "
    "stopped the run: then the results are partial and say so.",
)
def collect_evaluation(
    context: dg.AssetExecutionContext, store: ResultStore, manifest: str, done: list[dict[str, Any]]
) -> dg.Output[list[EvaluatedPartition]]:
    """Check the journal against the manifest and make the results of each partition."""
    told = Manifest(manifest)
    document, plans = told.rest, [told.plan(number) for number in range(len(told))]
    collected: list[EvaluatedPartition] = []
    with (
        without_secrets(),
        loop.rarely_collected(),
        ExitStack() as unfinished,
        store.journal(context.instance) as journal,
    ):
        stopped = why_stopped(journal, context.run.run_id)
        for number, plan in enumerate(plans):
            path = _results_file(context, store, plan)
            unfinished.callback(shutil.rmtree, path.parent, ignore_errors=True)
            try:
                folder = store.datasets(context.instance, plan.evaluation, plan.partition)
                examples = planned_examples(folder, plan)
                version = collect_trials(plan, planned_outcomes(plan, examples, journal, stopped=stopped), path)
            except DspexError as error:
                raise step_failure(context.instance, context.run.run_id, error) from error
            table = TrialsFile(path)
            batches = [batch for batch in done if batch["plan"] == number]
            counted = ("ran", "rescored", "elapsed_s", "hedged", "hedges_won")
            ran, rescored, elapsed_s, hedged, won = (sum(batch[what] for batch in batches) for what in counted)
            spent = Usage()
            for batch in batches:
                spent.merge(Usage.from_document(batch["usage"]))
            metadata = {
                **trials_metadata(plan, table, ran=ran, rescored=rescored, stopped=stopped, elapsed_s=elapsed_s),
                **_board_metadata(path, document["score_range"]),
                **usage_metadata(table, spent, Budget(**document["budget"])),
            }
            if document.get("hedging"):
                metadata |= hedging_metadata(hedged, won)
            context.add_asset_metadata(metadata, partition_key=plan.partition)
            if what := most_failures(metadata):
                context.log.warning(f"{plan.partition}: of {table.num_rows:,} trials {what}")
            collected.append(EvaluatedPartition(plan=plan, path=path, data_version=version))
        unfinished.pop_all()
    return dg.Output(collected, data_version=version_of({one.plan.partition: one.data_version for one in collected}))


def _results_file(context: dg.AssetExecutionContext, store: ResultStore, plan: Plan) -> Path:
    """Return where results are written that have no version yet; what this run has left there before is gone."""
    folder = store.results(context.instance, plan.evaluation, plan.partition) / f".{context.run.run_id}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder / TRIALS_FILE


def _board_metadata(path: Path, score_range: tuple[float, float]) -> Mapping[str, dg.MetadataValue]:
    """Return how the configurations compare on this partition; nothing where no metric has scored."""
    trials = TrialsFiles([path])
    if not len(trials) or not any(name.startswith("score.") for name in trials.columns):
        return {}
    worst, best = score_range
    return board_metadata(leaderboard(trials, score_range=(worst, best)))
