"""What every benchmark prints: one JSON line for each case, held against a reference of the same run."""

from __future__ import annotations

import json


def report(
    *,
    benchmark: str,
    case: str,
    value: float,
    unit: str,
    reference: str,
    reference_value: float,
    ratio: float | None = None,
    **more: object,
) -> None:
    """Print one measurement; *ratio* is value over reference, unless it was found in another way."""
    line = {
        "benchmark": benchmark,
        "case": case,
        "value": round(value, 3),
        "unit": unit,
        "reference": reference,
        "reference_value": round(reference_value, 3),
        "ratio": round(value / reference_value if ratio is None else ratio, 4),
        **more,
    }
    print(json.dumps(line), flush=True)
