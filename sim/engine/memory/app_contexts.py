"""The contexts of one application's calls, while it is under way."""

from __future__ import annotations

from collections.abc import Iterable

from ....traces.apps import Application, Call, CallId, Segment
from .blocks import Node
from .context_tree import Context, ContextTree


class AppContexts:
    """Contexts by call (`of_call`): those of calls that have arrived, until the application ends."""

    __slots__ = ("_continued", "_nodes", "app", "of_call")

    def __init__(self, app: Application) -> None:
        self.app = app
        self._continued: dict[CallId, int] = {}  # by call, how many tokens of its context later prompts continue
        for call in app.calls:
            if (extended := call.prompt.extends) is not None:
                self._continued[extended] = max(call.prompt.keep_tokens, self._continued.get(extended, 0))
        self.of_call: dict[CallId, Context] = {}
        self._nodes: list[Node] = []  # held until the application ends

    def add(self, call: Call, tree: ContextTree) -> Context:
        """The context of a call that arrives: its prompt and its answer, kept until `release`."""
        prompt = call.prompt
        base = tree.empty
        if prompt.extends is not None:
            base = tree.cut(self.of_call[prompt.extends], prompt.keep_tokens)
        segments = (*prompt.segments, Segment(call.id, 0, call.output_tokens))
        line, rest = cut(segments, self._continued.get(call.id, 0) - base.num_tokens)
        trunk = tree.follow(base, line)
        context = tree.follow(trunk, rest, aside=True)
        tree.release(trunk.node)
        self.of_call[call.id] = context
        self._nodes.append(context.node)
        return context

    def release(self, tree: ContextTree) -> None:
        """The application ended: its contexts are nobody's."""
        for node in self._nodes:
            tree.release(node)


def cut(segments: Iterable[Segment], tokens: int) -> tuple[list[Segment], list[Segment]]:
    """The first `tokens` tokens of a run of segments, and the rest."""
    line: list[Segment] = []
    rest: list[Segment] = []
    for segment in segments:
        here = min(max(tokens, 0), segment.tokens)
        if here:
            line.append(segment if here == segment.tokens else Segment(segment.source, segment.start, here))
        if here < segment.tokens:
            rest.append(Segment(segment.source, segment.start + here, segment.tokens - here))
        tokens -= segment.tokens
    return line, rest
