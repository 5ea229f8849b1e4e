"""`dspex pool` and `dspex worker`: pools that are listed, started and ended, and workers that join one."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Annotated

import typer

from dspex_pipelines.cli.output import AsJson, console, errors
from dspex_pipelines.engine.recycling import MAX_RSS_MB, Recycling
from dspex_pipelines.engine.worker_options import (
    MAX_RSS_MB_HELP,
    MAX_TRIALS_HELP,
    QUARANTINE_HELP,
    SLOTS,
    SLOTS_HELP,
)
from dspex_pipelines.errors import DspexError, InvalidValue

pool_app = typer.Typer(
    help="The worker pools of this machine.\n\nThose that evaluations start by themselves, and those that stay.",
    no_args_is_help=True,
)

Slots = Annotated[int, typer.Option(help=SLOTS_HELP)]
MaxRssMb = Annotated[int, typer.Option(help=MAX_RSS_MB_HELP)]
MaxTrials = Annotated[int, typer.Option(help=MAX_TRIALS_HELP)]


@pool_app.command("start")
def start(
    *,
    address: Annotated[
        str, typer.Option(help="Where: unix:/path, which is yours alone, or a loopback host:port (port 0: any free).")
    ] = "127.0.0.1:50051",
    workers: Annotated[
        int, typer.Option(metavar="N", show_default=False, help="Worker processes; 0: one for each core.")
    ] = 0,
    slots: Slots = SLOTS,
    max_rss_mb: MaxRssMb = MAX_RSS_MB,
    max_trials: MaxTrials = 0,
    idle_s: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", show_default=False, help="End after so many seconds without a client; 0: never."
        ),
    ] = 0.0,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once its workers are up, and leave it to `dspex pool stop`.")
    ] = False,
) -> None:
    """Start a pool that stays, for evaluations that are told its address.

    Programs run in the folder and environment that it is started in. Ctrl-C or SIGTERM: no more trials are taken, and
    it ends once those that were are answered; a second one ends it at once.
    """
    from dspex_pipelines.bridge.stated_pool import StatedPool, leave_running, run_here

    pool = StatedPool(
        address=address,
        workers=workers,
        slots=slots,
        idle_s=idle_s,
        recycling=Recycling(max_rss_mb=max_rss_mb, max_trials=max_trials),
    )
    if detach:
        started = leave_running(pool)
        _say_address(started.address)
        ends = f"dspex pool stop {started.address}"
        _say(f"pid {started.pid}, log {started.runtime_dir / 'pool.log'}; it stays until: {ends}")
        return
    if code := run_here(pool, _tell):
        sys.exit(code)
    _say("The pool has ended.")


@pool_app.command("status")
def status(*, as_json: AsJson = False) -> None:
    """List the pools of this machine: who works in them, how much there is to do, and how calls to models go."""
    from dspex_pipelines.cli.pools import ask_pools, pool_document, print_pool

    pools = ask_pools()
    if as_json:
        print(json.dumps([pool_document(pool) for pool in pools], indent=2))
        return
    for pool in pools:
        print_pool(pool, console)
    if not pools:
        console.print("No local pool runs; the next evaluation starts one.")


@pool_app.command("stop")
def stop(
    pool: Annotated[str, typer.Argument(help="Its address or pid; may be left out where only one runs.")] = "",
    *,
    every: Annotated[bool, typer.Option("--all", help="End all pools of yours on this machine.")] = False,
) -> None:
    """End a pool of yours on this machine, and its workers with it."""
    from dspex_pipelines.bridge import local_pool

    pools = local_pool.status()
    if not any(pool in (one.address, str(one.pid)) for one in pools):
        # It may be the one that is just being started.
        local_pool.wait_for_starts()
        pools = local_pool.status()
    chosen = [one for one in pools if pool in ("", one.address, str(one.pid))]
    running = "\n".join(f"  pid {one.pid}  {one.address}" for one in pools) or "  none"
    if pool and not chosen:
        raise InvalidValue(field="pool", value=pool, fix=f"give the address or pid of one that runs:\n{running}")
    if len(chosen) > 1 and not every:
        raise DspexError(f"{len(chosen)} pools run; give the address or pid of one, or --all:\n{running}")
    if not chosen:
        console.print("No pool of yours runs on this machine.")
        return
    console.print(f"{local_pool.stop(chosen)} ended")


def worker(
    address: Annotated[str, typer.Argument(help="The bridge: unix:/path or host:port.")],
    *,
    count: Annotated[int, typer.Option(help="Worker processes.")] = 1,
    slots: Slots = SLOTS,
    max_rss_mb: MaxRssMb = MAX_RSS_MB,
    max_trials: MaxTrials = 0,
    quarantine: Annotated[bool, typer.Option("--quarantine", help=QUARANTINE_HELP)] = False,
    wait_s: Annotated[float, typer.Option(help="Seconds to wait for the bridge, now and whenever it has gone.")] = 20.0,
) -> None:
    """Join workers to a pool that runs elsewhere.

    They stay in the foreground, and run programs in this folder and environment.

    One that ends is replaced; when the bridge goes they look for it
    again. Ctrl-C or SIGTERM: no more trials are taken, and those that run are finished; a second one ends them at once.
    """
    from dspex_pipelines.bridge.crew import Crew

    recycling = Recycling(max_rss_mb=max_rss_mb, max_trials=max_trials)
    Crew(
        address, count=count, slots=slots, quarantine=quarantine, recycling=recycling, wait_s=wait_s, say=_say_aside
    ).run()


def _tell(message: Mapping[str, object]) -> None:
    """Print what a pool in the foreground says of itself."""
    match message:
        case {"error": reason}:
            raise DspexError(f"the pool did not start: {reason}")
        case {"address": address}:
            _say_address(str(address))
            _say("Ctrl-C ends it.")
        case {"draining": _}:
            _say("Draining: what was accepted is finished. Again, and it ends at once.")
        case {"log": log}:
            _say(f"The pool's log: {log}")
        case _:
            pass


def _say_address(address: str) -> None:
    _say(f"The pool serves at {address}")
    _say(f"  dspex evaluate --pool-address {address}")
    _say(f"  in Dagster: worker_pool: {{config: {{address: '{address}'}}}}")


def _say(text: str) -> None:
    console.print(text, soft_wrap=True)


def _say_aside(text: str) -> None:
    errors.print(text, soft_wrap=True)
