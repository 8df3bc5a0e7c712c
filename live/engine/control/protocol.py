"""What both ends of a server's control routes agree on: the name of a run, above all."""

from __future__ import annotations

import hmac
import secrets

from ....traces.errors import EngineError

RUN_HEADER = "Tokencake-Run"  # has the name of the run that a question is about
SHORTEST_NAME, LONGEST_NAME = 32, 200  # characters of a run's name: who knows it may read and end the run
BUSY = 423  # the status of what may go well a little later


def new_name() -> str:
    """A run's name, which nobody guesses."""
    return secrets.token_hex(SHORTEST_NAME // 2)


def checked_name(value: object) -> str:
    """The value itself if it can be a run's name, `EngineError` if not."""
    if type(value) is str and SHORTEST_NAME <= len(value) <= LONGEST_NAME and value.isascii() and value.isprintable():
        return value
    raise EngineError(
        f"run: expected a run's name, {SHORTEST_NAME} to {LONGEST_NAME} printable ASCII characters,"
        " as /tokencake/run answers"
    )


def same_name(name: str, other: str) -> bool:
    """Whether two names are the same, compared in constant time."""
    return hmac.compare_digest(name.encode(), other.encode())
