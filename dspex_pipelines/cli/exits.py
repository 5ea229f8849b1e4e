"""The exit codes of `dspex`; 0 is done."""

from __future__ import annotations

PROBLEM = 1
"""`dspex doctor` has found a problem, or the trial that `dspex replay` has run failed or took too long."""
REFUSED = 2
"""A value was wrong, or what was asked for could not be done; the message says why."""
MISSED = 3
"""`dspex evaluate` is done, and the results are not what `--fail-under` or `--fail-on-errors` asks for."""
INTERRUPTED = 130
"""A signal ended it; what was done by then is kept."""
