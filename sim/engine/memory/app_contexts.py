"""The contexts of one application's calls, while it is under way."""

from __future__ import annotations

from collections.abc import Iterable

from ....traces.apps import Segment
from ....traces.dag_run import DagCall, DagRun
from .context_tree import Context, ContextTree


def add_context(call: DagCall, tree: ContextTree) -> Context:
    """The context of a call that arrives: its prompt and its answer, kept until `release_contexts`."""
    prompt = call.call.prompt
    if call.extends is None:
        base, line_end_token = tree.empty, _shared_tokens(prompt.segments)
    else:
        extended = call.extends.context
        assert isinstance(extended, Context), "it ended before this one began"
        base, line_end_token = tree.cut(extended, prompt.keep_tokens), 0
    answer = Segment(call.id, 0, call.call.output_tokens)
    line_end_token = max(line_end_token, call.continued_tokens)
    context = call.context = tree.follow(base, (*prompt.segments, answer), line_end_token)
    return context


def release_contexts(run: DagRun, tree: ContextTree) -> None:
    """The application ended: its contexts are nobody's."""
    for call in run.calls:
        if isinstance(call.context, Context):
            tree.release(call.context.node)
    run.forget()


def _shared_tokens(segments: Iterable[Segment]) -> int:
    """How many tokens a prompt begins with that other applications' prompts may begin with, too, and go on."""
    tokens = 0
    for source, _, length in segments:
        if not source.startswith("/"):
            break
        tokens += length
    return tokens
