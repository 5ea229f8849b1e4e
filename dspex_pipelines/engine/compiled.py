"""The compiled code of a program's own modules: run only where it was compiled from the very source that is there.

Python takes compiled code for that of a source of the same size and second. One that is saved twice within a second, or
whose time is set back (`rsync -a`, `touch -d`), would run as it was before, under the version of what it is now. The
compiled code of these modules names its source's hash instead (PEP 552), which every Python checks from then on.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import BYTECODE_SUFFIXES, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType

_CHECKED = importlib.util.MAGIC_NUMBER + (0b11).to_bytes(4, "little")
"""What compiled code begins with that names the hash of its source, and is to be checked against it."""
_OF_NO_SOURCE = _CHECKED + bytes(8)
_COMPILED = tuple(BYTECODE_SUFFIXES)
_SHARED = ("site-packages", "dist-packages")


class CheckedLoader(SourceFileLoader):
    """Loads a module from its source, or from what was compiled of exactly that."""

    def get_data(self, path: str) -> bytes:
        """Return what is in a file; compiled code that does not name its source's hash is made anew, and names it."""
        if not path.endswith(_COMPILED):
            return super().get_data(path)
        data = b""
        with contextlib.suppress(OSError):
            data = super().get_data(path)
        return data if data.startswith(_CHECKED) else _OF_NO_SOURCE


class _Finder:
    """Has the modules in certain folders loaded so; where a module is found is for the finders after it to say."""

    def __init__(self) -> None:
        self.folders: tuple[str, ...] = ()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a module of one of the folders; None for any other."""
        # Two looks at the disk, as most of what a program imports is not its own.
        files = [file for folder in self.folders for file in _files(folder, name) if os.path.isfile(file)]  # noqa: PTH113 - of every import
        finders = sys.meta_path
        if not files or self not in finders:
            return None
        later = (finder.find_spec(name, path, target) for finder in finders[finders.index(self) + 1 :])
        spec = next((found for found in later if found is not None), None)
        # The loaders of others have caches of their own.
        if spec is not None and type(spec.loader) is SourceFileLoader and spec.loader.path in files:
            spec.loader = CheckedLoader(spec.loader.name, spec.loader.path)
        return spec


_finder = _Finder()


def check_compiled(top: str) -> None:
    """Have modules that lie where the top-level module or package *top* does, imported from now on, loaded so.

    That is so until the process ends: programs import some of their modules when they run. What is installed is left
    alone: there is too much of it to be read at every start, and whoever installs it anew compiles it anew.
    """
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        # Importing it tells.
        return
    if spec is None:
        return
    places = spec.submodule_search_locations
    folder = Path(next(iter(places)) if places else spec.origin or ".").parent
    resolved = folder.resolve()
    if resolved not in installed_folders() and resolved.name not in _SHARED:
        _finder.folders = tuple({*_finder.folders, str(folder), str(resolved)})
        if _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)


def runs_other_code(name: str) -> bool:
    """Return whether a module was imported, without such a check, from what was compiled of another source."""
    loader = getattr(getattr(sys.modules.get(name), "__spec__", None), "loader", None)
    if type(loader) is not SourceFileLoader:
        return False
    try:
        return loader.get_code(name) != loader.source_to_code(loader.get_data(loader.path), loader.path)
    except (ImportError, OSError, SyntaxError, ValueError, EOFError):
        # Importing it again tells.
        return True


@functools.cache
def installed_folders() -> tuple[Path, ...]:
    """Return where Python's own modules lie, and those that are installed."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple(Path(path).resolve() for path in map(sysconfig.get_path, names) if path)


def _files(folder: str, name: str) -> tuple[str, str]:
    base = f"{folder}{os.sep}{name.replace('.', os.sep)}"
    return f"{base}.py", f"{base}{os.sep}__init__.py"
