"""Processes that play cells. One that dies takes nothing with it but the cell that it was playing.

The standard library's pool of processes is broken as a whole when one of them is killed, and does not say which task
did it; a sweep goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from ...traces.source_file import adopt, handed_over
from .attempt import lost
from .cell import Cell, Outcome

Act = Callable[[Cell], Outcome]

LAST_WORDS_S = 10.0  # for a process that has closed its pipe to come to its end


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers(Executor):
    """Plays each cell in one of `count` processes; a process that dies gets a successor."""

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count)  # each has a process of its own, and waits for it
        self._of_thread = threading.local()
        self._processes: list[_Process] = []

    def submit(self, act: Act, cell: Cell, /) -> Future[Outcome]:  # type: ignore[override]
        """`act`, a function of a module, is called with the cell; it should raise nothing."""
        return self._threads.submit(self._run, act, cell)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the processes; what they are playing is lost unless `wait`."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures or not wait)
        for process in self._processes:
            process.end()

    def _run(self, act: Act, cell: Cell) -> Outcome:
        process: _Process | None = getattr(self._of_thread, "process", None)
        if process is None:
            process = self._of_thread.process = _Process()
            self._processes.append(process)
        try:
            return process.ask(act, cell)
        except (EOFError, OSError):
            self._of_thread.process = None
            return lost(cell, process.obituary())


class _Process:
    """A process, and the pipe to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy what threads of this process hold
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, handed_over()), daemon=True)
        self._process.start()
        theirs.close()  # so that ours ends when the process does

    def ask(self, act: Act, cell: Cell) -> Outcome:
        """What `act` made of the cell. Raises EOFError or OSError if the process has died."""
        self._ours.send((act, cell))
        outcome: Outcome = self._ours.recv()
        return outcome

    def obituary(self) -> str:
        """How it died."""
        self._process.join(LAST_WORDS_S)
        code: Any = self._process.exitcode
        if code is None:
            self.end()
            return "the process that played it went silent"
        if code < 0:
            return f"the process that played it was ended by signal {-code} ({signal.strsignal(-code)})"
        return f"the process that played it exited with {code}"

    def end(self) -> None:
        self._process.terminate()


def _serve(cells: Connection, files: Mapping[str, str]) -> None:
    """Plays what comes until nothing comes any more: also when whoever asks was killed."""
    adopt(files)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the command, and the command ends its workers
    try:
        while True:
            act, cell = cells.recv()
            cells.send(act(cell))
    except (EOFError, OSError):
        return
