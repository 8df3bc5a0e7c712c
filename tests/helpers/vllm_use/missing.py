"""Prints what the vLLM at hand lacks of all that the live half leans on: `python -m vllm_use.missing`.

It takes any version, also one that is not supported, for the newest that is. What keeps it from looking further, such
as an engine that does not start, is a line of its own.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator

from tokencake.live.engine.control import versions

from .assume import as_known
from .imports import missing_imports
from .walk import PROTOCOLS, Walk


def main() -> int:
    logging.disable()
    installed, known = as_known()
    print(f"vLLM {installed}" + ("" if installed == known else f", taken for {known}"))
    lines = missing(Walk(versions.check_vllm()))
    for line in lines:
        print(f"  {line}")
    if not lines:
        print("  nothing is missing")
    return bool(lines)


def missing(walk: Walk) -> list[str]:
    """A line for each name that vLLM lacks, or that could not be looked for."""
    lines = missing_imports()
    for name in ("through_a_scheduler", "through_classes", "through_an_engine"):
        lines += walked(name, walk)
    unseen = sorted(kind.__name__ for kind in PROTOCOLS - walk.seen)
    return [*lines, *walk.missing, *([f"not looked at: {', '.join(unseen)}"] if unseen else [])]


def walked(name: str, walk: Walk) -> Iterator[str]:
    """Goes one of the ways through vLLM's objects. A line if it ends early."""
    try:
        from . import objects

        way: Callable[[Walk], None] = getattr(objects, name)
        way(walk)
    except Exception as error:
        yield f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"


if __name__ == "__main__":
    sys.exit(main())
