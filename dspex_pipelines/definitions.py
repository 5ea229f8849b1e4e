"""The code location: what Dagster loads."""

from __future__ import annotations

import warnings
from pathlib import Path

import dagster as dg

import dspex_pipelines.defs


def shipped_definitions() -> dg.Definitions:
    """Return what the folders of `dspex_pipelines.defs` declare.

    As `dagster.load_from_defs_folder` does, which asks the project's pyproject.toml: an installed package has none.
    """
    tree = dg.ComponentTree.from_module(dspex_pipelines.defs, project_root=Path(__file__).parents[1])
    with warnings.catch_warnings():
        # Of Dagster about itself.
        warnings.simplefilter("ignore", (dg.BetaWarning, dg.PreviewWarning))  # pyright: ignore[reportArgumentType]
        return tree.build_defs()


defs = shipped_definitions()
