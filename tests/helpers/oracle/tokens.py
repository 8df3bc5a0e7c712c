"""Token ids for prompts: two tokens are equal where they are the same position of the same source."""

from __future__ import annotations

from collections.abc import Iterable

from tokencake.traces.apps import Application, Call, CallId, Segment

LONGEST_SOURCE_TOKENS = 1 << 32


class Tokens:
    """Realises the calls of some applications as lists of whole numbers, one a token."""

    def __init__(self, applications: Iterable[Application]) -> None:
        self._calls = {call.id: call for application in applications for call in application.calls}
        self._sources: dict[str, int] = {}

    def prompt(self, call: Call) -> list[int]:
        """The prompt's token ids."""
        return [token for segment in self._prompt_segments(call) for token in self._ids(segment)]

    def answer(self, call: Call) -> list[int]:
        """The ids of the tokens that the call samples."""
        return self._ids(_answer(call))

    def _ids(self, segment: Segment) -> list[int]:
        source = self._sources.setdefault(segment.source, len(self._sources))
        first = source * LONGEST_SOURCE_TOKENS + segment.start
        return list(range(first, first + segment.tokens))

    def _prompt_segments(self, call: Call) -> list[Segment]:
        kept = self._context_segments(call.prompt.extends) if call.prompt.extends is not None else []
        return [*_first(kept, call.prompt.keep_tokens), *call.prompt.segments]

    def _context_segments(self, call_id: CallId) -> list[Segment]:
        call = self._calls[call_id]
        return [*self._prompt_segments(call), _answer(call)]


def _answer(call: Call) -> Segment:
    return Segment(call.id, 0, call.output_tokens)


def _first(segments: list[Segment], tokens: int) -> list[Segment]:
    """The first `tokens` tokens of the segments."""
    kept = []
    for segment in segments:
        if tokens <= 0:
            break
        kept.append(segment._replace(tokens=min(segment.tokens, tokens)))
        tokens -= segment.tokens
    return kept
