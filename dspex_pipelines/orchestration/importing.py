"""Programs are imported in steps, and in the local pools they start, as where Dagster has loaded the definitions."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from dspex_pipelines.wire.import_path import add_folder


def import_as_loaded(run: dg.DagsterRun | None) -> None:
    """Put onto this process's path the folder that Dagster has the code of *run* from, and the working folder.

    Dagster has the former there only while it loads; programs are looked for later, and in other processes.
    """
    add_folder(Path.cwd())
    origin = None if run is None else run.job_code_origin
    folder = None if origin is None else getattr(origin.repository_origin.code_pointer, "working_directory", None)
    if folder:
        add_folder(Path(folder))
