"""A command that runs other people's code in its own process: success is what it says, and not how its process ends.

`supervise` goes on in a child, and the parent waits for what it says with `earned`, last of all. Without a word from
it the command has failed, whatever its exit code is: `os._exit(0)` is no success.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

from .interrupts import ASKED_TO_END
from .terminal import keep_stdout

LOOK_S = 0.1
LAST_WORDS_S = 10.0  # for a child that has said its exit code to come to its end
FAILED = 2

_allowed = False  # whether the process is the command's own
_said_through: int | None = None  # the end of a pipe, in the child


def allow_supervision() -> None:
    """The process is a command's own, and nobody else's who calls the command: it may go on in a child."""
    global _allowed
    _allowed = True


def is_commands_own() -> bool:
    """Whether it is a command's own process: see `allow_supervision`."""
    return _allowed


def supervise() -> None:
    """From here on, this is the child, if that is allowed. What other programs print no longer goes to standard output.

    Call it before there are threads.
    """
    if _allowed:
        _go_on_in_a_child()
        keep_stdout()


def _go_on_in_a_child() -> None:
    """Does nothing a second time."""
    global _said_through
    if _said_through is not None or not hasattr(os, "fork"):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    hears, says = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hears)
        _said_through = says
        return
    os.close(says)
    _watch(child, hears)


def earned(code: int) -> None:
    """The exit code of the command, once all that it had to say is written."""
    if _said_through is not None:
        os.write(_said_through, bytes([code]))


def _watch(child: int, hears: int) -> NoReturn:
    def pass_on(number: int, frame: FrameType | None) -> None:
        os.kill(child, number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells the child, too
    for number in ASKED_TO_END:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    status = None
    while status is None and not select.select([hears], [], [], LOOK_S)[0]:
        status = _ended(child)
    said = os.read(hears, 1) if select.select([hears], [], [], 0.0)[0] else b""
    until_s = time.monotonic() + LAST_WORDS_S
    while status is None and time.monotonic() < until_s:
        if (status := _ended(child)) is None:
            time.sleep(LOOK_S / 10)
    if status is None:  # a thread of somebody else's keeps it
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if said:
        os._exit(said[0])
    os._exit(_unearned(status))


def _ended(child: int) -> int | None:
    found, status = os.waitpid(child, os.WNOHANG)
    return status if found else None


def _unearned(status: int | None) -> int:
    """Says how the child came to its end without a word: the exit code for that."""
    if status is not None and os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        how, code = f"was ended by signal {number} ({signal.strsignal(number)})", 128 + number
    else:
        how, code = f"exited with {os.waitstatus_to_exitcode(status or 0)}", FAILED
    print(f"error: the process that played {how} before its result was written: did a policy end it?", file=sys.stderr)
    sys.stderr.flush()
    return code
