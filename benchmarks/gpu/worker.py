"""Plays the phases of one process, one after another, and writes each one's result at once.

Started by `runner` as `python -m gpu.worker`; what it prints, and what vLLM does, is the process's log.
"""

from __future__ import annotations

import faulthandler
import importlib
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import results
from .plan import Phase, Process, phases_of
from .work import OutOfTime, Work


def play(work: Work, phase: Phase) -> bool:
    """Play one phase. Whether it is done."""
    print(f"=== {phase.name} {work.variant}".rstrip(), flush=True)
    work.begin(phase)
    began_s = time.monotonic()
    try:
        found = function_of(phase)(work)
        work.note(**found)
    except OutOfTime as stopped:
        work.end(results.OUT_OF_TIME, time.monotonic() - began_s, error=str(stopped))
        return False
    except BaseException as error:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        work.end(results.FAILED, time.monotonic() - began_s, error=line, traceback=traceback.format_exc())
        traceback.print_exc()
        if not isinstance(error, Exception):
            raise
        return False
    work.end(results.DONE, time.monotonic() - began_s)
    return True


def function_of(phase: Phase) -> Callable[[Work], dict[str, Any]]:
    module, _, name = phase.function.partition(":")
    found: Callable[[Work], dict[str, Any]] = getattr(importlib.import_module(module), name)
    return found


def main(plan: str, out: str, process_name: str, variant: str, session_end_s: str, dry: str, *names: str) -> int:
    """Plays the phases of these names. 0 if all are done, else 1."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # whoever ends this process asks first where it is
    processes: tuple[Process, ...] = importlib.import_module(plan).PROCESSES
    process = next(process for process in processes if process.name == process_name)
    phases = phases_of(processes)
    work = Work(Path(out), dry == "dry", variant, float(session_end_s))
    all_done = True
    with work.closing:
        for name in names:
            done = play(work, phases[name])
            all_done = all_done and done
            if not done and phases[name] is process.opening:
                break
    return 0 if all_done else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
