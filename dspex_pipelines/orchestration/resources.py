"""What the ops reach outside Dagster through: the worker pool, the store of results, the progress."""

import contextlib
import os
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field, PrivateAttr

from dspex_pipelines import telemetry
from dspex_pipelines.bridge.addresses import check_dialled
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.bridge.local_pool import lease
from dspex_pipelines.engine.executor import Progress
from dspex_pipelines.engine.journal.journal import Journal
from dspex_pipelines.engine.recycling import MAX_RSS_MB, Recycling
from dspex_pipelines.engine.worker_options import SLOTS
from dspex_pipelines.errors import InvalidValue, PoolUnreachable
from dspex_pipelines.model.usage import Usage
from dspex_pipelines.orchestration.importing import import_as_loaded
from dspex_pipelines.redaction import LISTED, learn_environment

JOURNAL_URL = "DSPEX_JOURNAL_URL"
"""Environment variable: the journal of every store that names none, on the command line and in Dagster alike."""


class WorkerPoolResource(dg.ConfigurableResource[Any]):
    """The pool that runs trials: one at an address, or a local one that starts and ends by itself."""

    address: str = Field(
        default="",
        description="unix:/path or host:port of a bridge; empty: a local pool, started when needed.",
    )
    workers: int = Field(default=0, description="Workers of a local pool; 0: one for each core.")
    slots: int = Field(default=SLOTS, description="Trials that one local worker runs at once.")
    idle_s: float = Field(default=60.0, description="A local pool ends after so long without a client.")
    max_rss_mb: int = Field(
        default=MAX_RSS_MB,
        description="Resident memory in MiB after which a local worker takes no more trials, finishes those that it "
        "has and is replaced, so that what programs leak is given back; 0: no limit. A worker that was as large at its "
        "first answer stays until that has doubled.",
    )
    max_trials: int = Field(
        default=0, description="Trials after which a local worker is replaced in the same way; 0: no limit."
    )
    environment: dict[str, str] = Field(
        default_factory=dict[str, str],
        description="Variables of a local pool's processes besides those of the run's own. Give secrets as EnvVar: it "
        "is the variable's name that is shown and recorded.",
    )
    secrets: list[str] = Field(
        default_factory=list[str],
        description="Names of variables whose values are taken out of all that is recorded, though they look like no "
        "secret's; those of keys, tokens and passwords are anyway.",
    )
    connect_timeout_s: float = Field(default=10.0, description="How long to wait for the bridge.")

    _address: str = PrivateAttr(default="")
    _unreachable: PoolUnreachable | None = PrivateAttr(default=None)

    @property
    def name(self) -> str:
        """Its address, or the variable that holds it; empty for a local pool."""
        return self.address.env_var_name if isinstance(self.address, dg.EnvVar) else self.address

    @contextlib.contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator["WorkerPoolResource", None, None]:
        """Hold the local pool for as long as the step (in one process: the run) lasts."""
        self._unreachable = None
        import_as_loaded(context.run)
        telemetry.check()
        environment = self._environment()
        learn_environment({**os.environ, **environment})
        if self.address:
            check_dialled(self.address, field="worker_pool.address")
            if self.environment:
                fix = "a pool at an address has the environment that it was started in: set them there"
                raise InvalidValue(field="worker_pool.environment", value=sorted(self.environment), fix=fix)
            self._address = self.address
            yield self
            return
        recycling = Recycling(max_rss_mb=self.max_rss_mb, max_trials=self.max_trials)
        with lease(
            workers=self.workers,
            slots=self.slots,
            idle_s=self.idle_s,
            recycling=recycling,
            environment=environment,
        ) as local:
            self._address = local.address
            yield self

    def _environment(self) -> dict[str, str]:
        """Return what the pool's processes find besides the environment of this one."""
        if not self.secrets:
            return dict(self.environment)
        listed = [name for name in os.environ.get(LISTED, "").split(",") if name]
        return {**self.environment, LISTED: ",".join(dict.fromkeys([*listed, *self.secrets]))}

    @contextlib.asynccontextmanager
    async def connect(self, weight: int = 1) -> AsyncGenerator[PoolClient]:
        """Open the client, of a *weight* beside others.

        Raises `PoolUnreachable` or `ProtocolMismatch`, which say what to do.
        """
        if self._unreachable is not None:
            raise self._unreachable
        async with contextlib.AsyncExitStack() as stack:
            address = self._address or self.address
            client = PoolClient(address, weight=weight, connect_timeout_s=self.connect_timeout_s)
            try:
                await stack.enter_async_context(client)
            except PoolUnreachable as error:
                # The run fails for it; its other steps, which are tried all the same, need not wait again.
                self._unreachable = error
                raise
            yield client


class ResultStore(dg.ConfigurableResource[Any]):
    """Where data sets, the journal and results lie: below one folder."""

    root: str = Field(default="", description="The folder; empty: `dspex` in the Dagster instance's storage.")
    journal_url: str = Field(
        default="",
        description="SQLAlchemy URL of the journal, such as postgresql+psycopg://user@host/name; "
        "empty: that of DSPEX_JOURNAL_URL, or an SQLite file in that folder.",
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
        url = self.journal_url or os.environ.get(JOURNAL_URL)
        return Journal(url or str(self.folder(instance) / "journal.sqlite"))


class ProgressReporter:
    """Tells how far a `run_trials` step is. This one tells nobody."""

    def started(self, partition: str, planned: int, total: int) -> None:
        """A batch of *planned* trials begins, of *total* that the partition has."""

    def moved(self, progress: Progress) -> None:
        """Outcomes have come in since the last call."""

    def used(self, usage: Usage) -> None:
        """What the batch's trials have used so far; told before `moved`."""

    def waits(self, why: str, for_s: float) -> None:
        """No trial has ended for *for_s* seconds, because of what *why* says of a model."""

    def warns(self, what: str, about: str) -> None:
        """The user should know before the run is over; *about* is the same where only the numbers are others."""

    def hedged(self, trials: int, won: int) -> None:
        """So many of the batch's trials had a second copy, *won* of them an answer from it first; told before `ended`.

        Not told where trials have none.
        """

    def ended(self, *, complete: bool, reused: int, rescored: int) -> None:
        """The batch is over: all of it, or what its budget was enough for.

        So many outcomes are of earlier runs, and so many have outputs of earlier runs that were scored again.
        """


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
