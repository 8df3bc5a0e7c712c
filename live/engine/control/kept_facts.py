"""The facts of a client's run, until that client has them."""

from __future__ import annotations

from collections import deque
from typing import Any

from ....traces.errors import EngineError
from ....traces.format.events_file import encode

MOST_BYTES = 256 * 2**20  # of facts that nobody fetched: about a million and a half


class KeptFacts:
    """Lines of an events file, numbered from 0 on. Whoever asks from a number on has those before it."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._first = 0
        self._bytes = 0
        self.overflowed = False  # whether there were too many; those that came later are missing

    def add(self, record: Any) -> None:
        """A sink."""
        line = encode(record)
        self.overflowed |= self._bytes + len(line) > MOST_BYTES
        if not self.overflowed:
            self._lines.append(line)
            self._bytes += len(line)

    def since(self, number: int, most: int) -> tuple[list[str], int]:
        """At most so many lines from this number on, and the number of the next. Forgets those before them.

        Raises `EngineError` for a number that nobody was given: lines that are forgotten, or beyond the next one.
        """
        if number < self._first:
            raise EngineError(f"facts: from {number}: those before {self._first} were fetched, and are not kept")
        if number > self._first + len(self._lines):  # it has not got what it says it has, and nobody could tell it
            raise EngineError(f"facts: from {number}: expected at most {self._first + len(self._lines)}, the next one")
        while self._lines and self._first < number:
            self._bytes -= len(self._lines.popleft())
            self._first += 1
        start = number - self._first
        lines = [self._lines[at] for at in range(start, min(start + most, len(self._lines)))]
        return lines, number + len(lines)
