"""Which core runs: the one that was compiled, or its sources, which come to the same and are several times slower.

Python finds a compiled module before its source. The sources are used all the same with `TOKENCAKE_PURE=1`, and in a
checkout where a source has changed since it was compiled there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from importlib.util import source_hash
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
LIBRARY = "core__mypyc"  # what all compiled modules are in
DIGESTS = "core.json"  # of the sources that a checkout was compiled from, by their paths; a wheel has none
PURE = "TOKENCAKE_PURE"

COMPILED, SOURCES = "compiled core", "pure Python core"
STALE = f"{SOURCES}: sources have changed since they were compiled"


class Sources:
    """Finds the package's modules as if nothing had been compiled."""

    def __init__(self) -> None:
        self._finders: dict[str, FileFinder] = {}

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if path is None or not name.startswith(PACKAGE):
            return None
        for folder in path:
            finder = self._finders.get(folder)
            if finder is None:
                finder = self._finders[folder] = FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES))
            if (found := finder.find_spec(name, target)) is not None:
                return found
        return None


PACKAGE = __name__.removesuffix("traces.core_build")
_sources = Sources()
running = SOURCES  # what `choose` chose


def _state() -> str:
    if os.environ.get(PURE, "0") not in ("", "0") or not any(
        (ROOT / (LIBRARY + suffix)).exists() for suffix in EXTENSION_SUFFIXES
    ):
        return SOURCES
    return COMPILED if _is_current() else STALE


def choose() -> None:
    """Choose what imports find. To be called before anything is imported that may be compiled."""
    global running
    running = _state()
    if running != COMPILED and _sources not in sys.meta_path:
        sys.meta_path.insert(0, _sources)


def digest(path: str | Path) -> str:
    """By which Python itself knows byte code of another source: a hundred files at each start, so no stronger one."""
    with open(path, "rb") as source:
        return source_hash(source.read()).hex()


def _is_current() -> bool:
    """Whether a checkout's sources are those that were compiled."""
    try:
        digests: dict[str, str] = json.loads((ROOT / DIGESTS).read_bytes())
    except FileNotFoundError:
        return True
    try:
        return all(digest(f"{ROOT}/{path}") == of for path, of in digests.items())
    except FileNotFoundError:
        return False
