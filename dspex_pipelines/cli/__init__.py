"""The command line: `dspex`."""

from dspex_pipelines.cli.commands import app

__all__ = ["app"]
