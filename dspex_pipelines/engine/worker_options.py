"""What a worker can be told by whoever starts it: the same defaults and words on every command line."""

from __future__ import annotations

from dspex_pipelines.errors import InvalidValue

SLOTS = 256
"""Trials that a worker runs at once."""
MOST_SLOTS = 16_384
SLOTS_HELP = "Trials that a worker runs at once."
MAX_RSS_MB_HELP = "Resident memory in MiB after which a worker is replaced; 0 for no limit."
MAX_TRIALS_HELP = "Trials after which a worker is replaced; 0 for no limit."
QUARANTINE_HELP = "Run only trials that are suspected of killing their worker."


def check_slots(slots: int) -> None:
    """Raise `InvalidValue` for a number that no bridge takes."""
    if not 1 <= slots <= MOST_SLOTS:
        raise InvalidValue(field="slots", value=slots, fix=f"give 1 to {MOST_SLOTS:,} slots of a worker")
