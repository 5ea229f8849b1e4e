"""The same in Dagster, with a key by EnvVar that only the pool's processes have."""

import dagster as dg
from leaks import ALONE, BROKEN, UNREAD

from dspex_pipelines import build_evaluation
from dspex_pipelines.orchestration.resources import WorkerPoolResource

POOL = WorkerPoolResource(workers=1, environment={"CANARY_GIVEN_KEY": dg.EnvVar("CANARY_OF_DAGSTER")})
defs = dg.Definitions.merge(
    *(build_evaluation(one, resources={"worker_pool": POOL}) for one in (ALONE, BROKEN, UNREAD))
)
