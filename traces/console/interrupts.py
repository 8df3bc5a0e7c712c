"""What asks a command to end: Ctrl-C, and what a system sends. All are heeded alike: clean up, and be gone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

ASKED_TO_END = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """The process was asked to end by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def exit_code(interrupt: BaseException) -> int:
    """As a shell has it: 128 and the number of the signal."""
    for error in (interrupt, interrupt.__cause__):  # click makes something else of it
        if isinstance(error, Terminated):
            return 128 + error.number
    return 128 + signal.SIGINT


def heed() -> None:
    """From now on a signal that asks to end raises `Terminated`, as Ctrl-C does KeyboardInterrupt; not ignored ones."""
    for number in ASKED_TO_END:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(number)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Whatever asks to end waits until the block ends, which is soon."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: asked.append(number))
        for number in (signal.SIGINT, *ASKED_TO_END)
        if signal.getsignal(number) is not None  # which somebody else than Python has set
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        signal.raise_signal(asked[0])
