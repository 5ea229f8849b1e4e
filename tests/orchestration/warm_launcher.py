"""Starts runs at once: the shipped launcher's processes import Dagster anew, which takes seconds for each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._config.config_schema import UserConfigSchema
from dagster._core.execution.api import execute_run
from dagster._core.instance import InstanceRef
from dagster._core.launcher import LaunchRunContext, RunLauncher
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from dagster._utils.hosted_user_process import recon_job_from_origin

from dspex_pipelines.orchestration.executor import PRELOADED


class WarmRunLauncher(RunLauncher[Any], ConfigurableClass):
    """Each run is a process of its own, forked from one that has everything imported."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*PRELOADED, __name__, "tests.orchestration.limited"])
        super().__init__()

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> WarmRunLauncher:
        return cls(inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        ref = self._instance.get_ref()
        self._context.Process(target=_execute, args=(context.dagster_run.run_id, ref)).start()

    def terminate(self, run_id: str) -> bool:
        return False


def _execute(run_id: str, ref: InstanceRef) -> None:
    with dg.DagsterInstance.from_ref(ref) as instance:
        run = instance.get_run_by_id(run_id)
        assert run
        assert run.job_code_origin
        execute_run(recon_job_from_origin(run.job_code_origin), run, instance)
