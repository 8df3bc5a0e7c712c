"""Processes that play for this one. What runs there may hang, print, leave, or be killed: here, that is an error.

The standard library's pool of processes is broken as a whole when one of them is killed, and does not say which task
did it; a sweep goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, MutableSequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from ...policies.boundary import NOBODY, PLAN, TURNS, watched_by
from ...traces.console.garbage import collect_seldom
from ...traces.console.interrupts import heed
from ...traces.errors import PolicyFault, TokencakeError, WorkerBug
from ...traces.files.source_file import adopt, handed_over

Item = TypeVar("Item")
Result = TypeVar("Result")

LAST_WORDS_S = 10.0  # for a process that has closed its pipe to come to its end
LOOK_S = 0.1  # how often a process is looked at that says nothing
MOST_OWNERS = 4  # of whom a thread keeps a process each
CLEARING_S = 2.0  # for a process that was asked to end


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Died(PolicyFault):
    """A process that played has come to its end, or was ended, before it had an answer."""


class Workers(Executor):
    """Calls functions in one of `count` processes; a process that dies gets a successor.

    `whose` says of an item whose code plays it: what one has changed in its process is not played by another.

    `policy_timeout_s`: a policy that takes longer, in seconds, to be imported or made or to plan, is ended with its
    process. None: never.
    """

    def __init__(
        self, count: int, policy_timeout_s: float | None = None, whose: Callable[[Any], str] = lambda item: ""
    ) -> None:
        self._whose = whose
        self._threads = ThreadPoolExecutor(count)  # each has a process of its own, and waits for it
        self._of_thread = threading.local()
        self._workers: list[Worker] = []
        self._policy_timeout_s = policy_timeout_s

    def submit(self, act: Callable[[Item], Result], item: Item, /) -> Future[Result]:  # type: ignore[override]
        """`act`, a function of a module, is called with the item; errors as `Worker.ask`."""
        return self._threads.submit(self._run, act, item)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the processes; what they are playing is lost unless `wait`."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures or not wait)
        for worker in self._workers:
            worker.hurry()
        for worker in self._workers:
            worker.end()

    def _run(self, act: Callable[[Item], Result], item: Item) -> Result:
        own: dict[str, Worker] = self._of_thread.__dict__.setdefault("workers", {})
        whose = self._whose(item)
        worker = own.get(whose)
        if worker is None:
            if len(own) == MOST_OWNERS:
                own.pop(next(iter(own))).end()
            worker = own[whose] = Worker(self._policy_timeout_s)
            self._workers.append(worker)
        try:
            return worker.ask(act, item)
        except Died:
            del own[whose]
            raise


class Worker:
    """A process, the pipe to it, and a word of memory in which it says what of a policy is under way."""

    def __init__(self, policy_timeout_s: float | None = None) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy what threads of this process hold
        self._policy_timeout_s = policy_timeout_s
        self._word: MutableSequence[float] = context.RawArray("d", 3)
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._word, handed_over()), daemon=True)
        self._process.start()
        theirs.close()  # so that ours ends when the process does

    def ask(self, act: Callable[[Item], Result], item: Item, heard: Callable[[Any], None] | None = None) -> Result:
        """What `act` made of the item. `heard` gets what it has to `tell` meanwhile.

        Raises what it raised, if that is a `TokencakeError`, `Died` if the process did, and `WorkerBug` for the rest.
        """
        try:
            self._ours.send((act, item))
            while True:
                kind, answer = self._answer()
                if kind == "told" and heard is not None:
                    heard(answer)
                elif kind == "done":
                    result: Result = answer
                    return result
                elif kind == "raised":
                    raise answer
        except (EOFError, OSError):
            raise Died(self._obituary()) from None

    def ask_of(
        self, policy: str, act: Callable[[Item], Result], item: Item, heard: Callable[[Any], None] | None = None
    ) -> Result:
        """As `ask`, about this policy: if the process dies, that is its fault."""
        try:
            return self.ask(act, item, heard)
        except Died as died:
            raise PolicyFault(f"policy {policy}: {died}") from None

    def hurry(self) -> None:
        """Asks it to tidy up, and to come to its end."""
        self._process.terminate()

    def end(self) -> None:
        """Ends it, whatever it does."""
        self.hurry()
        self._process.join(CLEARING_S)
        self._process.kill()
        self._process.join()

    def _answer(self) -> tuple[str, Any]:
        while not self._ours.poll(LOOK_S):
            if not self._process.is_alive() and not self._ours.poll():
                raise EOFError  # a process that a policy has started may still hold the other end of the pipe
            turn, since_s, at_s = self._word[0], self._word[1], self._word[2]
            limit_s = self._policy_timeout_s
            if turn != NOBODY and limit_s is not None and time.monotonic() - since_s > limit_s:
                self._process.kill()
                raise Died(f"{_under_way(turn, at_s)} did not come back within {limit_s:g} s")
        answer: tuple[str, Any] = self._ours.recv()
        return answer

    def _obituary(self) -> str:
        """How it died."""
        turn, at_s = self._word[0], self._word[2]
        self._process.join(LAST_WORDS_S)
        code: Any = self._process.exitcode
        if code is None:
            self.end()
            how = "went silent"
        elif code < 0:
            how = f"was ended by signal {-code} ({signal.strsignal(-code)})"
        else:
            how = f"exited with {code}"
        during = "" if turn == NOBODY else f" during {_under_way(turn, at_s)}"
        return f"the process that played it {how}{during}"


def _under_way(turn: float, at_s: float) -> str:
    return f"{TURNS[int(turn)]} at {at_s:.6f} s" if turn == PLAN else TURNS[int(turn)]


# -- in the process

_pipe: Connection | None = None


def tell(message: object) -> None:
    """To who asked for what is being done here; to nobody in a process that does its own work."""
    if _pipe is not None:
        _pipe.send(("told", message))


def _serve(pipe: Connection, word: MutableSequence[float], files: Mapping[str, str]) -> None:
    """Does what is asked until nothing comes any more: also when whoever asks was killed."""
    global _pipe
    _pipe = pipe
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the command, and the command ends its workers
    heed()
    with suppress(OSError):
        os.dup2(2, 1)  # what policies print, and what they call: standard output is for results
    sys.stdout = sys.stderr
    watched_by(word)
    adopt(files)
    collect_seldom()
    try:
        while True:
            act, item = pipe.recv()
            pipe.send(_outcome(act, item))
    except (EOFError, OSError, KeyboardInterrupt):
        pass
    os._exit(0)  # a thread that a policy has left behind keeps nobody waiting


def _outcome(act: Callable[[Any], object], item: object) -> tuple[str, object]:
    try:
        return "done", act(item)
    except TokencakeError as error:
        return "raised", type(error)(str(error))
    except Exception:
        return "raised", WorkerBug(traceback.format_exc())
