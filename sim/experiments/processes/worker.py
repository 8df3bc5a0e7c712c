"""A process that plays for this one. What runs there may hang, print, leave, or be killed: here, that is an error."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableSequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeVar

from ....policies.boundary import NOBODY, PLAN, TURNS, watched_by
from ....traces.console.garbage import collect_seldom
from ....traces.console.interrupts import ASKED_TO_END, heed
from ....traces.console.supervisor import is_commands_own
from ....traces.errors import PolicyFault, TokencakeError, WorkerBug
from ....traces.files.source_file import adopt, handed_over

Item = TypeVar("Item")
Result = TypeVar("Result")

LAST_WORDS_S = 10.0  # for a process that has closed its pipe to come to its end
LOOK_S = 0.1  # how often a process is looked at that says nothing
GONE_S = 0.002  # how often, when it is about to end
CLEARING_S = 2.0  # for a process that was asked to end
SIGNALS = (signal.SIGINT, *ASKED_TO_END)


class Died(PolicyFault):
    """A process that played has come to its end, or was ended, before it had an answer."""


def start_method() -> Literal["fork", "spawn"]:
    """How a process begins: as a copy of this one, with all that it has read and imported, or from nothing.

    Only a command's own process is copied, which holds no code but this package's, and only while it is its one thread:
    a copy would have what other threads hold, and not them.
    """
    try:
        alone = len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return "spawn"  # not on Linux
    return "fork" if alone and is_commands_own() else "spawn"


class Worker:
    """A process, the pipe to it, and a word of memory in which it says what of a policy is under way.

    `policy_timeout_s`: a policy that takes longer, in seconds, to be imported or made or to plan, is ended with its
    process. None: never.
    """

    def __init__(self, policy_timeout_s: float | None = None) -> None:
        how = start_method()
        context: Any = multiprocessing.get_context(how)
        self._policy_timeout_s = policy_timeout_s
        self._word: MutableSequence[float] = context.RawArray("d", 3)
        ours, theirs = context.Pipe()
        self.pipe: Connection = ours
        self._process = context.Process(
            target=_serve, args=(theirs, self._word, handed_over(), how == "fork"), daemon=True
        )
        with _signals_held():  # the process has to say first what they are to it
            self._process.start()
        theirs.close()  # so that ours ends when the process does

    def begin(self, act: Callable[[Item], object], item: Item) -> None:
        """Has `act`, a function of a module, called with the item."""
        with suppress(OSError):  # `answer` says how it died
            self.pipe.send((act, item))

    def answer(self, heard: Callable[[Any], None] | None = None) -> tuple[str, Any] | None:
        """What has come of what was begun, see `outcome`: None as long as nothing has.

        `heard` gets what `act` has to `tell` meanwhile. Raises `Died` if the process did, or has to.
        """
        try:
            while self.pipe.poll():
                kind, answer = self.pipe.recv()
                if kind != "told":
                    return kind, answer
                if heard is not None:
                    heard(answer)
            if not self._process.is_alive() and not self.pipe.poll():
                raise EOFError  # a process that a policy has started may still hold the other end of the pipe
        except (EOFError, OSError):
            raise Died(self._obituary()) from None
        self._check_time()
        return None

    def ask(self, act: Callable[[Item], Result], item: Item, heard: Callable[[Any], None] | None = None) -> Result:
        """What `act` made of the item: see `begin` and `answer`. Raises as `outcome`."""
        self.begin(act, item)
        while (answer := self.answer(heard)) is None:
            with suppress(OSError):  # the next look says what is wrong
                self.pipe.poll(LOOK_S)
        result: Result = outcome(answer)
        return result

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
        self._ends_within(CLEARING_S)
        self._process.kill()
        self._process.join()
        self.pipe.close()

    def _check_time(self) -> None:
        turn, since_s, at_s = self._word[0], self._word[1], self._word[2]
        limit_s = self._policy_timeout_s
        if turn != NOBODY and limit_s is not None and time.monotonic() - since_s > limit_s:
            self._process.kill()
            raise Died(f"{_under_way(turn, at_s)} did not come back within {limit_s:g} s")

    def _obituary(self) -> str:
        """How it died."""
        turn, at_s = self._word[0], self._word[2]
        if not self._ends_within(LAST_WORDS_S):
            self.end()
            how = "went silent"
        elif (code := self._process.exitcode) < 0:
            how = f"was ended by signal {-code} ({signal.strsignal(-code)})"
        else:
            how = f"exited with {code}"
        during = "" if turn == NOBODY else f" during {_under_way(turn, at_s)}"
        return f"the process that played it {how}{during}"

    def _ends_within(self, seconds: float) -> bool:
        """Whether it does. A copy's end cannot be waited for: it has closed all that it did not need."""
        until_s = time.monotonic() + seconds
        while self._process.is_alive():
            if time.monotonic() > until_s:
                return False
            time.sleep(GONE_S)
        return True


def outcome(answer: tuple[str, Any]) -> Any:
    """What was made of an item. Raises what was raised, if that is a `TokencakeError`, and `WorkerBug` for the rest."""
    kind, what = answer
    if kind == "raised":
        raise what
    return what


def _under_way(turn: float, at_s: float) -> str:
    return f"{TURNS[int(turn)]} at {at_s:.6f} s" if turn == PLAN else TURNS[int(turn)]


@contextmanager
def _signals_held() -> Iterator[None]:
    """Until the end of the block, signals that ask to end wait: also in a process that it starts, for `_let_go`."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- in the process

_pipe: Connection | None = None


def tell(message: object) -> None:
    """To who asked for what is being done here; to nobody in a process that does its own work."""
    if _pipe is not None:
        _pipe.send(("told", message))


def _serve(pipe: Connection, word: MutableSequence[float], files: Mapping[str, str], copied: bool) -> None:
    """Does what is asked until nothing comes any more: also when whoever asks was killed."""
    global _pipe
    _pipe = pipe
    if copied:
        _forget_the_original(pipe)
    _heed_signals()
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


def _forget_the_original(pipe: Connection) -> None:
    """Nothing that it has open is kept open here: neither its locks nor its pipes to other copies.

    The numbers stay in use: whatever may still close one closes nothing of ours.
    """
    kept = (0, 1, 2, pipe.fileno())
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number not in kept:
            with suppress(OSError):  # that of the list itself
                os.fstat(number)
                os.dup2(nothing, number, inheritable=False)
    gc.freeze()  # what was there before has been looked through, and its memory stays the original's


def _heed_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the command, and the command ends its workers
    for number in ASKED_TO_END:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)  # what they were to the original
    heed()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _outcome(act: Callable[[Any], object], item: object) -> tuple[str, object]:
    try:
        return "done", act(item)
    except TokencakeError as error:
        return "raised", type(error)(str(error))
    except Exception:
        return "raised", WorkerBug(traceback.format_exc())
