"""The contexts of one application's calls, while it is under way."""

from __future__ import annotations

from collections.abc import Iterable

from ....traces.apps import Application, Call, CallId, Segment
from .context_tree import Context, ContextTree


class AppContexts:
    """Contexts by call (`of_call`): those of calls that have arrived, until the application ends."""

    __slots__ = ("_continued", "app", "of_call")

    def __init__(self, app: Application) -> None:
        self.app = app
        self._continued: dict[CallId, int] = {}  # by call, how many tokens of its context later prompts continue
        for call in app.calls:
            if (extended := call.prompt.extends) is not None:
                self._continued[extended] = max(call.prompt.keep_tokens, self._continued.get(extended, 0))
        self.of_call: dict[CallId, Context] = {}

    def add(self, call: Call, tree: ContextTree) -> Context:
        """The context of a call that arrives: its prompt and its answer, kept until `release`."""
        prompt = call.prompt
        if prompt.extends is None:
            base, line_end_token = tree.empty, _shared_tokens(prompt.segments)
        else:
            base, line_end_token = tree.cut(self.of_call[prompt.extends], prompt.keep_tokens), 0
        if (continued := self._continued.get(call.id, 0)) > line_end_token:
            line_end_token = continued
        context = tree.follow(base, (*prompt.segments, Segment(call.id, 0, call.output_tokens)), line_end_token)
        self.of_call[call.id] = context
        return context

    def release(self, tree: ContextTree) -> None:
        """The application ended: its contexts are nobody's."""
        for context in self.of_call.values():
            tree.release(context.node)


def _shared_tokens(segments: Iterable[Segment]) -> int:
    """How many tokens a prompt begins with that other applications' prompts may begin with, too, and go on."""
    tokens = 0
    for source, _, length in segments:
        if not source.startswith("/"):
            break
        tokens += length
    return tokens
