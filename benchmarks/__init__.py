"""Measurements: `make bench BENCH=name`. Each prints JSON lines; a module with an underscore helps the others."""
