"""A code location: two evaluations and what has nothing to do with them."""

import os

import dagster as dg

from dspex_pipelines.model.calls import Price
from dspex_pipelines.orchestration.build import build_evaluation
from dspex_pipelines.orchestration.resources import ResultStore, WorkerPoolResource
from tests.orchestration.declared import SLOTS, WORKERS, declare, rows

resources = {
    "worker_pool": WorkerPoolResource(workers=WORKERS, slots=SLOTS),
    "store": ResultStore(root=os.environ.get("SERVED_STORE", "")),
}
topics = [{**row, "topic": "text" if row["x"] < 10 else "data"} for row in rows(20)]
served = declare(
    "fifth_raises",
    topics,
    name="served",
    partition_by="topic",
    partitions=("text", "data"),
    tags={"team": "search"},
)
priced = declare(
    "fifth_raises",
    topics,
    name="priced",
    partition_by="topic",
    partitions=("text", "data"),
    prices=(Price(model="openai/gpt-4o-mini", input_usd=0.15, output_usd=0.6),),
)
other = declare("fifth_raises", name="other")


@dg.asset(key=["finance", "evaluation"])
def unrelated() -> int:
    return 1


own_job = dg.define_asset_job("own_job", selection="key:served/evaluation")

defs = dg.Definitions.merge(
    build_evaluation(served, resources=resources),
    build_evaluation(priced, resources=resources),
    build_evaluation(other, resources=resources),
    dg.Definitions(assets=[unrelated], jobs=[own_job]),
)
