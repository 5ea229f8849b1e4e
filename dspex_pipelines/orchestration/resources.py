"""What the ops reach outside Dagster through: the worker pool, the store of results, the progress."""

import contextlib
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field, PrivateAttr

from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.bridge.local_pool import lease
from dspex_pipelines.engine.executor import Progress
from dspex_pipelines.engine.journal import Journal

SLOTS = 256


class WorkerPoolResource(dg.ConfigurableResource[Any]):
    """The pool that runs trials: one at an address, or a local one that starts and ends by itself."""

    address: str = Field(
        default="",
        description="unix:/path or host:port of a bridge; empty: a local pool, started when needed.",
    )
    workers: int = Field(default=0, description="Workers of a local pool; 0: one for each core.")
    slots: int = Field(default=SLOTS, description="Trials that one local worker runs at once.")
    idle_s: float = Field(default=60.0, description="A local pool ends after so long without a client.")
    connect_timeout_s: float = Field(default=10.0, description="How long to wait for the bridge.")

    _address: str = PrivateAttr(default="")

    @contextlib.contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator["WorkerPoolResource", None, None]:
        """Hold the local pool for as long as the step (in one process: the run) lasts."""
        del context
        if self.address:
            self._address = self.address
            yield self
            return
        with lease(workers=self.workers or None, slots=self.slots, idle_s=self.idle_s) as local:
            self._address = local.address
            yield self

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncGenerator[PoolClient]:
        """Open the client; raises `PoolUnreachable` or `ProtocolMismatch`, which say what to do."""
        async with PoolClient(self._address or self.address, connect_timeout_s=self.connect_timeout_s) as client:
            yield client


class ResultStore(dg.ConfigurableResource[Any]):
    """Where data sets, the journal and results lie: below one folder."""

    root: str = Field(default="", description="The folder; empty: `dspex` in the Dagster instance's storage.")
    journal_url: str = Field(
        default="",
        description="SQLAlchemy URL of the journal, such as postgresql+psycopg://user@host/name; "
        "empty: an SQLite file in that folder.",
    )

    def folder(self, instance: dg.DagsterInstance) -> Path:
        """Return the root folder."""
        return Path(self.root or Path(instance.storage_directory()) / "dspex")

    def datasets(self, instance: dg.DagsterInstance, evaluation: str, partition: str) -> Path:
        """Return the folder of a partition's data sets."""
        return self.folder(instance) / "datasets" / evaluation / partition

    def results(self, instance: dg.DagsterInstance, evaluation: str, partition: str) -> Path:
        """Return the folder with a folder for each version of a partition's results."""
        return self.folder(instance) / "results" / evaluation / partition

    def journal(self, instance: dg.DagsterInstance) -> Journal:
        """Return the journal, not yet open."""
        return Journal(self.journal_url or f"sqlite:///{self.folder(instance) / 'journal.sqlite'}")


class ProgressReporter:
    """Tells how far a `run_trials` step is. This one tells nobody."""

    def started(self, partition: str, planned: int) -> None:
        """A batch of *planned* trials begins."""

    def moved(self, progress: Progress) -> None:
        """Outcomes have come in since the last call."""

    def ended(self, *, complete: bool) -> None:
        """The batch is over: all of it, or what its budget was enough for."""


@dataclass(frozen=True, slots=True)
class ProgressResource:
    """Progress beside the run's log; the command line puts its progress bar here.

    It is a plain object because Dagster rebuilds configurable resources from their config alone.
    """

    reporter: ProgressReporter = field(default_factory=ProgressReporter)
    """Who is told."""

    @classmethod
    def to(cls, reporter: ProgressReporter) -> "ProgressResource":
        """Return the resource that tells *reporter*."""
        return cls(reporter)
