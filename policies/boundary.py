"""The boundary around policies: whatever a policy's own code does is its error, said in one line."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, MutableSequence
from contextlib import suppress
from pathlib import Path
from traceback import walk_tb
from types import TracebackType
from typing import TextIO

from ..traces.errors import SUSPECT, PolicyError, PolicyFault, Unanswered

TURNS = ("", "import", "constructor", "plan()")  # what of a policy can be under way
NOBODY, IMPORT, CONSTRUCTOR, PLAN = range(len(TURNS))


# Where a process says what of a policy is under way, for another process that watches it: the turn, since when by
# `time.monotonic`, and the time of the run. None: nobody watches.
_said: MutableSequence[float] | None = None


def watched_by(word: MutableSequence[float]) -> None:
    """From now on, say here what of a policy is under way: three numbers in memory that another process can see."""
    global _said
    _said = word


class Turn:
    """While a policy's own code runs. What it prints goes to stderr, for stdout is where results go.

    Whatever it raises becomes a `PolicyFault` that names the policy, what was under way, and the line where it
    happened: `SystemExit`, too. An interrupt by the user passes. It is told from a `KeyboardInterrupt` that the policy
    raised only in processes that ignore SIGINT, as those do that play for others: nobody else can have raised it there.
    A copy of the process that a policy has made (`os.fork`) ends with the turn: two would write the same result.
    The same turn may come again and again, `at_s` of the run, but not inside itself.
    """

    __slots__ = ("_name", "_process", "_stdout", "_turn", "at_s")

    def __init__(self, name: str, turn: int) -> None:
        self._name = name
        self._turn = turn
        self.at_s: float | None = None
        self._stdout: TextIO | None = None
        self._process = 0

    def __enter__(self) -> None:
        self._process = os.getpid()
        self._stdout, sys.stdout = sys.stdout, sys.stderr
        if _said is not None:
            _said[1] = time.monotonic()
            _said[2] = self.at_s or 0.0
            _said[0] = self._turn

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._process:
            os._exit(1)
        if _said is not None:
            _said[0] = NOBODY
        sys.stdout = self._stdout
        if error is None or isinstance(error, Unanswered) or _is_the_users(error):
            return
        if isinstance(error, PolicyError) and self._turn != PLAN:
            return  # it refuses an option, and says so itself
        raise PolicyFault(
            f"{said_by(self._name, self._turn, self.at_s)} raised {told(error)}{_place(trace)}"
        ) from error


def said_by(name: str, turn: int, at_s: float | None) -> str:
    """How a message about something that a policy did begins."""
    when = "" if at_s is None else f"at {at_s:.6f} s: "
    return f"policy {name}: {when}{TURNS[turn]}"


def suspect(error: BaseException, policy: object) -> None:
    """Note on an error in our own code that the policy, unless it is ours, may have caused: it shares our memory.

    What a policy is shown is locked, but what lies behind its fields is not. What comes of that looks like a
    bug of ours; to tell one from the other would take a copy of all that a policy sees.
    """
    module: object = type.__dict__["__module__"].__get__(type(policy))
    if not str(module).startswith(__name__.removesuffix("boundary")):
        name = type.__dict__["__name__"].__get__(type(policy))
        error.add_note(f"{SUSPECT}{name}, which was playing: does it write past the lock of what it is shown?")


LISTENS_TO = ("listens_to", "hears")  # the second is its name in version 0.1, read until 0.3


def listening(policy: object) -> str:
    """The attribute, of a policy or of its class, that says which facts it listens to. None of its code is run.

    Where there are both, the nearer counts: a class derived from one of ours may say `hears`, and means it.
    """
    first, former = LISTENS_TO
    for place in _places(policy):
        if place.get(first) is not None:
            return first
        if place.get(former) is not None:
            return former
    return first


def _places(policy: object) -> Iterator[Mapping[str, object]]:
    """What an object has itself, then what its classes have, the nearest first. None of its code is run."""
    kind = type(policy)
    if issubclass(kind, type):
        kind = policy  # type: ignore[assignment]
    else:
        with suppress(AttributeError):  # of one that has slots alone
            yield object.__getattribute__(policy, "__dict__")
    for base in type.__dict__["__mro__"].__get__(kind):
        yield type.__dict__["__dict__"].__get__(base)


def told(error: BaseException) -> str:
    """An error in one line. An error that cannot be shown is named."""
    try:
        text = " ".join(str.split(str(error)))
    except BaseException:  # the text of a policy's error is the policy's code, too
        text = ""
    name: str = type.__dict__["__name__"].__get__(type(error))  # what a metaclass says instead is code, too
    return f"{name}: {text}" if text else name


def _is_the_users(error: BaseException) -> bool:
    if type(error) is KeyboardInterrupt:
        return signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    return isinstance(error, KeyboardInterrupt)  # a kind of our own, for a signal that asks to end


def _place(trace: TracebackType | None) -> str:
    """The innermost line of the file in which the policy's code began: what it called is less of a help."""
    beyond = trace.tb_next if trace is not None else None  # the first frame is ours: it gave the policy its turn
    places = [(frame.f_code.co_filename, line) for frame, line in walk_tb(beyond)]
    places = [(file, line) for file, line in places if not file.startswith("<frozen")]
    if not places:
        return ""
    file, line = next(place for place in reversed(places) if place[0] == places[0][0])
    return f" ({Path(file).name}:{line})"
