"""The process of a command, from its arguments to its exit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from .exit_codes import fail
from .garbage import collect_seldom, end_at_once
from .interrupts import heed
from .streams import open_stderr
from .supervisor import allow_supervision, earned
from .terminal import write_plainly


def run_process(run: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs the command of the process's arguments, and exits with the code that `run` returns for it."""
    if sys.stderr is None:
        open_stderr()
    if sys.stdout is None:
        sys.exit(fail("standard output is closed: expected it to be open, or >/dev/null"))
    write_plainly()
    heed()
    collect_seldom()
    allow_supervision()
    code = run(sys.argv[1:])
    earned(code)
    end_at_once()
    sys.exit(code)
