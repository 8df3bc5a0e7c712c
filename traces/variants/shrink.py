"""The same applications with a fraction of their tokens: for engines that are small or slow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..apps import Application, Call, CallId, Prompt, Segment
from ..arithmetic import div_ceil


def shrunk(applications: Iterable[Application], factor: int) -> Iterator[Application]:
    """Of every source, the first of each `factor` tokens: what prompts shared, they share. An answer has one at least.

    Lazy. A prompt that would be left with nothing keeps a token that is its own.
    """
    return (_application(application, factor) for application in applications)


def _application(application: Application, factor: int) -> Application:
    contexts: dict[CallId, tuple[Segment, ...]] = {}  # whole ones, as they were
    calls = []
    for call in application.calls:
        kept = _first(contexts[call.prompt.extends], call.prompt.keep_tokens) if call.prompt.extends else ()
        contexts[call.id] = (*kept, *call.prompt.segments, Segment(call.id, 0, call.output_tokens))
        calls.append(_call(call, kept, factor))
    return application._replace(calls=tuple(calls))


def _call(call: Call, kept: tuple[Segment, ...], factor: int) -> Call:
    keep_tokens = sum(segment.tokens for segment in _shrunk(kept, factor))
    segments = _shrunk(call.prompt.segments, factor)
    if not keep_tokens and not segments:
        segments = (Segment(f"{call.id}.rest", 0, 1),)
    tokens = keep_tokens + sum(segment.tokens for segment in segments)
    output_tokens = _before(call.output_tokens, factor)
    return call._replace(
        prompt=Prompt(segments, call.prompt.extends if keep_tokens else None, keep_tokens, tokens),
        output_tokens=output_tokens,
        max_output_tokens=max(output_tokens, call.max_output_tokens // factor),
    )


def _shrunk(segments: Iterable[Segment], factor: int) -> tuple[Segment, ...]:
    """What is left of segments: those of the tokens whose positions are multiples of the factor."""
    left = []
    for source, start, tokens in segments:
        first, end = _before(start, factor), _before(start + tokens, factor)
        if end > first:
            left.append(Segment(source, first, end - first))
    return tuple(left)


def _before(position: int, factor: int) -> int:
    """How many multiples of the factor lie before a position."""
    return div_ceil(position, factor)


def _first(context: Iterable[Segment], tokens: int) -> tuple[Segment, ...]:
    """The first tokens of a context."""
    found = []
    for segment in context:
        here = min(segment.tokens, tokens)
        if here:
            found.append(segment._replace(tokens=here))
        tokens -= here
    return tuple(found)
