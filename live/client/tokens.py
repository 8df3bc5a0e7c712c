"""Token ids that realise a trace's prompts: two prompts share a prefix where they name the same tokens of a source.

What a trace knows of its content is how long it is and what it shares; the ids are drawn by hashing the name of the
source and the place in it, so that they are the same in every run. Only a call's answer is what the model really said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ...traces.apps import Application, Call, CallId, Segment

Ids = NDArray[np.int64]

# The finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
_GAMMA, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Tokens:
    """The prompts of applications under way. Of each it keeps what its calls answered, until the application ends."""

    def __init__(self, vocabulary: int) -> None:
        assert vocabulary > 1, "with a single id all prompts would be alike"
        self._vocabulary = np.uint64(vocabulary)
        self._calls: dict[CallId, Call] = {}
        self._answers: dict[CallId, Ids] = {}

    def begin(self, application: Application) -> None:
        """From now on its calls can be named."""
        self._calls.update((call.id, call) for call in application.calls)

    def end(self, application: Application) -> None:
        """None of its calls is named again."""
        for call in application.calls:
            del self._calls[call.id]
            self._answers.pop(call.id, None)

    def answered(self, call: CallId, answer: Sequence[int]) -> None:
        """What the model said."""
        self._answers[call] = np.asarray(answer, np.int64)

    @property
    def held(self) -> int:
        """How many calls it has something of."""
        return len(self._calls)

    def prompt(self, call: Call) -> list[int]:
        """The prompt's token ids. Every call whose answer it contains has answered."""
        ids: list[int] = np.concatenate([self._ids(segment) for segment in self._segments(call)]).tolist()
        return ids

    def _segments(self, call: Call) -> list[Segment]:
        """A prompt without `extends`: from the call back to the first of its context, each cut where the next goes on.

        A loop and not a recursion: conversations have hundreds of calls.
        """
        parts: list[Segment] = []
        keep_tokens = call.prompt.tokens
        extending: Call | None = call
        own: tuple[Segment, ...] = ()
        while extending is not None:
            prompt = extending.prompt
            parts[:0] = _cut((*prompt.segments, *own), keep_tokens - prompt.keep_tokens)
            keep_tokens = min(keep_tokens, prompt.keep_tokens)
            extending = None if prompt.extends is None else self._calls[prompt.extends]
            own = () if extending is None else (Segment(extending.id, 0, extending.output_tokens),)
        return parts

    def _ids(self, segment: Segment) -> Ids:
        end = segment.start + segment.tokens
        answer = self._answers.get(segment.source)
        if answer is not None:
            return answer[segment.start : end]
        places = np.arange(segment.start, end, dtype=np.uint64)
        return (_mixed(places + _first_place(segment.source)) % self._vocabulary).astype(np.int64)


def _cut(segments: Sequence[Segment], tokens: int) -> list[Segment]:
    """The first `tokens` tokens of a run of segments."""
    kept = []
    for segment in segments:
        if tokens <= 0:
            break
        kept.append(segment._replace(tokens=min(segment.tokens, tokens)))
        tokens -= segment.tokens
    return kept


@lru_cache(maxsize=4096)
def _first_place(source: str) -> np.uint64:
    """Where a source begins in the one sequence that all ids are taken from."""
    return np.uint64(int.from_bytes(hashlib.blake2b(source.encode(), digest_size=8).digest(), "little"))


def _mixed(places: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Numbers that look random, one for each place."""
    mixed = places * _GAMMA
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
    return mixed ^ (mixed >> np.uint64(31))
