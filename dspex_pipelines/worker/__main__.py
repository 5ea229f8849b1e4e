"""`python -m dspex_pipelines.worker`: attach to a bridge and run programs until it goes away.

What is imported here is what isolated trials start with, so gRPC is not.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from dspex_pipelines.engine.program_versions import know_distributions
from dspex_pipelines.engine.recycling import MAX_RSS_MB, Recycling
from dspex_pipelines.engine.worker_options import (
    MAX_RSS_MB_HELP,
    MAX_TRIALS_HELP,
    QUARANTINE_HELP,
    SLOTS,
    SLOTS_HELP,
)
from dspex_pipelines.errors import DspexError
from dspex_pipelines.wire.import_path import add_folder
from dspex_pipelines.wire.scribe import Scribe
from dspex_pipelines.worker.forks import Forks
from dspex_pipelines.worker.isolated import serve_one


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m dspex_pipelines.worker", description=__doc__)
    parser.add_argument("--address", required=True, help="the bridge: unix:/path or host:port")
    parser.add_argument("--worker-id", required=True, help="a name that no other worker has")
    parser.add_argument("--slots", type=int, default=SLOTS, help=SLOTS_HELP)
    parser.add_argument("--quarantine", action="store_true", help=QUARANTINE_HELP)
    parser.add_argument("--max-rss-mb", type=int, default=MAX_RSS_MB, help=MAX_RSS_MB_HELP)
    parser.add_argument("--max-trials", type=int, default=0, help=MAX_TRIALS_HELP)
    arguments = parser.parse_args()
    try:
        recycling = Recycling(max_rss_mb=arguments.max_rss_mb, max_trials=arguments.max_trials)
    except DspexError as error:
        sys.exit(f"error: {error}")
    add_folder(Path.cwd())
    set_environment()
    # What programs print goes where the worker's log goes, without secrets.
    scribe = Scribe.start()
    # Now, while no trial's time runs.
    know_distributions()
    forks = Forks.start(serve_one)
    # Or a segmentation fault ends now and then what a program forks: gRPC sees to its own state there, of which threads
    # that are not there are making use. Said here, as isolated trials have no gRPC but their program's own.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

    from dspex_pipelines.worker.serving import run

    run(
        address=arguments.address,
        worker_id=arguments.worker_id,
        slots=arguments.slots,
        quarantine=arguments.quarantine,
        recycling=recycling,
        forks=forks,
        scribe=scribe,
    )


def set_environment() -> None:
    """Say what libraries are to do without being asked, where the user has not."""
    # Or DSPy's client fetches a list of prices when it is imported, in every worker anew.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")


if __name__ == "__main__":
    main()
