"""Fifteen minutes on one GPU: what holds there, what it costs, and whether what was predicted came true.

    python benchmarks/gpu_session.py --out FOLDER [--deadline SECONDS] [--detach]      # on a GPU
    python benchmarks/gpu_session.py --out FOLDER --collect [--wait SECONDS]           # what is there by now
    python benchmarks/gpu_session.py --out FOLDER --dry                                # on a CPU, stood in for

Plays phases, each with a time limit and in a process that may die, the cheapest evidence first: facts of the machine,
copies without an engine, the copier's tests, answers beside stock vLLM's, a 7B model's shape calibrated and played
against predictions that were written before, what a step costs more with us, decisions replayed. Each phase has a file
FOLDER/PHASE.json, written at once, and its process a log; FOLDER/session.json has all of them. Called again, it plays
what is not done yet. After --deadline seconds it stops by itself.

Exit code: 0 if all phases are done, 1 if some are not, 2 if it was called wrongly, or nothing could be begun.

Of an environment that is put together by hand it needs, beside vLLM and what that needs: click, numpy, rich, scipy,
simpy, pytest, hypothesis. Tokencake is the checkout's, installed or not. CONTRIBUTING.md has the commands for a machine
without a network.
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent


def find_tokencake() -> None:
    """Make this checkout's importable, here and in processes that are started: its root is the package."""
    places = [str(HERE)]
    installed = find_spec("tokencake")
    if installed is None or installed.origin is None or Path(installed.origin).resolve().parent != HERE.parent:
        links = Path(tempfile.gettempdir(), f"tokencake-checkout-{os.getuid()}")
        links.mkdir(exist_ok=True)
        link = links / "tokencake"
        if not link.exists() or link.resolve() != HERE.parent:
            link.unlink(missing_ok=True)
            link.symlink_to(HERE.parent)
        places.append(str(links))
        sys.path.insert(0, str(links))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*places, *([before] if before else [])])


if __name__ == "__main__":
    find_tokencake()
    from exits import exit_code
    from gpu.command import main

    sys.exit(exit_code(main))
