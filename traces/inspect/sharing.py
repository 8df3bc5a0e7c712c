"""How many prompt tokens a cache without limits would find: it has seen all earlier prompts and answers of the trace.

Counts tokens, not blocks, and takes the calls in the order of the file: what a real cache finds is less. The work is
linear in the number of segments, however many tokens they stand for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..apps import Application, Call, CallId, Prompt, Segment


class Shared(NamedTuple):
    """Tokens of one prompt that were seen before."""

    inside: int  # in this application
    across: int  # more of them in other applications only


class TokenPoint(NamedTuple):
    """A context: it ends `tokens` tokens into a run."""

    run: int
    tokens: int


ROOT = TokenPoint(0, 0)


@dataclass(slots=True)
class _Run:
    """Tokens `start`, `start + 1`, … of one source, behind a certain context."""

    behind: TokenPoint
    source: str
    start: int
    tokens: int


class PrefixTree:
    """All contexts seen so far. A run branches where contexts differ, and grows where one goes on with its source."""

    def __init__(self) -> None:
        self._runs = [_Run(ROOT, "", 0, 0)]
        self._branches: dict[tuple[TokenPoint, str, int], int] = {}

    def follow(self, point: TokenPoint, segment: Segment) -> tuple[TokenPoint, int]:
        """The context `point` with `segment` behind it, and how many tokens of the segment were known there."""
        source, start, tokens = segment
        run = self._runs[point.run]
        if source != run.source or start != run.start + point.tokens:
            number = self._branch(point, source, start)
            point, run = TokenPoint(number, 0), self._runs[number]
        end = point.tokens + tokens
        known = min(end, run.tokens) - point.tokens
        run.tokens = max(end, run.tokens)
        return TokenPoint(point.run, end), known

    def back(self, point: TokenPoint, tokens: int) -> TokenPoint:
        """The context without its last `tokens` tokens."""
        while tokens >= point.tokens and point != ROOT:
            tokens -= point.tokens
            point = self._runs[point.run].behind
        return TokenPoint(point.run, point.tokens - tokens)

    def _branch(self, point: TokenPoint, source: str, start: int) -> int:
        number = self._branches.setdefault((point, source, start), len(self._runs))
        if number == len(self._runs):
            self._runs.append(_Run(point, source, start, 0))
        return number


class Sharing:
    """Finds what each prompt shares with those before it.

    Only content whose source begins with `/` can be met in another application: of applications that are over, only
    how far their contexts begin with such content is remembered.
    """

    def __init__(self) -> None:
        self._across = PrefixTree()

    def of(self, application: Application) -> list[Shared]:
        """What each call's prompt shares with everything before it; the application is then remembered."""
        inside, across = _Contexts(PrefixTree(), private=True), _Contexts(self._across, private=False)
        result = []
        for call in application.calls:
            known = inside.add(call)
            result.append(Shared(known, max(0, across.add(call) - known)))
        return result


class _Contexts:
    """The contexts of one application in a tree: whole, or as far as they begin with content that is not private."""

    def __init__(self, tree: PrefixTree, private: bool) -> None:
        self._tree = tree
        self._private = private
        self._ends: dict[
            CallId, tuple[TokenPoint, int]
        ] = {}  # each call's context in the tree, and how long it is there

    def add(self, call: Call) -> int:
        """Takes a call's context into the tree, and says how many tokens of its prompt were there."""
        point, length, whole = self._extended(call.prompt)
        known = length
        for segment in (*call.prompt.segments, Segment(call.id, 0, call.output_tokens)):
            whole = whole and (self._private or segment.source.startswith("/"))
            if not whole:
                break
            point, tokens = self._tree.follow(point, segment)
            length += segment.tokens
            known += tokens  # none once something was new: nothing lies behind it yet
        self._ends[call.id] = (point, length)
        return known

    def _extended(self, prompt: Prompt) -> tuple[TokenPoint, int, bool]:
        """The context that a prompt begins with, how long it is in the tree, and whether the tree has all of it."""
        if prompt.extends is None:
            return ROOT, 0, True
        point, length = self._ends[prompt.extends]
        kept = min(length, prompt.keep_tokens)
        return self._tree.back(point, length - kept), kept, kept == prompt.keep_tokens
