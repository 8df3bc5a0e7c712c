"""What is printed for people: whatever it says, it does nothing to their terminal, and fits its encoding."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from ..files.escaping import for_terminal

PLAIN = "tokencake.plain"  # how signs that an encoding lacks are written
SIGNS = {"±": "+/-", "…": "...", "−": "-", "–": "-", "—": "-", "×": "x", "→": "->", "·": "-", "µ": "u", "≤": "<="}


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(SIGNS.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


codecs.register_error(PLAIN, _plain)


def write_plainly() -> None:
    """From now on standard output and error write signs that their encodings lack in another way, and lose nothing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=PLAIN)


def keep_stdout() -> None:
    """From now on `sys.stdout` alone is standard output: what other programs and libraries print goes to stderr.

    That is for processes that run other people's code, which may start a program, for results on standard output are
    read by programs, too.
    """
    stream = sys.stdout
    stream.flush()
    kept = os.dup(stream.fileno())
    os.dup2(2, 1)
    sys.stdout = open(  # noqa: SIM115
        kept, "w", encoding=stream.encoding, errors=stream.errors, buffering=1 if stream.line_buffering else -1
    )


def fitting(text: str, encoding: str | None) -> str:
    """As it is printed in an encoding: with nothing that a terminal would obey, and no sign that it lacks."""
    safe = for_terminal(text)
    return safe if safe.isascii() else safe.encode(encoding or "utf-8", PLAIN).decode(encoding or "utf-8")


def say(text: str, err: bool = False, file: TextIO | None = None) -> None:
    """Prints a line, or several; nowhere if the stream is closed."""
    stream = file or (sys.stderr if err else sys.stdout)
    if stream is not None:
        stream.write(f"{fitting(text, stream.encoding)}\n")
        stream.flush()


def say_named(lines: Sequence[tuple[str, str]]) -> None:
    """Prints a line a name, and beside it what there is to say about it."""
    width = max(len(name) for name, _ in lines)
    for name, about in lines:
        say(f"{name:<{width}}  {about}")
