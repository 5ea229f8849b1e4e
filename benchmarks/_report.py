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
    """Print one measurement, to six digits; *ratio* is value over reference, unless it was found in another way."""
    line = {
        "benchmark": benchmark,
        "case": case,
        "value": float(f"{value:.6g}"),
        "unit": unit,
        "reference": reference,
        "reference_value": float(f"{reference_value:.6g}"),
        "ratio": round(value / reference_value if ratio is None else ratio, 4),
        **more,
    }
    print(json.dumps(line), flush=True)
