"""Source code as a syntax tree."""

from __future__ import annotations

import ast
import gc


def parsed(source: str | bytes) -> ast.Module:
    """Return the tree of *source*; raises `SyntaxError` or `ValueError` as `ast.parse` does.

    That must not begin anew while it runs, or it raises `SystemError` (Python 3.11, python/cpython#106905). What is
    collected meanwhile may log a traceback, for which Python parses the line: so nothing is.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        if collects:
            gc.enable()
